"""How long Dagster keeps the events of a run: a tick writes 5 MB of them, which nobody reads after a few days.

What a run did is kept for longer where it is small: in `mart_pipeline_runs`, the log and the lineage.
"""

from datetime import datetime, timedelta
from logging import getLogger
from typing import Final

import dagster as dg
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG
from sqlalchemy import func, select

logger = getLogger("nightscout_lakehouse.run")

# A failure is asked about for longer.
_FAILED_FACTOR: Final = 10
# At most so many at a time: the first tick after an upgrade does not take an hour.
_MOST_AT_ONCE: Final = 100

# Runs of other projects in the same Dagster are not ours to delete.
JOBS: Final = ("nightscout_pipeline", "nightscout_backfill", "nightscout_full_validation")
_ASSETS_IN_THE_UI: Final = "__ASSET_JOB"

_ENDED_WELL = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED]


def forget_old_runs(instance: dg.DagsterInstance, keep_days: float, now: datetime, repository: str = "") -> int:
    """Delete our runs that ended long ago, with their events and output; failed ones stay ten times as long.

    The latest materialization of each asset and the latest result of each check stay known.

    Args:
        instance: Where the runs are.
        keep_days: Days after its end.
        now: The time of now, UTC.
        repository: Dagster's label of ours, of which assets that somebody materialized in the UI are looked for, too.

    Returns:
        How many runs were deleted; those that are left are for the next time.
    """
    old: list[dg.RunRecord] = []
    for statuses, days in ((_ENDED_WELL, keep_days), ([dg.DagsterRunStatus.FAILURE], keep_days * _FAILED_FACTOR)):
        before = now - timedelta(days=days)
        ours = [dg.RunsFilter(job_name=job, statuses=statuses, updated_before=before) for job in JOBS]
        if repository:
            tags = {REPOSITORY_LABEL_TAG: repository}
            ours.append(dg.RunsFilter(job_name=_ASSETS_IN_THE_UI, statuses=statuses, updated_before=before, tags=tags))
        for each in ours:
            old += instance.get_run_records(each, limit=_MOST_AT_ONCE, ascending=True)
    forgotten = 0
    for record in old[:_MOST_AT_ONCE]:
        try:
            _forget(instance, record.dagster_run.run_id)
        except Exception as error:
            # Of a database, a disk, a driver: what this run did is done, and the next one tries again.
            logger.warning("An old run could not be deleted from Dagster's history: %s", type(error).__name__)
        else:
            forgotten += 1
    return forgotten


def _forget(instance: dg.DagsterInstance, run_id: str) -> None:
    # First what Dagster itself would leave: a kill in between leaves the run, for the next time.
    storage = instance.event_log_storage
    if isinstance(storage, SqlEventLogStorage):
        checks = AssetCheckExecutionsTable
        latest = select(func.max(checks.c.id)).group_by(checks.c.asset_key, checks.c.check_name)
        with storage.index_connection() as connection:
            connection.execute(checks.delete().where(checks.c.run_id == run_id, checks.c.id.not_in(latest)))
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    # Dagster deletes the run first and its events then, which nobody would find any more after a kill in between.
    storage.delete_events(run_id)
    instance.delete_run(run_id)
