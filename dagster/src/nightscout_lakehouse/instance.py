"""The Dagster instance of a lakehouse: its folder, its settings, and running a job in this process."""

import hashlib
import os
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nightscout_lakehouse.lib.errors import ConfigurationError, LakehouseError, ServingDatabaseError
from nightscout_lakehouse.lib.postgres_connection import parse_database_url
from nightscout_lakehouse.lib.settings import Settings, load_settings

# A run with this tag was started by a command, and someone looks at what it prints.
BY_HAND_TAG = "lakehouse/command"

# One run at a time writes a lake; runs start when the one before has ended.
_CONFIG: Final = """\
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
_SQLITE_STORAGE: Final = """\
event_log_storage:
  module: nightscout_lakehouse.event_log
  class: OpenSqliteEventLogStorage
"""
# The address stays in the environment: it holds a password.
_POSTGRES_STORAGE: Final = """\
storage:
  custom:
    module: nightscout_lakehouse.postgres_storage
    class: OpenPostgresStorage
    config:
      postgres_url:
        env: DAGSTER_POSTGRES_URL
"""
# A file that begins with this, and whose text has this digest, was written here and by nobody else.
_SIGNATURE: Final = "# Written by lakehouse; it is written anew when a setting changes, unless it is edited. "
_DIGEST_BYTES: Final = 8


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
    url = settings.dagster_postgres_url.get_secret_value()
    _write_config(settings.dagster_home / "dagster.yaml", uses_postgres=bool(url))
    if url:
        # SQLAlchemy takes a bare `postgresql` for another driver than the one that dagster-postgres speaks to.
        connection = parse_database_url(url, variable="DAGSTER_POSTGRES_URL")
        os.environ["DAGSTER_POSTGRES_URL"] = connection.url(hide_password=False, scheme="postgresql+psycopg2")
    os.environ["LAKEHOUSE_HOME"] = str(settings.home)
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"


def check_storage(settings: Settings) -> None:
    """Say in plain words what is wrong with Dagster's own database, where it has one; Dagster would show a traceback.

    Raises:
        LakehouseError: It cannot be opened.
    """
    url = settings.dagster_postgres_url.get_secret_value()
    if not url:
        return
    try:
        parse_database_url(url, variable="DAGSTER_POSTGRES_URL").connect().close()
    except ServingDatabaseError as error:
        raise LakehouseError(
            f"Dagster's storage cannot be opened: {error.args[0]}", "See DAGSTER_POSTGRES_URL."
        ) from None


def _write_config(path: Path, *, uses_postgres: bool) -> None:
    """Write Dagster's configuration where it is not as the settings ask for; what somebody edited stays as it is."""
    text = _CONFIG + (_POSTGRES_STORAGE if uses_postgres else _SQLITE_STORAGE)
    content = f"{_SIGNATURE}{_digest(text)}\n{text}"
    present = path.read_text(encoding="utf-8") if path.is_file() else ""
    if present == content:
        return
    first_line, _, rest = present.partition("\n")
    is_ours = present in ("", _CONFIG) or first_line == f"{_SIGNATURE}{_digest(rest)}"
    if not is_ours:
        if bool(re.search("^storage:", present, re.MULTILINE)) is uses_postgres:
            return
        raise ConfigurationError(
            f"{path} was edited and does not fit DAGSTER_POSTGRES_URL, which is {'' if uses_postgres else 'not '}set.",
            "Remove the file and it is written anew, or change its sections `storage` and `event_log_storage`.",
        )
    # The services of a server come here at the same time; each puts a whole file in place.
    copy = path.with_suffix(f".{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    copy.write_text(content, encoding="utf-8")
    copy.replace(path)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def execute_job(job: str) -> JobOutcome:
    """Run a job of the code location in this process; its run shows in the UI.

    Args:
        job: Name of the job.
    """
    import dagster as dg

    from nightscout_lakehouse.definitions import defs
    from nightscout_lakehouse.defs.alerts.failure import check_error, failed_by_check, run_error, step_errors

    check_storage(load_settings())
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
