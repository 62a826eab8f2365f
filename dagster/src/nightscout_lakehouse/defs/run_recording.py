"""How a Dagster run is put on record: who started it, how it ended, where and why it failed."""

import dagster as dg

from nightscout_lakehouse.defs.alerts.failure import check_error, failed_by_check, step_errors
from nightscout_lakehouse.lib.redaction import Redactor
from nightscout_lakehouse.lib.run_journal import RunEnd, StepTime

_STARTED_BY = {
    "lakehouse/command": "command",
    "dagster/schedule_name": "schedule",
    "dagster/sensor_name": "sensor",
    "dagster/backfill": "backfill",
}
_STEP_EVENTS = {
    dg.DagsterEventType.STEP_START,
    dg.DagsterEventType.STEP_SUCCESS,
    dg.DagsterEventType.STEP_FAILURE,
    dg.DagsterEventType.STEP_SKIPPED,
}


def launched_by(run: dg.DagsterRun) -> str:
    """Who started a run: a schedule, a command, a sensor, a backfill or somebody in the UI."""
    return next((name for tag, name in _STARTED_BY.items() if tag in run.tags), "ui")


def run_end(instance: dg.DagsterInstance, run_id: str, redactor: Redactor) -> RunEnd:
    """How a run whose steps are over ended, as its events tell.

    Args:
        instance: Where the events are.
        run_id: The run.
        redactor: Takes the secrets out of the reason.
    """
    started = dict[str, float]()
    steps, failures = list[StepTime](), list[dg.DagsterEvent]()
    for entry in instance.all_logs(run_id, of_type=_STEP_EVENTS):
        event = entry.dagster_event
        if event is None or event.step_key is None:
            continue
        if event.event_type is dg.DagsterEventType.STEP_START:
            started[event.step_key] = entry.timestamp
        elif event.event_type is not dg.DagsterEventType.STEP_SKIPPED:
            began = started.pop(event.step_key, entry.timestamp)
            steps.append(StepTime(event.step_key, event.is_step_success, max(0.0, entry.timestamp - began)))
            failures += [event] if event.is_step_failure else []
    if failures:
        failed = failures[0]
        if _is_interrupt(failed):
            return RunEnd("canceled", failed.step_key, "Somebody stopped it.", tuple(steps))
        return RunEnd("failed", failed.step_key, redactor.clean(_reason(instance, run_id, failed)), tuple(steps))
    if started:
        step = next(iter(started))
        return RunEnd("canceled", step, "It was stopped in the middle of this step.", tuple(steps))
    if not steps:
        return RunEnd("failed", None, "It ended before its first step.")
    return RunEnd("success", steps=tuple(steps))


def _is_interrupt(event: dg.DagsterEvent) -> bool:
    error = event.step_failure_data.error
    return error is not None and error.cls_name in {
        "DagsterExecutionInterruptedError",
        "KeyboardInterrupt",
        "SystemExit",
    }


def _reason(instance: dg.DagsterInstance, run_id: str, failed: dg.DagsterEvent) -> str:
    if failed_by_check(failed):
        entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        lines = [check_error(entry.dagster_event) for entry in entries if entry.dagster_event is not None]
        return next((line for line in lines if line), step_errors(failed))
    # Its name is in a column of its own.
    return step_errors(failed).removeprefix(f"{failed.step_key}: ")
