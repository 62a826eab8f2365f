"""From the DuckDB warehouse to the serving Postgres."""

from collections.abc import Iterator

import dagster as dg
from nightscout_lakehouse.defs.resources import LakehouseResource
from nightscout_lakehouse.lib.publishing import publish
from nightscout_lakehouse.lib.warehouse import open_warehouse

PUBLISHED_TABLES = ("fact_glucose_readings", "dim_glucose_date", "dim_site")


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            ["published", table],
            deps=[table],
            group_name="nightscout",
            kinds={"postgres"},
            owners=["team:data-platform"],
            description=f"`curated.{table}` in Postgres: the rows that changed, by COPY and upsert in one transaction.",
        )
        for table in PUBLISHED_TABLES
    ]
)
def published_curated_tables(lakehouse: LakehouseResource) -> Iterator[dg.MaterializeResult]:
    """Publish the curated rows that changed; readers see all of it or nothing."""
    with open_warehouse(lakehouse.settings) as warehouse:
        report = publish(warehouse, lakehouse.postgres)
    for table in report.tables:
        yield dg.MaterializeResult(
            asset_key=["published", table.table],
            metadata={
                "inserted": table.inserted,
                "updated": table.updated,
                "deleted": table.deleted,
                "full": report.full,
                "change_seq": report.change_seq,
                "seconds": round(report.seconds, 3),
                "bytes": report.bytes,
            },
        )
