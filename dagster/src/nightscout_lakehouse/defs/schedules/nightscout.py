"""When the pipeline runs."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from nightscout_lakehouse.defs.ingestion.nightscout_assets import (
    raw_nightscout_device_status,
    raw_nightscout_entries,
    raw_nightscout_profiles,
    raw_nightscout_treatments,
    reread_nightscout_entries,
)
from nightscout_lakehouse.defs.quality.nightscout_validations import FULL_ONLY

_REREAD = dg.AssetSelection.assets(reread_nightscout_entries)
_RAW = dg.AssetSelection.assets(
    *(raw_nightscout_entries, raw_nightscout_treatments, raw_nightscout_device_status, raw_nightscout_profiles)
)

nightscout_pipeline = dg.define_asset_job(
    "nightscout_pipeline",
    selection=dg.AssetSelection.groups("nightscout") - _REREAD - FULL_ONLY,
    description="Everything once: read every site, process, build the models, publish, build the marts.",
    executor_def=dg.in_process_executor,
)

nightscout_backfill = dg.define_asset_job(
    "nightscout_backfill",
    selection=dg.AssetSelection.groups("nightscout") - _RAW - FULL_ONLY,
    description="Read the chosen months of every site again and bring all that follows up to date.",
    executor_def=dg.in_process_executor,
)

# A run that was killed before Dagster started it stays "not started" for good.
_STARTS_WITHIN = timedelta(minutes=10)


@dg.schedule(
    name="nightscout_every_30_min",
    job=nightscout_pipeline,
    cron_schedule="*/30 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every half hour, on the hour and half past. Runs never overlap, and no more than one waits.",
)
def nightscout_every_30_min(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """One run, unless one waits already behind a long one: it reads everything since the last."""
    status, instance, job = dg.DagsterRunStatus, context.instance, nightscout_pipeline.name
    since = datetime.now(UTC) - _STARTS_WITHIN
    queued = instance.get_runs_count(dg.RunsFilter(job_name=job, statuses=[status.QUEUED]))
    starting = instance.get_runs_count(dg.RunsFilter(job_name=job, statuses=[status.NOT_STARTED], created_after=since))
    if queued or starting:
        return dg.SkipReason("A run waits already; it will read everything since the last.")
    return dg.RunRequest()
