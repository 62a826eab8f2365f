"""From the Nightscout servers to typed Parquet."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import dagster as dg

from nightscout_lakehouse.defs.resources import LakehouseResource
from nightscout_lakehouse.lib.ingestion import SiteIngestion, ingest_sites
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES
from nightscout_lakehouse.lib.processing import SiteProcessing, process_sites
from nightscout_lakehouse.lib.summary import entries_overview

GROUP = "nightscout"
OWNERS = ["team:data-platform"]
# Two ticks missed is a warning, a day without a tick a failure.
FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=24), warn_window=timedelta(minutes=75))
# Nightscout was first published in 2013; imports reach further back.
FIRST_MONTH = "2013-01-01"


@dg.asset(
    group_name=GROUP,
    kinds={"python", "parquet"},
    owners=OWNERS,
    freshness_policy=FRESHNESS,
    check_specs=[
        dg.AssetCheckSpec(
            "every_site_was_read",
            asset="raw_nightscout_entries",
            description="No site failed to be read. The other sites go on; a run in which all fail, fails.",
        ),
    ],
)
def raw_nightscout_entries(
    context: dg.AssetExecutionContext, lakehouse: LakehouseResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Read what is new, changed or gone on every site; each document lands unchanged in an immutable batch file."""
    reports = ingest_sites(lakehouse.sites, lakehouse.settings, lakehouse.lake)
    yield from _ingestion_results(context, "raw_nightscout_entries", reports, "every_site_was_read")


@dg.asset(
    group_name=GROUP,
    kinds={"python", "parquet"},
    owners=OWNERS,
    partitions_def=dg.MonthlyPartitionsDefinition(start_date=FIRST_MONTH, end_offset=1),
)
def reread_nightscout_entries(
    context: dg.AssetExecutionContext, lakehouse: LakehouseResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Read whole months (UTC) of every site again: for edits and late data that should not wait for the rotation."""
    window = context.partition_time_window
    reports = ingest_sites(
        lakehouse.sites,
        lakehouse.settings,
        lakehouse.lake,
        since=window.start,
        until=min(window.end, datetime.now(UTC)),
    )
    yield from _ingestion_results(context, "reread_nightscout_entries", reports, None)


@dg.asset(
    group_name=GROUP,
    kinds={"duckdb", "parquet"},
    owners=OWNERS,
    deps=[raw_nightscout_entries, reread_nightscout_entries],
    freshness_policy=FRESHNESS,
    check_specs=[
        dg.AssetCheckSpec(
            "documents_are_conserved",
            asset="processed_nightscout_entries",
            blocking=True,
            description="Documents = stored + duplicates + quarantined, for every batch.",
        ),
    ],
)
def processed_nightscout_entries(
    lakehouse: LakehouseResource,
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Type, de-duplicate and partition the new batches as Parquet; refused documents go to quarantine with a reason."""
    reports = process_sites(lakehouse.sites, lakehouse.settings, lakehouse.lake)
    overview = entries_overview(lakehouse.settings)
    yield dg.MaterializeResult(
        metadata={
            "dagster/row_count": overview.live_rows,
            "dagster/column_schema": dg.TableSchema(
                columns=[dg.TableColumn(name, kind) for name, kind in ENTRIES.columns.items()]
            ),
            "documents": sum(report.documents for report in reports),
            "stored": sum(report.stored for report in reports),
            "duplicates": sum(report.duplicates for report in reports),
            "quarantined": sum(report.quarantined for report in reports),
            "days_touched": sum(report.days_changed for report in reports),
            "partitions_written": sum(report.partitions_written for report in reports),
            "rows_by_kind": overview.rows_by_kind,
            "quarantine_by_reason": overview.quarantine_by_reason,
            "first_reading": _time(overview.first_reading),
            "last_reading": _time(overview.last_reading),
            "seconds": round(sum(report.seconds for report in reports), 3),
            "sites": dg.MetadataValue.md(_processing_table(reports)),
            "reports": dg.MetadataValue.json(
                [
                    {"site": r.site, "stored": r.stored, "duplicates": r.duplicates, "quarantined": r.quarantined}
                    for r in reports
                ]
            ),
            "preview": dg.MetadataValue.md(overview.preview),
        }
    )
    batches = [batch for report in reports for batch in report.batches]
    lost = [b for b in batches if b.documents != b.stored + b.duplicates + b.quarantined]
    yield dg.AssetCheckResult(
        check_name="documents_are_conserved",
        passed=not lost,
        metadata={"batches": len(batches), "batches_that_do_not_add_up": [f"{b.site}/{b.batch}" for b in lost]},
    )


def _ingestion_results(
    context: dg.AssetExecutionContext, asset: str, reports: Sequence[SiteIngestion], check: str | None
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    failed = [report for report in reports if report.error]
    if failed and len(failed) == len(reports):
        raise dg.Failure(
            description="No site could be read. " + " ".join(str(report.error) for report in failed),
            metadata={"sites": dg.MetadataValue.md(_ingestion_table(reports))},
            # The client has retried what can pass; the next tick tries again.
            allow_retries=False,
        )
    if not any(report.landed or report.deletions for report in reports):
        context.log.info("Nothing new on any site.")
    yield dg.MaterializeResult(
        asset_key=asset,
        metadata={
            "documents_fetched": sum(report.fetched for report in reports),
            "documents_landed": sum(report.landed for report in reports),
            "documents_unchanged": sum(report.unchanged for report in reports),
            "deletions": sum(report.deletions for report in reports),
            "kept_though_gone_from_server": sum(report.retained for report in reports),
            "batch_files": sum(len(report.batches) for report in reports),
            "bytes": sum(report.bytes_written for report in reports),
            "requests": sum(report.requests for report in reports),
            "sites_failed": [report.site for report in failed],
            "sites": dg.MetadataValue.md(_ingestion_table(reports)),
            "reports": dg.MetadataValue.json([asdict(report) for report in reports]),
        },
    )
    if check:
        yield dg.AssetCheckResult(
            check_name=check,
            passed=not failed,
            severity=dg.AssetCheckSeverity.ERROR,
            metadata={report.site: str(report.error) for report in failed},
        )


def _ingestion_table(reports: Sequence[SiteIngestion]) -> str:
    lines = [
        "| site | fetched | landed | unchanged | deleted | requests | seconds | error |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {r.site} | {r.fetched:,} | {r.landed:,} | {r.unchanged:,} | {r.deletions:,} | {r.requests:,} "
        f"| {r.seconds:.1f} | {r.error or ''} |"
        for r in reports
    ]
    return "\n".join(lines)


def _processing_table(reports: Sequence[SiteProcessing]) -> str:
    lines = [
        "| site | time zone | batches | documents | stored | duplicates | quarantined | days touched |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r.site} | {r.timezone} ({r.timezone_source}) | {len(r.batches):,} | {r.documents:,} | {r.stored:,} "
        f"| {r.duplicates:,} | {r.quarantined:,} | {r.days_changed:,} |"
        for r in reports
    ]
    return "\n".join(lines)


def _time(moment: datetime | None) -> dg.MetadataValue:
    return dg.MetadataValue.timestamp(moment) if moment else dg.MetadataValue.null()
