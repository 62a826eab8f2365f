"""Old runs leave Dagster's history with all that they wrote; what is known of assets and checks stays."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG
from dagster._core.test_utils import create_run_for_test
from sqlalchemy import func, select

from nightscout_lakehouse.defs import run_history
from nightscout_lakehouse.defs.resources import LakehouseResource
from nightscout_lakehouse.defs.run_history import forget_old_runs
from nightscout_lakehouse.instance import prepare_environment
from nightscout_lakehouse.lib.settings import Settings

COUNTED = dg.AssetKey("counted")
CHECK = dg.AssetCheckKey(COUNTED, "is_positive")


@dg.asset(check_specs=[dg.AssetCheckSpec("is_positive", asset="counted")])
def counted() -> dg.MaterializeResult:
    sys.stdout.write("counting")
    return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True, check_name="is_positive")])


@dg.asset
def failing() -> None:
    raise ValueError("no")


@pytest.fixture
def instance(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", "")
    prepare_environment(settings)
    with dg.DagsterInstance.get() as opened:
        yield opened


def run(instance: dg.DagsterInstance, asset: dg.AssetsDefinition = counted, job: str = "nightscout_pipeline") -> str:
    jobs = [dg.define_asset_job(job)]
    definitions = dg.Definitions(assets=[asset], jobs=jobs, resources={"lakehouse": LakehouseResource()})
    return definitions.resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False).run_id


def rows(instance: dg.DagsterInstance) -> tuple[int, int]:
    """Events in the index of all runs, and results of checks."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as connection:
        events, checks = (
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (SqlEventLogStorageTable, AssetCheckExecutionsTable)
        )
    return events, checks


def test_what_is_old_goes_with_all_its_files_and_what_is_known_stays(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    now = datetime.now(UTC)
    ran = [run(instance) for _ in range(3)]
    assert forget_old_runs(instance, 3, now + timedelta(days=2.9)) == 0
    assert len(instance.get_runs()) == 3
    assert [path for path in settings.dagster_home.rglob("*") if ran[0] in str(path)] != []

    assert forget_old_runs(instance, 3, now + timedelta(days=3.1)) == 3
    assert instance.get_runs() == []
    assert [path for path in settings.dagster_home.rglob("*") if any(each in str(path) for each in ran)] == []
    assert rows(instance) == (0, 1)
    latest = instance.get_latest_materialization_event(COUNTED)
    assert latest is not None
    assert latest.run_id == ran[-1]
    (result,) = instance.event_log_storage.get_asset_check_execution_history(CHECK, limit=5)
    assert result.run_id == ran[-1]


def test_the_runs_of_others_in_the_same_dagster_stay(instance: dg.DagsterInstance) -> None:
    label, later = "__repository__@nightscout_lakehouse.definitions", datetime.now(UTC) + timedelta(days=9)
    done = dg.DagsterRunStatus.SUCCESS
    of_others = [
        run(instance, job="their_pipeline"),
        create_run_for_test(instance, job_name="__ASSET_JOB", status=done).run_id,
        create_run_for_test(instance, job_name="__ASSET_JOB", status=done, tags={REPOSITORY_LABEL_TAG: "x"}).run_id,
    ]
    by_hand = create_run_for_test(instance, job_name="__ASSET_JOB", status=done, tags={REPOSITORY_LABEL_TAG: label})
    run(instance)
    # A command does not know what the UI calls us.
    assert forget_old_runs(instance, 3, later) == 1
    assert by_hand.run_id in {each.run_id for each in instance.get_runs()}
    assert forget_old_runs(instance, 3, later, label) == 1
    assert {each.run_id for each in instance.get_runs()} == set(of_others)


def test_our_jobs_are_those_of_the_definitions() -> None:
    from nightscout_lakehouse.definitions import defs

    assert {job.name for job in defs.jobs or ()} == set(run_history.JOBS)


def test_a_failed_run_stays_ten_times_as_long(instance: dg.DagsterInstance) -> None:
    now, failed = datetime.now(UTC), run(instance, failing)
    assert forget_old_runs(instance, 3, now + timedelta(days=29)) == 0
    assert [each.run_id for each in instance.get_runs()] == [failed]
    assert forget_old_runs(instance, 3, now + timedelta(days=31)) == 1
    assert instance.get_runs() == []


def test_a_long_history_goes_bit_by_bit_the_oldest_first(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_history, "_MOST_AT_ONCE", 2)
    ran, later = [run(instance) for _ in range(3)], datetime.now(UTC) + timedelta(days=9)
    assert forget_old_runs(instance, 3, later) == 2
    assert [each.run_id for each in instance.get_runs()] == ran[2:]
    assert forget_old_runs(instance, 3, later) == 1


def test_every_run_of_the_lakehouse_does_so(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    @dg.asset
    def looked(lakehouse: LakehouseResource) -> None:
        assert lakehouse.settings.run_history_days == 0.5

    monkeypatch.setenv("LAKEHOUSE_RUN_HISTORY_DAYS", "0.5")
    asked: list[float] = []

    def forget(instance: dg.DagsterInstance, keep_days: float, now: datetime, repository: str) -> int:
        asked.append(keep_days)
        return forget_old_runs(instance, keep_days, now + timedelta(days=1), repository)

    monkeypatch.setattr("nightscout_lakehouse.defs.resources.forget_old_runs", forget)
    run(instance)
    looking = run(instance, looked)
    assert asked == [0.5]
    # Not the run itself, which has not ended.
    (left,) = instance.get_runs()
    assert (left.run_id, left.status) == (looking, dg.DagsterRunStatus.SUCCESS)


def test_a_history_that_cannot_be_written_does_not_fail_the_run(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @dg.asset
    def looked(lakehouse: LakehouseResource) -> None:
        assert lakehouse.settings

    def refuse(run_id: str) -> None:
        raise OSError(28, "No space left on device")

    run(instance)
    monkeypatch.setenv("LAKEHOUSE_RUN_HISTORY_DAYS", "0.1")
    monkeypatch.setattr(run_history, "timedelta", lambda days: timedelta(days=-days))
    monkeypatch.setattr(type(instance), "delete_run", lambda self, run_id: refuse(run_id))
    looking = instance.get_run_by_id(run(instance, looked))
    assert looking is not None
    assert looking.is_success
    assert "An old run could not be deleted from Dagster's history: OSError" in caplog.text
