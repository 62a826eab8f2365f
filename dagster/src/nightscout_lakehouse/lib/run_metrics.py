"""What Prometheus may know of the runs: counters and gauges from the journal, for node_exporter's textfile collector.

A run lasts seconds, and its process is gone before anybody could scrape it; hence a file. Names of sites are labels;
figures of glucose are nowhere in it.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from nightscout_lakehouse.lib.run_journal import RunJournal
from nightscout_lakehouse.lib.settings import Settings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

TICK: Final = "nightscout_pipeline"


def metrics_text(journal: RunJournal) -> str:
    """The metrics in Prometheus's text format."""
    from prometheus_client import generate_latest

    return generate_latest(_registry(journal)).decode()


def write_metrics(settings: Settings, journal: RunJournal) -> None:
    """Write the metrics to their file; who reads it meanwhile sees the old or the new one whole."""
    from prometheus_client import write_to_textfile

    settings.metrics_path.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(settings.metrics_path), _registry(journal))


def _registry(journal: RunJournal) -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(journal))
    return registry


class _Collector:
    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal

    def collect(self) -> "Iterator[Metric]":
        yield _gauge("info", "Version of the lakehouse.", ["version"], [([version("nightscout-lakehouse")], 1)])
        yield from self._of_runs()
        yield from self._of_sites()

    def _of_runs(self) -> "Iterator[Metric]":
        totals = self._journal.query("select * from run_totals order by job, status")
        yield _counter(
            "runs", "Runs that have ended.", ["job", "status"], [([r["job"], r["status"]], r["runs"]) for r in totals]
        )
        last = self._journal.query(
            """
            select * from (
                select *, row_number() over (partition by job order by started_at desc) as place
                from runs where status <> 'running'
            ) where place = 1 order by job
            """
        )
        yield _gauge(
            "last_run_start_timestamp_seconds",
            "When the newest run that has ended began.",
            ["job"],
            [([row["job"]], _seconds(row["started_at"])) for row in last],
        )
        yield _gauge(
            "last_run_success",
            "Whether it succeeded: 1 or 0.",
            ["job"],
            [([row["job"]], row["status"] == "success") for row in last],
        )
        yield _gauge(
            "last_run_duration_seconds",
            "How long it took; of a killed run nobody knows.",
            ["job"],
            [([row["job"]], row["duration_seconds"]) for row in last if row["duration_seconds"] is not None],
        )
        succeeded = self._journal.query(
            "select job, max(ended_at) as ended_at from runs where status = 'success' group by job order by job"
        )
        yield _gauge(
            "last_success_timestamp_seconds",
            "When the newest run that succeeded ended.",
            ["job"],
            [([row["job"]], _seconds(row["ended_at"])) for row in succeeded],
        )
        steps = [
            ([step.step], step.seconds)
            for row in last
            if row["job"] == TICK
            for step in self._journal.steps(row["run_id"])
        ]
        yield _gauge("last_run_step_duration_seconds", "How long each step of the newest tick took.", ["step"], steps)
        ((waiting,),) = (
            row.values() for row in self._journal.query("select count(*) from runs where not is_delivered")
        )
        yield _gauge("runs_postgres_does_not_know", "Runs that Postgres is yet to be told of.", [], [([], waiting)])

    def _of_sites(self) -> "Iterator[Metric]":
        totals = self._journal.query("select * from site_totals order by site, what")
        yield _counter(
            "site_documents",
            "Documents by what became of them, all collections.",
            ["site", "what"],
            [([row["site"], row["what"]], row["documents"]) for row in totals],
        )
        reads = self._journal.query("select * from site_reads order by site")
        yield _gauge(
            "site_last_read_success",
            "Whether the server could be read when it was tried last: 1 or 0.",
            ["site"],
            [([row["site"]], row["read_at"] == row["tried_at"]) for row in reads],
        )
        for name, column, text in (
            ("site_last_read_timestamp_seconds", "read_at", "Start of the newest run that could read the server."),
            ("site_newest_entry_timestamp_seconds", "newest_document_at", "Time of the newest entry it has shown."),
        ):
            yield _gauge(name, text, ["site"], _moments(reads, column))


def _moments(rows: Iterable[Mapping[str, Any]], column: str) -> list[tuple[list[str], float]]:
    return [([row["site"]], _seconds(row[column])) for row in rows if row[column] is not None]


def _gauge(name: str, text: str, labels: list[str], values: Iterable[tuple[list[str], float]]) -> "Metric":
    from prometheus_client.core import GaugeMetricFamily

    metric = GaugeMetricFamily(f"lakehouse_{name}", text, labels=labels)
    for each, value in values:
        metric.add_metric(each, float(value))
    return metric


def _counter(name: str, text: str, labels: list[str], values: Iterable[tuple[list[str], float]]) -> "Metric":
    from prometheus_client.core import CounterMetricFamily

    metric = CounterMetricFamily(f"lakehouse_{name}", text, labels=labels)
    for each, value in values:
        metric.add_metric(each, float(value))
    return metric


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).astimezone(UTC).timestamp()
