"""The metrics file: what Prometheus reads of the runs, whole at any time."""

import re
import stat
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from nightscout_lakehouse.lib.ingestion import SiteIngestion
from nightscout_lakehouse.lib.redaction import Redactor
from nightscout_lakehouse.lib.run_journal import RunEnd, RunJournal, StepTime
from nightscout_lakehouse.lib.run_metrics import metrics_text, write_metrics
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
JOB = "nightscout_pipeline"


@pytest.fixture
def journal(settings: Settings) -> RunJournal:
    settings.home.mkdir()
    kept = RunJournal(settings.journal_path)
    ends = [RunEnd("success"), RunEnd("success"), RunEnd("failed", "raw", "Why.", (StepTime("raw", False, 2.5),))]
    for number, end in enumerate(ends):
        began, run_id = NOW + timedelta(minutes=30 * number), f"run-{number}"
        kept.begin(run_id, JOB, "schedule", stale_minutes=60, now=began)
        reports = [
            SiteIngestion("anna", fetched=10, landed=1, newest_ms=(began - timedelta(minutes=4)).timestamp() * 1000),
            SiteIngestion('b"e\\n', error="HTTP 401" if number else None),
        ]
        kept.was_read(run_id, reports, redactor=Redactor(), now=began)
        kept.end(run_id, end, now=began + timedelta(seconds=20))
    # Under way: it counts once it has ended.
    kept.begin("run-3", JOB, "schedule", stale_minutes=60, now=NOW + timedelta(minutes=90))
    return kept


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_figure_follows_from_the_journal(journal: RunJournal) -> None:
    found = samples(metrics_text(journal))
    assert found.pop(("lakehouse_info", "0.1.0")) == 1
    documents = {key: found.pop(key) for key in list(found) if key[0] == "lakehouse_site_documents_total"}
    assert documents["lakehouse_site_documents_total", "anna", "documents_fetched"] == 30
    assert documents["lakehouse_site_documents_total", "anna", "documents_landed"] == 3
    assert found == {
        ("lakehouse_runs_total", JOB, "success"): 2,
        ("lakehouse_runs_total", JOB, "failed"): 1,
        ("lakehouse_last_run_start_timestamp_seconds", JOB): (NOW + timedelta(minutes=60)).timestamp(),
        ("lakehouse_last_run_success", JOB): 0,
        ("lakehouse_last_run_duration_seconds", JOB): 20,
        ("lakehouse_last_run_step_duration_seconds", "raw"): 2.5,
        ("lakehouse_last_success_timestamp_seconds", JOB): (NOW + timedelta(minutes=30, seconds=20)).timestamp(),
        ("lakehouse_runs_postgres_does_not_know",): 4,
        ("lakehouse_site_last_read_success", "anna"): 1,
        ("lakehouse_site_last_read_success", 'b"e\\n'): 0,
        ("lakehouse_site_last_read_timestamp_seconds", "anna"): (NOW + timedelta(minutes=60)).timestamp(),
        ("lakehouse_site_last_read_timestamp_seconds", 'b"e\\n'): NOW.timestamp(),
        ("lakehouse_site_newest_entry_timestamp_seconds", "anna"): (NOW + timedelta(minutes=56)).timestamp(),
    }


def test_the_file_is_replaced_whole_and_others_may_read_it(journal: RunJournal, settings: Settings) -> None:
    write_metrics(settings, journal)
    first = settings.metrics_path.stat()
    write_metrics(settings, journal)
    second = settings.metrics_path.stat()
    # Another file in its place, never one that is being written.
    assert first.st_ino != second.st_ino
    assert [path.name for path in settings.metrics_path.parent.iterdir()] == ["lakehouse.prom"]
    assert settings.metrics_path.read_text() == metrics_text(journal)
    # node_exporter is another user.
    assert stat.S_IMODE(second.st_mode) & 0o044 == 0o044


def test_the_rules_of_the_docs_ask_for_metrics_that_exist(journal: RunJournal) -> None:
    rules = yaml.safe_load((REPOSITORY_ROOT / "docs" / "reference" / "prometheus-rules.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    known = samples(metrics_text(journal))
    names = {key[0] for key in known}
    for expression in expressions:
        asked = set(re.findall(r"lakehouse_[a-z_]+", expression))
        assert asked
        assert asked <= names, expression
        for job in re.findall(r'job="([^"]+)"', expression):
            assert job == JOB
        for what in re.findall(r'what="([^"]+)"', expression):
            assert ("lakehouse_site_documents_total", "anna", what) in known, what
