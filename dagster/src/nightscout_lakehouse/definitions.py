"""The code location that Dagster loads: all that `defs/` defines, with the lakehouse as its one resource."""

import dagster as dg

from nightscout_lakehouse.defs.alerts.failure import pipeline_failure_alert, pipeline_recovery_alert
from nightscout_lakehouse.defs.alerts.glucose import glucose_alerts
from nightscout_lakehouse.defs.ingestion.file_drop_assets import raw_file_drop
from nightscout_lakehouse.defs.ingestion.nightscout_assets import (
    COLLECTION_ASSETS,
    processed_nightscout_entries,
    raw_nightscout_entries,
    reread_nightscout_entries,
)
from nightscout_lakehouse.defs.quality.anomaly_checks import find_unusual_readings
from nightscout_lakehouse.defs.quality.nightscout_validations import (
    batches_match_raw_files,
    nightscout_full_validation,
    validate_daily_figures,
    validate_enriched_readings,
    validate_glucose_enriched,
    validate_raw_documents,
)
from nightscout_lakehouse.defs.resources import LakehouseResource
from nightscout_lakehouse.defs.schedules.nightscout import (
    nightscout_backfill,
    nightscout_every_30_min,
    nightscout_pipeline,
)
from nightscout_lakehouse.defs.serving.publish_assets import RUN_RECORDS, published_curated_tables
from nightscout_lakehouse.defs.transform.dbt_assets import nightscout_curated, nightscout_enriched, nightscout_marts
from nightscout_lakehouse.lib.garbage_collection import collect_seldom

# Each run has a process of its own, which begins here.
collect_seldom()

defs = dg.Definitions(
    assets=[
        raw_nightscout_entries,
        reread_nightscout_entries,
        raw_file_drop,
        processed_nightscout_entries,
        *COLLECTION_ASSETS,
        nightscout_enriched,
        validate_glucose_enriched,
        nightscout_curated,
        published_curated_tables,
        *RUN_RECORDS,
        nightscout_marts,
    ],
    asset_checks=[
        validate_raw_documents,
        validate_enriched_readings,
        validate_daily_figures,
        find_unusual_readings,
        batches_match_raw_files,
    ],
    jobs=[nightscout_pipeline, nightscout_backfill, nightscout_full_validation],
    schedules=[nightscout_every_30_min],
    sensors=[pipeline_failure_alert, pipeline_recovery_alert, glucose_alerts],
    resources={"lakehouse": LakehouseResource()},
    executor=dg.in_process_executor,
)
