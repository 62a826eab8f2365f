"""What the marts say of the runs: those that failed before anything was published, and those that were killed, too."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import SiteIngestion
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.processing import BatchAccounting, SiteProcessing
from nightscout_lakehouse.lib.redaction import Redactor
from nightscout_lakehouse.lib.run_delivery import deliver_runs
from nightscout_lakehouse.lib.run_journal import RunEnd, RunJournal
from nightscout_lakehouse.lib.serving import read_query
from nightscout_lakehouse.lib.settings import Settings

pytestmark = pytest.mark.postgres

NOW = datetime.now(UTC).replace(microsecond=0)
JOB = "nightscout_pipeline"
MARTS = ["mart_pipeline_runs", "mart_pipeline_health"]


@pytest.fixture(autouse=True)
def _now_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not when the tests were collected: the views go by Postgres's clock.
    monkeypatch.setattr(sys.modules[__name__], "NOW", datetime.now(UTC).replace(microsecond=0))


@pytest.fixture
def journal(settings: Settings) -> RunJournal:
    settings.home.mkdir()
    return RunJournal(settings.journal_path)


@pytest.fixture
def marts(settings: Settings, serving: PostgresConnection) -> PostgresConnection:
    """A serving database with the two marts, and four sites of which ben's newest reading is three hours old."""
    with serving.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("create table curated.dim_site (site text primary key, last_reading_timestamp timestamptz)")
        cursor.execute(
            "insert into curated.dim_site values ('anna', %s), ('ben', %s), ('files', %s), ('new', null)",
            (NOW - timedelta(minutes=4), NOW - timedelta(hours=3), NOW - timedelta(days=30)),
        )
    DbtProject(settings, serving).build("postgres", MARTS)
    return serving


def rows(connection: PostgresConnection, query: str) -> list[dict[str, Any]]:
    result = read_query(connection, query)
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def health(connection: PostgresConnection) -> dict[str, dict[str, Any]]:
    return {row["site"]: row for row in rows(connection, "select * from mart_pipeline_health")}


def tick(
    journal: RunJournal,
    ago: timedelta,
    end: RunEnd | None,
    *,
    reads: dict[str, str | None] | None = None,
    job: str = JOB,
) -> str:
    """Put a tick on record that took 20 seconds; `end` None leaves it as it is when it is killed."""
    began = NOW - ago
    run_id = f"{job} {began:%d %H:%M}"
    journal.begin(run_id, job, "schedule", stale_minutes=60, now=began)
    for site, error in (reads or {}).items():
        report = SiteIngestion(
            *(site, "nightscout_entries"),
            fetched=0 if error else 600,
            landed=0 if error else 6,
            unchanged=0 if error else 594,
            newest_ms=None if error else (began - timedelta(minutes=3)).timestamp() * 1000,
            error=error,
        )
        journal.was_read(run_id, [report], redactor=Redactor(), now=began)
    if end and end.status == "success":
        for site in [*(reads or {}), "files"]:
            batch = BatchAccounting("nightscout_entries", site, 1, 6, 4, 1, 1, 0)
            processed = SiteProcessing(site, "UTC", "default", (batch,), 1, 100, 1, 0.1)
            journal.was_processed(run_id, [processed], now=began)
    if end:
        journal.end(run_id, end, now=began + timedelta(seconds=20))
    return run_id


def test_health_of_every_site_over_good_and_bad_runs(
    journal: RunJournal, marts: PostgresConnection, settings: Settings
) -> None:
    before = health(marts)
    assert set(before) == {"anna", "ben", "files", "new"}
    assert before["anna"]["last_run_status"] is None
    assert before["anna"]["runs_24h"] == 0
    assert before["new"]["is_stale"] is True

    good = RunEnd("success")
    everyone = {"anna": None, "ben": None}
    tick(journal, timedelta(days=3), good, reads=everyone)
    tick(journal, timedelta(hours=20), good, reads=everyone)
    # Before any site was read: the warehouse was locked, a setting was malformed.
    tick(journal, timedelta(hours=10), RunEnd("failed", "raw_nightscout_entries", "The warehouse is in use."))
    tick(journal, timedelta(hours=5), None, reads=everyone)
    tick(journal, timedelta(hours=2), RunEnd("canceled", "processed_nightscout_entries", "Somebody stopped it."))
    tick(
        journal, timedelta(minutes=50), good, reads={"anna": None, "ben": "Site ben: HTTP 401.", "ghost": "No server."}
    )
    last = tick(journal, timedelta(minutes=20), good, reads={"anna": None, "ben": "HTTP 401.", "ghost": "No server."})
    # Other jobs are no ticks.
    tick(journal, timedelta(minutes=5), RunEnd("failed", "check", "Not of a tick."), job="nightscout_full_validation")
    assert deliver_runs(journal, marts, now=NOW) == 8

    found = health(marts)
    assert set(found) == {"anna", "ben", "files", "new", "ghost"}
    anna, ben, files, ghost = (found[site] for site in ("anna", "ben", "files", "ghost"))
    for row in found.values():
        assert row["last_run_id"] == last
        assert row["last_run_started_at"] == NOW - timedelta(minutes=20)
        assert row["last_run_duration_seconds"] == 20
        assert row["runs_24h"] == 6
        assert row["is_running"] is False

    assert anna["last_run_status"] == "success"
    assert anna["failed_runs_24h"] == 2
    assert anna["reading_age_minutes"] == pytest.approx(4, abs=1)
    assert anna["is_stale"] is False
    assert anna["newest_document_timestamp"] == NOW - timedelta(minutes=23)
    assert anna["last_read_timestamp"] == NOW - timedelta(minutes=20)
    assert anna["last_successful_run"] == NOW - timedelta(minutes=20) + timedelta(seconds=20)
    assert anna["minutes_since_success"] == pytest.approx(20, abs=1)
    assert anna["median_duration_seconds_24h"] == 20
    assert anna["documents_fetched_24h"] == 4 * 600
    assert anna["documents_landed_24h"] == 4 * 6
    assert anna["rows_stored_24h"] == 3 * 4
    assert anna["rows_quarantined_24h"] == 3
    assert anna["last_failure_timestamp"] == NOW - timedelta(hours=5)
    assert anna["last_failure_step"] is None
    assert anna["last_failure_reason"].startswith("Killed, or its machine went down")

    # The runs went on without ben: his data did not.
    assert ben["last_run_status"] == "failed"
    assert ben["failed_runs_24h"] == 4
    assert ben["is_stale"] is True
    assert ben["last_successful_run"] == NOW - timedelta(hours=20) + timedelta(seconds=20)
    assert ben["last_read_timestamp"] == NOW - timedelta(hours=5)
    assert ben["last_failure_reason"] == "HTTP 401."
    assert ben["last_failure_step"] is None

    assert files["last_run_status"] == "success"
    assert files["last_read_timestamp"] is None
    assert files["last_successful_run"] == anna["last_successful_run"]

    # A site that could never be read has no row in any other mart.
    assert ghost["last_reading_timestamp"] is None
    assert ghost["is_stale"] is True
    assert ghost["last_successful_run"] is None
    assert ghost["last_failure_reason"] == "No server."

    runs = rows(marts, "select * from mart_pipeline_runs order by started_at")
    assert [row["status"] for row in runs] == [
        *("success", "success", "failed", "killed", "canceled", "success", "success", "failed"),
    ]
    assert [row["unread_site_count"] for row in runs] == [0, 0, 0, 0, 0, 2, 2, 0]
    assert runs[2]["failure_reason"] == "The warehouse is in use."
    assert runs[3]["ended_at"] is None
    assert runs[-2]["documents_fetched"] == 600
    assert runs[-2]["rows_stored"] == 4 * 4

    # What is known is not sent again, what has changed is, and a database that knows nothing is told everything.
    assert deliver_runs(journal, marts, now=NOW) == 0
    tick(journal, timedelta(minutes=1), None)
    assert deliver_runs(journal, marts, now=NOW) == 1
    assert health(marts)["anna"]["is_running"] is True
    assert health(marts)["anna"]["last_run_id"] == last
    with marts.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("truncate ops.pipeline_runs cascade")
    assert deliver_runs(journal, marts, now=NOW) == 9
    # A month of many sites is never gone through whole: with a copy of it, 500 sites took minutes.
    with marts.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("explain select * from marts.mart_pipeline_health")
        assert "CTE Scan on run_sites" not in " ".join(row[0] for row in cursor.fetchall())
    # What the marts hold passes their tests, and a second build changes nothing.
    DbtProject(settings, marts).build("postgres", MARTS)
    assert health(marts)["ben"]["failed_runs_24h"] == 4


def test_a_run_older_than_a_month_is_gone(journal: RunJournal, serving: PostgresConnection) -> None:
    tick(journal, timedelta(days=30), RunEnd("success"), reads={"anna": None})
    assert deliver_runs(journal, serving, now=NOW) == 1
    tick(journal, timedelta(), RunEnd("success"))
    assert deliver_runs(journal, serving, now=NOW + timedelta(days=10)) == 1
    with serving.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("select count(*) from ops.pipeline_runs")
        assert cursor.fetchone() == (1,)
        cursor.execute("select count(*) from ops.pipeline_run_sites where site = 'anna'")
        assert cursor.fetchone() == (0,)


def test_a_failed_delivery_loses_nothing(journal: RunJournal, serving: PostgresConnection, tmp_path: Path) -> None:
    tick(journal, timedelta(hours=1), RunEnd("success"), reads={"anna": None})
    with serving.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("alter table ops.pipeline_run_sites add constraint broken check (site <> 'anna')")
    with pytest.raises(Exception, match="broken"):
        deliver_runs(journal, serving, now=NOW)
    with serving.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("select count(*) from ops.pipeline_runs")
        assert cursor.fetchone() == (0,)
        cursor.execute("alter table ops.pipeline_run_sites drop constraint broken")
    assert deliver_runs(journal, serving, now=NOW) == 1
