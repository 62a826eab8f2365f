"""Dagster's event log with its files kept open: it holds what Dagster's own would, and lets go of what is deleted."""

import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.events.log import EventLogEntry

from nightscout_lakehouse.event_log import OpenSqliteEventLogStorage
from nightscout_lakehouse.instance import prepare_environment
from nightscout_lakehouse.lib.settings import Settings

COUNTED = dg.AssetKey("counted")


@dg.asset(check_specs=[dg.AssetCheckSpec("is_positive", asset="counted")])
def counted() -> dg.MaterializeResult:
    return dg.MaterializeResult(
        metadata={"rows": 3}, check_results=[dg.AssetCheckResult(passed=True, check_name="is_positive")]
    )


@pytest.fixture
def instance(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", "")
    prepare_environment(settings)
    with dg.DagsterInstance.get() as opened:
        yield opened


def run(instance: dg.DagsterInstance) -> str:
    result = dg.materialize([counted], instance=instance)
    assert result.success
    return result.run_id


def storage_of(instance: dg.DagsterInstance) -> OpenSqliteEventLogStorage:
    assert isinstance(instance.event_log_storage, OpenSqliteEventLogStorage)
    return instance.event_log_storage


def told(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    events = [record.dagster_event for record in instance.all_logs(run_id)]
    return [event.event_type_value for event in events if event is not None]


def open_files(settings: Settings) -> set[str]:
    return {Path(each.path).name for each in psutil.Process().open_files() if str(settings.home) in each.path}


def test_it_holds_what_dagsters_own_does(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as plain:
        assert not isinstance(plain.event_log_storage, OpenSqliteEventLogStorage)
        expected, run_id = told(plain, run(plain)), run(instance)
    assert told(instance, run_id) == expected
    latest = instance.get_latest_materialization_event(COUNTED)
    assert latest is not None
    assert latest.run_id == run_id
    (check,) = storage_of(instance).get_asset_check_execution_history(dg.AssetCheckKey(COUNTED, "is_positive"), limit=5)
    assert check.run_id == run_id


def test_another_process_reads_what_is_written_while_the_files_are_open(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    run_id = run(instance)
    assert f"{run_id}.db" in open_files(settings)
    # An instance of its own has connections of its own, as another process would.
    with dg.DagsterInstance.get() as other:
        before = len(other.all_logs(run_id))
        storage_of(instance).store_event(instance.all_logs(run_id)[0])
        assert len(other.all_logs(run_id)) == before + 1 > 5


def test_who_watches_a_run_is_told_of_each_event(instance: dg.DagsterInstance) -> None:
    run_id = run(instance)
    written = instance.all_logs(run_id)[0]
    seen: list[EventLogEntry] = []
    is_told = threading.Event()

    def look(entry: EventLogEntry, cursor: str) -> None:
        seen.append(entry)
        is_told.set()

    with dg.DagsterInstance.get() as other:
        watching = storage_of(other)
        watching.watch(run_id, watching.get_records_for_run(run_id).cursor, look)
        storage_of(instance).store_event(written)
        assert is_told.wait(20)
        watching.end_watch(run_id, look)
    assert [entry.run_id for entry in seen] == [run_id]


def test_few_files_stay_open_and_none_after_the_end(instance: dg.DagsterInstance, settings: Settings) -> None:
    runs = [run(instance) for _ in range(6)]
    assert all(len(told(instance, each)) > 5 for each in runs)
    assert 2 <= len([name for name in open_files(settings) if name.endswith(".db") and name != "runs.db"]) <= 4
    storage_of(instance).dispose()
    assert [name for name in open_files(settings) if name.endswith(".db") and name != "runs.db"] == []
    # Whoever asks after the end gets an answer all the same.
    assert len(told(instance, runs[0])) > 5


def test_a_deleted_run_leaves_no_file(instance: dg.DagsterInstance, settings: Settings) -> None:
    kept, deleted = run(instance), run(instance)
    instance.delete_run(deleted)
    assert [path.name for path in settings.dagster_home.rglob(f"*{deleted}*.db*")] == []
    assert told(instance, deleted) == []
    assert len(told(instance, kept)) > 5


def test_a_run_that_is_deleted_while_it_runs_can_go_on(instance: dg.DagsterInstance, settings: Settings) -> None:
    deleted = run(instance)
    event = instance.all_logs(deleted)[0]
    with dg.DagsterInstance.get() as other:
        assert len(other.all_logs(deleted)) > 5
        other.delete_run(deleted)
        assert instance.all_logs(deleted) == []
        storage_of(instance).store_event(event)
        assert len(other.all_logs(deleted)) == len(instance.all_logs(deleted)) == 1
