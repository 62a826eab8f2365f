"""Tells someone when a run fails."""

import logging
from typing import Any

import dagster as dg

from nightscout_lakehouse.lib.alerts import failure_message

logger = logging.getLogger("nightscout_lakehouse.alerts")


@dg.run_failure_sensor(
    name="pipeline_failure_alert",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes one line to the log for every failed run: job, step, first line of the error, run id.",
)
def pipeline_failure_alert(context: dg.RunFailureSensorContext) -> None:
    """Say which run failed, where and why."""
    message = failure_message(
        job=context.dagster_run.job_name,
        run_id=context.dagster_run.run_id,
        steps=[step_errors(event) for event in context.get_step_failure_events()],
        reason=run_error(context.failure_event),
    )
    logger.error("%s", message)


def step_errors(event: dg.DagsterEvent) -> str:
    """A failed step and what failed in it: the description of a `Failure`, else the root cause."""
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return f"{event.step_key}: {data.user_failure_data.description}"
    return f"{event.step_key}: {_root_cause(data.error)}"


def run_error(event: dg.DagsterEvent) -> str:
    """Why a run failed outside its steps: most often a resource that could not be opened."""
    error = event.job_failure_data.error
    return _root_cause(error) if error is not None else (event.message or "")


def _root_cause(error: Any) -> str:
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error is not None else "no error given"
