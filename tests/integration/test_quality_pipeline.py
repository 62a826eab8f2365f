"""What a critical check stops, what a warning does not, and what is said: the real pipeline, server and Postgres."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nightscout_lakehouse.demo import DemoOptions, DemoServer, DemoStore, Person
from nightscout_lakehouse.instance import JobOutcome, execute_job, prepare_environment
from nightscout_lakehouse.lib.dbt_project import DbtBuildResult, DbtProject, Target
from nightscout_lakehouse.lib.quality.stages import kept_results
from nightscout_lakehouse.lib.serving import read_query, serving_database
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.warehouse import open_warehouse

pytestmark = [pytest.mark.e2e, pytest.mark.postgres, pytest.mark.timeout(900)]

TOKEN = "reader-0123456789abcdef"
# A server whose clock stands still sends nothing new by itself.
NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=2)
TICK_WITHOUT_NEWS = """
import sys
from nightscout_lakehouse.instance import execute_job
outcome = execute_job("nightscout_pipeline")
assert outcome.success, outcome.errors
assert outcome.metadata["raw_nightscout_entries"]["documents_landed"] == 0
assert outcome.metadata["fact_glucose_readings"]["unchanged"]
assert outcome.failed_checks == []
print([name for name in sys.modules if name.startswith("great_expectations")])
"""


@dataclass(frozen=True)
class Lakehouse:
    """One for all tests, each of which leaves it sound, and its first run."""

    settings: Settings
    store: DemoStore
    url: str
    first: JobOutcome


@pytest.fixture(scope="module")
def shared() -> Iterator[Lakehouse]:
    parent = Path(tempfile.mkdtemp(prefix="lakehouse-test-"))
    parent.chmod(0o711)
    store = DemoStore.of(Person(seed=3), days=4, now=lambda: NOW)
    # Room for what the tests send: beside readings of the person's own sensor it would be near duplicates.
    for document in store.all_entries():
        if document["date"] > (NOW - timedelta(hours=6)).timestamp() * 1000:
            store.remove(document["_id"])
    options = DemoOptions(default_roles="denied", tokens={TOKEN: "readable"}, auth_fail_delay_seconds=0)
    # A warning stops nothing.
    send(store, 500, 1, 120, utcOffset=7200)
    with DemoServer(store, options) as server, pytest.MonkeyPatch.context() as patch:
        _point_to(patch, parent / "a lakehouse", server.url)
        settings = load_settings()
        prepare_environment(settings)
        yield Lakehouse(settings, store, server.url, execute_job("nightscout_pipeline"))
    shutil.rmtree(parent)


@pytest.fixture
def lakehouse(shared: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> Lakehouse:
    _point_to(monkeypatch, shared.settings.home, shared.url)
    prepare_environment(shared.settings)
    return shared


def _point_to(monkeypatch: pytest.MonkeyPatch, home: Path, url: str) -> None:
    for name, value in {
        "NIGHTSCOUT_URL": url,
        "NIGHTSCOUT_TOKEN": TOKEN,
        "NIGHTSCOUT_SITE": "anna",
        "DAGSTER_HOME": "",
        "OPENLINEAGE_DISABLED": "true",
        "LAKEHOUSE_HOME": str(home),
    }.items():
        monkeypatch.setenv(name, value)


def send(store: DemoStore, first: int, count: int, value: float, **more: Any) -> None:
    """Readings of a second sensor, newest first, by number."""
    for number in range(first, first + count):
        date = int((NOW - timedelta(minutes=5 * number + 1)).timestamp() * 1000)
        store.remove(f"{number:024x}")
        store.put({"_id": f"{number:024x}", "type": "sgv", "sgv": value, "date": date, "device": "second", **more})


def marts(settings: Settings) -> list[tuple[Any, ...]]:
    with serving_database(settings) as owner:
        query = "select reading_date, reading_count, avg_glucose_mg_dl from marts.mart_glucose_overview order by 1"
        return read_query(owner, query).rows


def assert_one_line(outcome: JobOutcome, *parts: str) -> None:
    line = next(error for error in outcome.errors if parts[0] in error)
    for part in (*parts, "(site anna)", "First: ", "Report: "):
        assert part in line, line
    assert "\n" not in line
    assert TOKEN not in line
    report = Path(line.rpartition("Report: ")[2])
    assert parts[0].replace("_", " ") in report.read_text()


def alert(outcome: JobOutcome, caplog: pytest.LogCaptureFixture) -> str:
    from nightscout_lakehouse.defs.alerts.failure import pipeline_failure_alert

    caplog.clear()
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(outcome.run_id)
        assert run is not None
        (failed,) = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
        event = failed.event_log_entry.dagster_event
        assert event is not None
        context = dg.build_run_status_sensor_context(
            "pipeline_failure_alert", dagster_event=event, dagster_instance=instance, dagster_run=run
        ).for_run_failure()
        with caplog.at_level("ERROR", logger="nightscout_lakehouse.alerts"):
            pipeline_failure_alert(context)
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("alerts")]
    return line


def tampered_after(monkeypatch: pytest.MonkeyPatch, settings: Settings, model: str, statement: str) -> None:
    """Have a table come out wrong, as by a fault of its model."""
    build = DbtProject.build

    def wrong(self: DbtProject, target: Target, select: Sequence[str], *, full_refresh: bool = False) -> DbtBuildResult:
        result = build(self, target, select, full_refresh=full_refresh)
        if model in select:
            with open_warehouse(settings) as warehouse:
                warehouse.execute(statement)
        return result

    monkeypatch.setattr(DbtProject, "build", wrong)


def test_a_warning_stops_nothing(lakehouse: Lakehouse) -> None:
    assert lakehouse.first.errors == []
    assert lakehouse.first.failed_checks == []
    raw, enriched, daily = kept_results(lakehouse.settings)
    assert "utc_offset_is_in_minutes" in {o["name"] for o in raw["outcomes"] if not o["is_met"]}
    assert enriched["rows"] > 1000
    assert daily["rows"] >= 4


def test_a_tick_without_news_imports_no_great_expectations_and_all_can_be_validated(lakehouse: Lakehouse) -> None:
    settings = lakehouse.settings
    tick = subprocess.run(
        [sys.executable, "-c", TICK_WITHOUT_NEWS], capture_output=True, text=True, check=False, timeout=200
    )
    assert tick.returncode == 0, tick.stderr
    assert tick.stdout.splitlines()[-1] == "[]"

    full = execute_job("nightscout_full_validation")
    assert full.errors == []
    assert {"raw_nightscout_entries", "processed_nightscout_entries"}.isdisjoint(full.metadata)
    raw, enriched, _ = kept_results(settings)
    assert raw["is_full"]
    assert enriched["is_full"]
    assert raw["rows"] >= enriched["rows"] > 1000
    miscounted = (
        "update ops.batches set documents = documents {} 1"
        " where collection = 'nightscout_entries' and site = 'anna' and batch = 1"
    )
    with open_warehouse(settings) as warehouse:
        warehouse.execute(miscounted.format("+"))
    wrong = execute_job("nightscout_full_validation")
    assert not wrong.success
    (error,) = wrong.errors
    assert "processed_nightscout_entries: the check batches_match_raw_files failed. anna, nightscout_entries" in error
    with open_warehouse(settings) as warehouse:
        warehouse.execute(miscounted.format("-"))


def test_what_is_critical_stops_and_the_marts_keep_the_last_good_state(
    lakehouse: Lakehouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings, store = lakehouse.settings, lakehouse.store
    good = marts(settings)
    assert len(good) >= 4

    # mmol/L stops before anything is typed.
    send(store, 0, 30, 7.8)
    stopped = execute_job("nightscout_pipeline")
    assert not stopped.success
    assert_one_line(stopped, "values_are_in_mg_dl", "30 of 30 rows do not hold", "glucose 7.8")
    assert "raw_nightscout_entries" in stopped.metadata
    assert not {"processed_nightscout_entries", "int_glucose_enriched", "mart_glucose_overview"} & set(stopped.metadata)
    assert marts(settings) == good
    line = alert(stopped, caplog)
    assert line.startswith(f"Run {stopped.run_id[:8]} of nightscout_pipeline failed. raw_nightscout_entries: the check")
    assert stopped.errors[0] in line
    assert "\n" not in line

    # Mended at the source: the new versions count, and what they replace is looked at no more. What is wrong now is the
    # model.
    send(store, 0, 30, 140)
    with monkeypatch.context() as patch:
        category = (
            "update intermediate.int_glucose_enriched set glucose_category = 'hypoglycemia' where device = 'second'"
        )
        tampered_after(patch, settings, "int_glucose_enriched", category)
        stopped = execute_job("nightscout_pipeline")
    assert not stopped.success
    assert_one_line(stopped, "category_follows_from_the_value")
    assert len(stopped.errors) == 1
    assert {"processed_nightscout_entries", "int_glucose_enriched", "validate_glucose_enriched"} <= set(
        stopped.metadata
    )
    assert stopped.metadata["validate_glucose_enriched"]["failed_critical"] == 1
    assert not {"fact_glucose_readings", "published_fact_glucose_readings"} & set(stopped.metadata)
    assert marts(settings) == good
    assert "category_follows_from_the_value" in alert(stopped, caplog)
    # A tick later the model is sound again, and what was wrong is still in view.
    assert not execute_job("nightscout_pipeline").success
    with open_warehouse(settings) as warehouse:
        warehouse.execute("insert into ops.changes (site, reading_date) values ('anna', null)")

    # Those are mended, and the daily figures come out wrong.
    with monkeypatch.context() as patch:
        share = "update curated.dim_glucose_date set time_high_pct = time_high_pct + 1"
        tampered_after(patch, settings, "dim_glucose_date", share)
        send(store, 50, 5, 150)
        stopped = execute_job("nightscout_pipeline")
    assert not stopped.success
    assert_one_line(stopped, "ranges_add_up_to_100", "dim_glucose_date: the check")
    assert len(stopped.errors) == 1
    assert {"int_glucose_enriched", "dim_glucose_date"} <= set(stopped.metadata)
    assert not {"published_dim_glucose_date", "mart_glucose_overview"} & set(stopped.metadata)
    assert marts(settings) == good
    with open_warehouse(settings) as warehouse:
        warehouse.execute("insert into ops.changes (site, reading_date) values ('anna', null)")
    assert execute_job("nightscout_pipeline").errors == []
    assert sum(row[1] for row in marts(settings)) == sum(row[1] for row in good) + 35
