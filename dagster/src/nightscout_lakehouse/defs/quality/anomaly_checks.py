"""Checks that look for what is unusual; they warn and never stop the pipeline."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from nightscout_lakehouse.defs.resources import LakehouseResource
from nightscout_lakehouse.lib.quality.anomalies import CHECKS, find_anomalies
from nightscout_lakehouse.lib.warehouse import connect_warehouse

_ASSET = "fact_glucose_readings"
_ALSO_READ = ["dim_site", "dim_glucose_date", "fact_sensor_gaps"]


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(check, asset=_ASSET, description=description, additional_deps=_ALSO_READ)
        for check, description in CHECKS.items()
    ],
    name="find_unusual_readings",
)
def find_unusual_readings(lakehouse: LakehouseResource) -> Iterator[dg.AssetCheckResult]:
    """Silence, missing volume, gaps, stuck sensors and drifts of the newest readings, site by site."""
    settings = lakehouse.settings
    with connect_warehouse(settings, read_only=True) as warehouse:
        found = find_anomalies(warehouse, datetime.now(UTC), settings.stale_minutes)
    for check, anomalies in found.items():
        yield dg.AssetCheckResult(
            asset_key=_ASSET,
            check_name=check,
            passed=not anomalies,
            severity=dg.AssetCheckSeverity.WARN,
            description=" ".join(anomaly.message for anomaly in anomalies[:20]),
            metadata={
                "sites": [anomaly.site for anomaly in anomalies],
                "findings": dg.MetadataValue.json([anomaly.message for anomaly in anomalies]),
            },
        )
