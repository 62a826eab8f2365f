"""The Dagster instance of a lakehouse: its folder, its settings, and running a job in this process."""

import os
from dataclasses import dataclass, field
from typing import Any

from nightscout_lakehouse.lib.settings import Settings

# A run with this tag was started by a command, and someone looks at what it prints.
BY_HAND_TAG = "lakehouse/command"

# One run at a time writes a lake; runs start when the one before has ended.
_DAGSTER_YAML = """\
telemetry:
  enabled: false
nux:
  enabled: false
run_queue:
  max_concurrent_runs: 1
run_monitoring:
  enabled: true
  start_timeout_seconds: 180
freshness:
  enabled: true
python_logs:
  managed_python_loggers:
    - nightscout_lakehouse
  python_log_level: INFO
retention:
  schedule:
    purge_after_days: 90
  sensor:
    purge_after_days:
      skipped: 7
      failure: 30
      success: 90
"""


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended.

    Attributes:
        success: Whether every step succeeded.
        run_id: Id of the Dagster run.
        errors: One line for each failed step, or for each critical check that it failed by.
        check_errors: Those of the critical checks.
        failed_checks: Names of the asset checks that failed with severity ERROR.
        metadata: Metadata of each materialized asset, by asset name.
        step_seconds: Duration of each step, by its name.
    """

    success: bool
    run_id: str
    errors: list[str] = field(default_factory=list)
    check_errors: list[str] = field(default_factory=list)
    failed_checks: list[str] = field(default_factory=list)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)


def prepare_environment(settings: Settings) -> None:
    """Make Dagster's folder, and point Dagster (and what it starts) to it and to this lakehouse."""
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    config = settings.dagster_home / "dagster.yaml"
    if not config.is_file():
        config.write_text(_DAGSTER_YAML, encoding="utf-8")
    os.environ["LAKEHOUSE_HOME"] = str(settings.home)
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"


def execute_job(job: str) -> JobOutcome:
    """Run a job of the code location in this process; its run shows in the UI.

    Args:
        job: Name of the job.
    """
    import dagster as dg

    from nightscout_lakehouse.definitions import defs
    from nightscout_lakehouse.defs.alerts.failure import check_error, failed_by_check, run_error, step_errors

    with dg.DagsterInstance.get() as instance:
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance,
            raise_on_error=False,
            # The command shows its own progress; the run's log is in the UI.
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={BY_HAND_TAG: "run"},
        )
    outcome = JobOutcome(success=result.success, run_id=result.run_id)
    run_failure = ""
    for event in result.all_events:
        if event.is_step_failure:
            if not failed_by_check(event):
                outcome.errors.append(step_errors(event))
        elif event.event_type is dg.DagsterEventType.RUN_FAILURE:
            run_failure = run_error(event)
        elif event.is_step_success and event.step_key:
            outcome.step_seconds[event.step_key] = event.step_success_data.duration_ms / 1000
        elif event.event_type is dg.DagsterEventType.ASSET_MATERIALIZATION:
            materialization = event.step_materialization_data.materialization
            name = "/".join(materialization.asset_key.path)
            outcome.metadata[name] = {key: value.value for key, value in materialization.metadata.items()}
        elif event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed and evaluation.severity is dg.AssetCheckSeverity.ERROR:
                outcome.failed_checks.append(evaluation.check_name)
            if line := check_error(event):
                outcome.errors.append(line)
                outcome.check_errors.append(line)
    if not outcome.success and not outcome.errors:
        outcome.errors.append(run_failure or "The run failed before its first step.")
    return outcome
