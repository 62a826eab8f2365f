"""From the DuckDB warehouse to the serving Postgres."""

from collections.abc import Iterator

import dagster as dg

from nightscout_lakehouse.defs.resources import LakehouseResource
from nightscout_lakehouse.defs.retrying import retries_what_may_pass
from nightscout_lakehouse.defs.table_metadata import table_metadata
from nightscout_lakehouse.defs.transform.dbt_assets import published_key
from nightscout_lakehouse.lib.publishing import PUBLISHED_TABLES, TableReport, publish
from nightscout_lakehouse.lib.table_profile import profile_postgres, profile_warehouse
from nightscout_lakehouse.lib.warehouse import open_warehouse

# No step makes them: each run tells Postgres of itself when it begins and when it has ended, however it ended.
RUN_RECORDS = tuple(
    dg.AssetSpec(
        name,
        group_name="nightscout",
        kinds={"postgres"},
        owners=["team:data-platform"],
        description=f"`ops.{name}`: {what}",
    )
    for name, what in (
        ("pipeline_runs", "one row per run of the last 35 days, failed and killed ones included."),
        ("pipeline_run_sites", "what each of these runs did for each site."),
    )
)

TABLE_NAMES = tuple(table.name for table in PUBLISHED_TABLES)


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            published_key(table),
            deps=[table],
            group_name="nightscout",
            kinds={"postgres"},
            owners=["team:data-platform"],
            description=f"`curated.{table}` in Postgres: the rows that changed, by COPY and upsert in one transaction.",
        )
        for table in TABLE_NAMES
    ]
)
@retries_what_may_pass
def published_curated_tables(lakehouse: LakehouseResource) -> Iterator[dg.MaterializeResult[None]]:
    """Publish the curated rows that changed; readers see all of it or nothing."""
    with open_warehouse(lakehouse.settings) as warehouse:
        report = publish(warehouse, lakehouse.postgres)
        # Publishing has compared them: what the copies hold is what the warehouse holds.
        originals = {name: profile_warehouse(warehouse, f"curated.{name}") for name in TABLE_NAMES}
    with lakehouse.postgres.transaction() as opened, opened.cursor() as cursor:
        copies = {name: profile_postgres(cursor, f"curated.{name}", like=originals[name]) for name in TABLE_NAMES}
    reports = {table.table: table for table in report.tables}
    for name in TABLE_NAMES:
        table = reports.get(name, TableReport(name, considered=0, inserted=0, updated=0, deleted=0, bytes_sent=0))
        yield dg.MaterializeResult(
            asset_key=published_key(name),
            metadata={
                **table_metadata(copies[name]),
                "inserted": table.inserted,
                "updated": table.updated,
                "deleted": table.deleted,
                "unchanged": table.unchanged,
                "bytes_sent": table.bytes_sent,
                "dagster/table_name": f"curated.{name}",
                "full": report.is_full,
                "why_full": report.reason,
                "change_seq": report.change_seq,
                "seconds": round(report.seconds, 3),
            },
        )
