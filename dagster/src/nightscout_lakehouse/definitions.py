"""The code location that Dagster loads: all that `defs/` defines, with the lakehouse as its one resource."""

import dagster as dg

from nightscout_lakehouse.defs.alerts.failure import pipeline_failure_alert
from nightscout_lakehouse.defs.ingestion.file_drop_assets import raw_file_drop
from nightscout_lakehouse.defs.ingestion.nightscout_assets import (
    COLLECTION_ASSETS,
    processed_nightscout_entries,
    raw_nightscout_entries,
    reread_nightscout_entries,
)
from nightscout_lakehouse.defs.resources import LakehouseResource
from nightscout_lakehouse.defs.schedules.nightscout import (
    nightscout_backfill,
    nightscout_every_30_min,
    nightscout_pipeline,
)
from nightscout_lakehouse.defs.serving.publish_assets import published_curated_tables
from nightscout_lakehouse.defs.transform.dbt_assets import nightscout_marts, nightscout_models

defs = dg.Definitions(
    assets=[
        raw_nightscout_entries,
        reread_nightscout_entries,
        raw_file_drop,
        processed_nightscout_entries,
        *COLLECTION_ASSETS,
        nightscout_models,
        published_curated_tables,
        nightscout_marts,
    ],
    jobs=[nightscout_pipeline, nightscout_backfill],
    schedules=[nightscout_every_30_min],
    sensors=[pipeline_failure_alert],
    resources={"lakehouse": LakehouseResource()},
    executor=dg.in_process_executor,
)
