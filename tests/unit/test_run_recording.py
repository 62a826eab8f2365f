"""How a Dagster run goes on record: success, failure, a stop, and what never came to the lakehouse."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nightscout_lakehouse.defs.run_recording import launched_by, missed_runs, run_end
from nightscout_lakehouse.lib.redaction import Redactor
from nightscout_lakehouse.lib.run_journal import RunEnd, RunJournal

TOKEN = "reader-0123456789abcdef"
REDACTOR = Redactor.of([TOKEN])


@dg.asset
def first() -> None:
    """Succeeds."""


@dg.asset(deps=[first])
def second(context: dg.AssetExecutionContext) -> None:
    """Does as the run's tag says."""
    match context.run.tags.get("how"):
        case "failure":
            raise dg.Failure(f"The server refuses ?token={TOKEN}.\nMore of it.", allow_retries=False)
        case "error":
            raise ValueError("inner") from OSError(f"no space for {TOKEN}")
        case "stop":
            raise KeyboardInterrupt


@dg.asset_check(asset=first, blocking=True)
def is_fine(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Fails where the run's tag says so."""
    passed = context.run.tags.get("how") != "check"
    return dg.AssetCheckResult(passed=passed, description="3 readings are above 600.", metadata={"sites": ["anna"]})


@dg.resource
def never_there(_: dg.InitResourceContext) -> None:
    """A resource that cannot be opened."""
    raise RuntimeError(f"A setting is malformed: {TOKEN}")


def ran(how: str) -> tuple[dg.DagsterInstance, str, RunEnd]:
    instance = dg.DagsterInstance.ephemeral()
    with suppress(KeyboardInterrupt):
        dg.materialize([first, second, is_fine], instance=instance, raise_on_error=False, tags={"how": how})
    (run,) = instance.get_runs()
    return instance, run.run_id, run_end(instance, run.run_id, REDACTOR)


def test_a_success_has_its_steps() -> None:
    _, _, end = ran("well")
    assert (end.status, end.failed_step, end.reason) == ("success", None, None)
    assert {step.step for step in end.steps} == {"first", "first_is_fine", "second"}
    assert all(step.is_success and 0 <= step.seconds < 10 for step in end.steps)


@pytest.mark.parametrize(
    ("how", "step", "reason"),
    [
        ("failure", "second", "The server refuses ?token=***"),
        ("error", "second", "OSError: no space for ***"),
        ("check", "first_is_fine", "first: the check is_fine failed (site anna). 3 readings are above 600."),
    ],
)
def test_a_failure_says_where_and_why(how: str, step: str, reason: str) -> None:
    instance, run_id, end = ran(how)
    assert (end.status, end.failed_step) == ("failed", step)
    assert (end.reason or "").splitlines()[0] == reason
    # Dagster knows of it, and so does the record: it was not missed.
    assert missed_runs(instance, {run_id}, REDACTOR, 60, datetime.now(UTC)) == []


def test_a_run_that_was_stopped_is_no_failure() -> None:
    _, _, end = ran("stop")
    assert (end.status, end.failed_step) == ("canceled", "second")


def test_a_run_that_never_came_to_the_lakehouse_is_found_by_the_next(tmp_path: Path) -> None:
    @dg.asset(required_resource_keys={"lakehouse"})
    def third() -> None:
        """Never runs."""

    instance = dg.DagsterInstance.ephemeral()
    result = dg.materialize(
        [third],
        instance=instance,
        resources={"lakehouse": never_there},
        raise_on_error=False,
        tags={"dagster/schedule_name": "nightscout_every_30_min"},
    )
    assert not result.success
    (run,) = missed_runs(instance, set(), REDACTOR, 60, datetime.now(UTC))
    assert (run.run_id, run.status, run.launched_by) == (result.run_id, "failed", "schedule")
    assert run.duration_seconds is not None
    assert "A setting is malformed: ***" in (run.failure_reason or "")

    journal = RunJournal(tmp_path / "runs.sqlite")
    for _ in range(2):
        journal.add_missed([run], now=datetime.now(UTC))
    (kept,) = journal.runs()
    assert kept == run
    assert journal.query("select runs from run_totals") == [{"runs": 1}]


@pytest.mark.parametrize(
    ("tags", "by"),
    [
        ({"lakehouse/command": "run"}, "command"),
        ({"dagster/schedule_name": "x"}, "schedule"),
        ({"dagster/sensor_name": "x"}, "sensor"),
        ({"dagster/backfill": "x"}, "backfill"),
        ({}, "ui"),
    ],
)
def test_who_started_a_run(tags: dict[str, Any], by: str) -> None:
    assert launched_by(dg.DagsterRun(job_name="any", tags=tags)) == by
