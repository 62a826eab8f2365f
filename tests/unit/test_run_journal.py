"""The record of the runs: nothing that happened is missing, nothing of it is invented."""

import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nightscout_lakehouse.lib.ingestion import SiteIngestion
from nightscout_lakehouse.lib.processing import BatchAccounting, SiteProcessing
from nightscout_lakehouse.lib.redaction import Redactor
from nightscout_lakehouse.lib.run_journal import KEPT_DAYS, RunEnd, RunJournal, StepTime
from nightscout_lakehouse.lib.sources.file_drop import FileImport
from nightscout_lakehouse.lib.sources.landing import SourceReport

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
TOKEN = "reader-0123456789abcdef"
REDACTOR = Redactor.of([TOKEN])


@pytest.fixture
def journal(tmp_path: Path) -> RunJournal:
    return RunJournal(tmp_path / "runs.sqlite")


def begin(journal: RunJournal, run_id: str, now: datetime = NOW) -> list[str]:
    return journal.begin(run_id, "nightscout_pipeline", "schedule", stale_minutes=60, now=now)


def processing(site: str, stored: int, duplicates: int, quarantined: int) -> SiteProcessing:
    documents = stored + duplicates + quarantined
    batch = BatchAccounting("nightscout_entries", site, 1, documents, stored, duplicates, quarantined, 0)
    return SiteProcessing(site, "UTC", "default", (batch,), 1, 100, 1, 0.1)


def test_counts_of_all_collections_add_up_by_site(journal: RunJournal) -> None:
    begin(journal, "one")
    newest_ms = (NOW - timedelta(minutes=4)).timestamp() * 1000
    entries = SiteIngestion("anna", fetched=10, landed=7, unchanged=3, deletions=1, newest_ms=newest_ms, seconds=1.5)
    refused = SiteIngestion("ben", error=f"Site ben: ?token={TOKEN} refuses.\nmore", seconds=0.5)
    journal.was_read("one", [entries, refused], redactor=REDACTOR, now=NOW)
    treatments = replace(entries, collection="nightscout_treatments", deletions=0, error="HTTP 401")
    journal.was_read("one", [treatments], redactor=REDACTOR, now=NOW)
    journal.was_read("one", [replace(treatments, collection="nightscout_profiles")], redactor=REDACTOR, now=NOW)
    imported = FileImport("cara", "clarity.csv", "imported", report=SourceReport("clarity", 5, 4, 1))
    broken = FileImport("cara", "Jane Doe.csv", "failed", message="Jane Doe.csv is no file of a known kind.")
    journal.files_were_imported("one", [imported, broken], now=NOW)
    journal.was_processed("one", [processing("anna", 5, 1, 1), processing("cara", 4, 0, 0)], now=NOW)

    anna, ben, cara = journal.sites("one")
    assert (anna.documents_fetched, anna.documents_landed, anna.documents_unchanged, anna.deletions) == (30, 21, 9, 1)
    assert (anna.rows_stored, anna.rows_duplicate, anna.rows_quarantined) == (5, 1, 1)
    assert anna.is_read is True
    assert anna.error is None
    assert anna.unread_collections == "treatments, profiles"
    assert anna.newest_document_at == NOW - timedelta(minutes=4)
    assert anna.read_seconds == 4.5
    assert ben.is_read is False
    assert ben.error == "Site ben: ?token=*** refuses."
    assert ben.newest_document_at is None
    assert cara.is_read is None
    assert (cara.documents_fetched, cara.documents_landed, cara.rows_stored) == (5, 4, 4)
    # The name of a file may be a person's.
    assert "Jane" not in str(cara)


def test_a_run_that_ended_says_how_long_it_took_and_where_it_failed(journal: RunJournal) -> None:
    begin(journal, "one")
    steps = (StepTime("raw", is_success=True, seconds=2.0), StepTime("processed", is_success=False, seconds=3.5))
    end = RunEnd("failed", "processed", "\n  The disk is full. \nTraceback …", steps)
    run = journal.end("one", end, now=NOW + timedelta(seconds=6))
    assert run.status == "failed"
    assert run.ended_at == NOW + timedelta(seconds=6)
    assert run.duration_seconds == 6
    assert run.failed_step == run.slowest_step == "processed"
    assert run.slowest_step_seconds == 3.5
    assert run.failure_reason == "The disk is full."
    assert journal.steps("one") == list(steps)
    assert journal.runs() == [run]


def test_a_run_that_left_without_a_word_is_found_by_the_next(journal: RunJournal) -> None:
    begin(journal, "killed")
    journal.was_read("killed", [SiteIngestion("anna", fetched=3)], redactor=REDACTOR, now=NOW + timedelta(seconds=9))
    journal.mark_delivered(["killed"])
    assert begin(journal, "next", NOW + timedelta(minutes=30)) == ["killed"]
    next_run, killed = journal.runs()
    assert next_run.status == "running"
    assert killed.status == "killed"
    assert killed.failure_reason == "Killed, or its machine went down: last heard of at 2026-11-25T12:00:09Z."
    # When it ended nobody knows.
    assert killed.ended_at is killed.duration_seconds is None
    assert [run.run_id for run in journal.undelivered()] == ["killed", "next"]
    # Once found, it is not found again.
    journal.end("next", RunEnd("success"), now=NOW + timedelta(minutes=31))
    assert begin(journal, "third", NOW + timedelta(minutes=60)) == []


def test_a_run_that_got_no_lock_is_on_record_and_disturbs_nobody(journal: RunJournal) -> None:
    begin(journal, "writing")
    journal.refuse(
        *("waiting", "nightscout_pipeline", "command", "Another run is writing this lake."),
        stale_minutes=60,
        started_at=NOW,
        now=NOW + timedelta(minutes=15),
    )
    statuses = {run.run_id: run.status for run in journal.runs()}
    assert statuses == {"writing": "running", "waiting": "failed"}
    (waiting,) = journal.runs(["waiting"])
    assert waiting.duration_seconds == 900


def test_totals_go_on_when_old_runs_are_forgotten(journal: RunJournal) -> None:
    for number in range(3):
        moment = NOW + timedelta(days=20 * number)
        begin(journal, str(number), moment)
        report = SiteIngestion("anna", fetched=10, landed=4, unchanged=6)
        journal.was_read(str(number), [report], redactor=REDACTOR, now=moment)
        journal.end(str(number), RunEnd("success"), now=moment)
    assert [run.run_id for run in journal.runs()] == ["2", "1"]
    assert KEPT_DAYS < 40
    assert journal.sites("0") == []
    assert journal.query("select * from run_totals") == [
        {"job": "nightscout_pipeline", "status": "success", "runs": 3},
    ]
    fetched = journal.query("select documents from site_totals where site = 'anna' and what = 'documents_fetched'")
    assert fetched == [{"documents": 30}]


def test_what_was_delivered_is_delivered_again_once_it_has_changed(journal: RunJournal) -> None:
    begin(journal, "one")
    journal.mark_delivered(["one"])
    assert journal.undelivered() == []
    journal.end("one", RunEnd("success"), now=NOW)
    assert [run.status for run in journal.undelivered()] == ["success"]
    journal.mark_delivered(["one"])
    journal.deliver_again()
    assert len(journal.undelivered()) == 1


def test_nobody_else_reads_the_journal(journal: RunJournal, tmp_path: Path) -> None:
    begin(journal, "one")
    assert stat.S_IMODE((tmp_path / "runs.sqlite").stat().st_mode) == 0o600
