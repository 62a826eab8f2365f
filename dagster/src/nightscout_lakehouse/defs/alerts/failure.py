"""Tells someone when a run fails."""

import logging
from typing import Any

import dagster as dg

from nightscout_lakehouse.lib.alerts.run_failure import check_failure, failure_message
from nightscout_lakehouse.lib.settings import load_settings

logger = logging.getLogger("nightscout_lakehouse.alerts")


@dg.run_failure_sensor(
    name="pipeline_failure_alert",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes one line to the log for every failed run: job, run id, and the step with its error, "
    "or the critical check with the site, the first row that does not hold and the report. Tells the same to "
    "LAKEHOUSE_ALERT_URLS, once in the cool-down for the same cause.",
)
def pipeline_failure_alert(context: dg.RunFailureSensorContext) -> None:
    """Say which run failed, where and why."""
    from nightscout_lakehouse.lib.alerts.runs import run_failed
    from nightscout_lakehouse.lib.redaction import redactor_with_sites

    job, run_id = context.dagster_run.job_name, context.dagster_run.run_id
    steps = [step_errors(event) for event in context.get_step_failure_events() if not failed_by_check(event)]
    checks, reason = _failed_checks(context), run_error(context.failure_event)
    message = failure_message(job=job, run_id=run_id, steps=steps, checks=checks, reason=reason)
    settings = load_settings()
    # First to where little can go wrong.
    logger.error("%s", redactor_with_sites(settings).clean(message))
    run_failed(settings, job=job, run_id=run_id, steps=steps, checks=checks, reason=reason)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    name="pipeline_recovery_alert",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells LAKEHOUSE_ALERT_URLS that a job succeeds again whose failure was told.",
)
def pipeline_recovery_alert(context: dg.RunStatusSensorContext) -> None:
    """Say that a job is well again."""
    from nightscout_lakehouse.lib.alerts.runs import run_succeeded

    run_succeeded(load_settings(), job=context.dagster_run.job_name, run_id=context.dagster_run.run_id)


def _failed_checks(context: dg.RunFailureSensorContext) -> list[str]:
    kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    cursor, lines = None, list[str]()
    while True:
        page = context.instance.get_records_for_run(context.dagster_run.run_id, cursor=cursor, of_type=kind)
        events = [record.event_log_entry.dagster_event for record in page.records]
        lines += [line for event in events if event is not None and (line := check_error(event))]
        cursor = page.cursor
        if not page.has_more:
            return lines


def failed_by_check(event: dg.DagsterEvent) -> bool:
    """Whether a step failed since a check that blocks did: the check says more than the step's error."""
    error = event.step_failure_data.error
    return error is not None and error.cls_name == "DagsterAssetCheckFailedError"


def check_error(event: dg.DagsterEvent) -> str:
    """What a critical check found, in one line; empty for a check that passed or only warns."""
    evaluation = event.asset_check_evaluation_data
    if evaluation.passed or evaluation.severity is not dg.AssetCheckSeverity.ERROR or not evaluation.blocking:
        return ""
    values: dict[str, Any] = {name: value.value for name, value in evaluation.metadata.items()}
    samples = values.get("unexpected_samples") or []
    return check_failure(
        check=evaluation.check_name,
        asset=evaluation.asset_key.to_user_string(),
        sites=values.get("sites") or [],
        what=evaluation.description or "",
        sample=samples[0] if samples else None,
        report=str(values.get("report_path") or ""),
    )


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
