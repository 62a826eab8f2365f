"""From the Nightscout servers to typed Parquet, collection by collection."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import dagster as dg

from nightscout_lakehouse.defs.ingestion.file_drop_assets import raw_file_drop
from nightscout_lakehouse.defs.resources import LakehouseResource
from nightscout_lakehouse.defs.retrying import retries_what_may_pass
from nightscout_lakehouse.lib.ingestion import SiteIngestion, ingest_sites, newest_documents
from nightscout_lakehouse.lib.lake import RAW_SCHEMA
from nightscout_lakehouse.lib.nightscout_collections import DEVICE_STATUS, ENTRIES, PROFILES, TREATMENTS, Collection
from nightscout_lakehouse.lib.processing import SiteProcessing, process_into
from nightscout_lakehouse.lib.quality.quarantine import LEAST_DOCUMENTS, refused_shares
from nightscout_lakehouse.lib.summary import collection_overview
from nightscout_lakehouse.lib.table_profile import PREVIEW_ROWS, markdown_table
from nightscout_lakehouse.lib.warehouse import connect_warehouse, open_warehouse

GROUP = "nightscout"
OWNERS = ["team:data-platform"]
# Two ticks missed is a warning, a day without a tick a failure.
FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=24), warn_window=timedelta(minutes=75))
# Nightscout was first published in 2013; imports reach further back.
FIRST_MONTH = "2013-01-01"


def _conservation_check(asset: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        "documents_are_conserved",
        asset=asset,
        blocking=True,
        description="Documents = stored + duplicates + quarantined, for every batch.",
    )


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
@retries_what_may_pass
def raw_nightscout_entries(
    context: dg.AssetExecutionContext, lakehouse: LakehouseResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Read what is new, changed or gone on every site; each document lands unchanged in an immutable batch file."""
    reports = ingest_sites(lakehouse.sites, lakehouse.settings, lakehouse.lake)
    lakehouse.recorder.was_read(reports)
    _fail_if_none_was_read(lakehouse, reports)
    # After the above: what is tried again and then read is readable.
    lakehouse.unreadable_sites.update(report.site for report in reports if report.error)
    yield _ingestion_result(context, lakehouse, "raw_nightscout_entries", reports, ENTRIES)
    yield _read_check(reports, dg.AssetCheckSeverity.ERROR)


@dg.asset(
    group_name=GROUP,
    kinds={"python", "parquet"},
    owners=OWNERS,
    partitions_def=dg.MonthlyPartitionsDefinition(start_date=FIRST_MONTH, end_offset=1),
)
@retries_what_may_pass
def reread_nightscout_entries(
    context: dg.AssetExecutionContext, lakehouse: LakehouseResource
) -> Iterator[dg.MaterializeResult[None]]:
    """Read whole months (UTC) of every site again: for edits and late data that should not wait for the rotation."""
    window = context.partition_time_window
    reports = ingest_sites(
        lakehouse.sites,
        lakehouse.settings,
        lakehouse.lake,
        since=window.start,
        until=min(window.end, datetime.now(UTC)),
    )
    lakehouse.recorder.was_read(reports)
    _fail_if_none_was_read(lakehouse, reports)
    yield _ingestion_result(context, lakehouse, "reread_nightscout_entries", reports, ENTRIES)


@dg.asset(
    group_name=GROUP,
    kinds={"duckdb", "parquet"},
    owners=OWNERS,
    deps=[raw_nightscout_entries, reread_nightscout_entries, raw_file_drop],
    freshness_policy=FRESHNESS,
    check_specs=[
        _conservation_check("processed_nightscout_entries"),
        dg.AssetCheckSpec(
            "quarantine_share_is_small",
            asset="processed_nightscout_entries",
            description="Of no site more than LAKEHOUSE_QUARANTINE_WARN_PCT of the documents processed in the last "
            f"24 hours (at least {LEAST_DOCUMENTS}) were refused.",
        ),
    ],
)
@retries_what_may_pass
def processed_nightscout_entries(
    lakehouse: LakehouseResource,
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Type, de-duplicate and partition the new batches as Parquet; refused documents go to quarantine with a reason."""
    yield from _processing_results(lakehouse, ENTRIES)
    yield _quarantine_check(lakehouse)


def raw_collection_asset(collection: Collection, description: str) -> dg.AssetsDefinition:
    """The asset that reads one of the collections beside the entries.

    It never fails for a site: many tokens may read entries alone, and glucose must not wait for treatments. What could
    not be read is a failed check with severity WARN, and is said at the end of a run.
    """
    name = f"raw_{collection.name}"

    @dg.asset(
        name=name,
        description=description,
        group_name=GROUP,
        kinds={"python", "parquet"},
        owners=OWNERS,
        # Not its data: the entries go first, and find the site's time zone.
        deps=[raw_nightscout_entries],
        freshness_policy=FRESHNESS,
        check_specs=[
            dg.AssetCheckSpec("every_site_was_read", asset=name, description="No site failed to show this collection.")
        ],
    )
    @retries_what_may_pass
    def raw_asset(
        context: dg.AssetExecutionContext, lakehouse: LakehouseResource
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        is_read = collection is not DEVICE_STATUS or lakehouse.settings.read_device_status
        sites = [s for s in lakehouse.sites if is_read and s.name not in lakehouse.unreadable_sites]
        reports = ingest_sites(sites, lakehouse.settings, lakehouse.lake, collection=collection) if sites else []
        lakehouse.recorder.was_read(reports)
        if not is_read:
            context.log.info("Not read, since NIGHTSCOUT_READ_DEVICE_STATUS is false.")
        yield _ingestion_result(context, lakehouse, name, reports, collection)
        yield _read_check(reports, dg.AssetCheckSeverity.WARN)

    return raw_asset


def processed_collection_asset(collection: Collection, description: str) -> dg.AssetsDefinition:
    """The asset that processes one of the collections beside the entries."""
    name = f"processed_{collection.name}"

    @dg.asset(
        name=name,
        description=description,
        group_name=GROUP,
        kinds={"duckdb", "parquet"},
        owners=OWNERS,
        deps=[dg.AssetKey(f"raw_{collection.name}")],
        freshness_policy=FRESHNESS,
        check_specs=[_conservation_check(name)],
    )
    @retries_what_may_pass
    def processed_asset(lakehouse: LakehouseResource) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        yield from _processing_results(lakehouse, collection)

    return processed_asset


raw_nightscout_treatments = raw_collection_asset(
    TREATMENTS,
    "Read the treatments of every site: insulin, carbohydrates, exercise, notes, changes.",
)
processed_nightscout_treatments = processed_collection_asset(
    TREATMENTS, "Type the treatments, in units, grams, minutes and mg/dL; two documents of one event count once."
)
raw_nightscout_device_status = raw_collection_asset(
    DEVICE_STATUS,
    "Read what loop, pump and phone report every few minutes; NIGHTSCOUT_READ_DEVICE_STATUS=false skips it.",
)
processed_nightscout_device_status = processed_collection_asset(
    DEVICE_STATUS, "Type the device status of Loop and of OpenAPS, AAPS or Trio: IOB, COB, doses, pump, batteries."
)
raw_nightscout_profiles = raw_collection_asset(PROFILES, "Read the therapy profiles of every site.")
processed_nightscout_profiles = processed_collection_asset(
    PROFILES, "Type the profiles: from when on they hold, time zone, units, the schedules of the default profile."
)

COLLECTION_ASSETS = (
    *(raw_nightscout_treatments, processed_nightscout_treatments),
    *(raw_nightscout_device_status, processed_nightscout_device_status),
    *(raw_nightscout_profiles, processed_nightscout_profiles),
)


def _processing_results(
    lakehouse: LakehouseResource, collection: Collection
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    with open_warehouse(lakehouse.settings) as warehouse:
        reports = process_into(warehouse, lakehouse.all_sites, lakehouse.settings, lakehouse.lake, collection)
        lakehouse.recorder.was_processed(reports)
        overview = collection_overview(warehouse, collection)
    asset = f"processed_{collection.name}"
    yield dg.MaterializeResult(
        asset_key=asset,
        metadata={
            "dagster/row_count": overview.live_rows,
            "dagster/column_schema": dg.TableSchema(
                columns=[dg.TableColumn(name, kind) for name, kind in collection.columns.items()]
            ),
            "documents": sum(report.documents for report in reports),
            "stored": sum(report.stored for report in reports),
            "duplicates": sum(report.duplicates for report in reports),
            "quarantined": sum(report.quarantined for report in reports),
            "bytes": sum(report.bytes_written for report in reports),
            "days_touched": sum(report.days_changed for report in reports),
            "partitions_written": sum(report.partitions_written for report in reports),
            "rows_by_kind": overview.rows_by_kind,
            "quarantine_by_reason": overview.quarantine_by_reason,
            "first_time": _time(overview.first_time),
            "last_time": _time(overview.last_time),
            "seconds": round(sum(report.seconds for report in reports), 3),
            "sites": dg.MetadataValue.md(_processing_table(reports)),
            "reports": dg.MetadataValue.json(
                [
                    {"site": r.site, "stored": r.stored, "duplicates": r.duplicates, "quarantined": r.quarantined}
                    for r in reports
                ]
            ),
            "preview": dg.MetadataValue.md(overview.preview),
        },
    )
    batches = [batch for report in reports for batch in report.batches]
    lost = [b for b in batches if b.documents != b.stored + b.duplicates + b.quarantined]
    yield dg.AssetCheckResult(
        check_name="documents_are_conserved",
        passed=not lost,
        metadata={"batches": len(batches), "batches_that_do_not_add_up": [f"{b.site}/{b.batch}" for b in lost]},
    )


def _quarantine_check(lakehouse: LakehouseResource) -> dg.AssetCheckResult:
    settings = lakehouse.settings
    with connect_warehouse(settings, read_only=True) as warehouse:
        shares = refused_shares(warehouse, ENTRIES, settings.quarantine_warn_pct, datetime.now(UTC))
    return dg.AssetCheckResult(
        check_name="quarantine_share_is_small",
        passed=not shares,
        severity=dg.AssetCheckSeverity.WARN,
        description=" ".join(
            f"{share.site}: {share.quarantined:,} of {share.documents:,} documents refused ({share.share_pct:.1f} %)."
            for share in shares[:20]
        )
        or f"No site has more than {settings.quarantine_warn_pct:g} % refused.",
        metadata={"sites": [share.site for share in shares], "limit_pct": settings.quarantine_warn_pct},
    )


def _fail_if_none_was_read(lakehouse: LakehouseResource, reports: Sequence[SiteIngestion]) -> None:
    failed = [report for report in reports if report.error]
    if failed and len(failed) == len(reports) and not lakehouse.sites_of_files:
        raise dg.Failure(
            description="No site could be read. " + " ".join(str(report.error) for report in failed),
            metadata={"sites": dg.MetadataValue.md(_ingestion_table(reports))},
            allow_retries=all(report.error_may_pass for report in failed),
        )


def _ingestion_result(
    context: dg.AssetExecutionContext,
    lakehouse: LakehouseResource,
    asset: str,
    reports: Sequence[SiteIngestion],
    collection: Collection,
) -> dg.MaterializeResult[None]:
    if not any(report.landed or report.deletions for report in reports):
        context.log.info("Nothing new on any site.")
    return dg.MaterializeResult(
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
            "seconds": round(max((report.seconds for report in reports), default=0.0), 3),
            "first_document": _time_of_ms(min((r.oldest_ms for r in reports if r.oldest_ms is not None), default=None)),
            "last_document": _time_of_ms(max((r.newest_ms for r in reports if r.newest_ms is not None), default=None)),
            "dagster/column_schema": dg.TableSchema(
                columns=[dg.TableColumn(field.name, str(field.type)) for field in RAW_SCHEMA]
            ),
            "preview": dg.MetadataValue.md(_raw_preview(lakehouse, reports, collection)),
            "sites_failed": [report.site for report in reports if report.error],
            "sites": dg.MetadataValue.md(_ingestion_table(reports)),
            "reports": dg.MetadataValue.json([asdict(report) for report in reports]),
        },
    )


def _read_check(reports: Sequence[SiteIngestion], severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    failed = [report for report in reports if report.error]
    return dg.AssetCheckResult(
        check_name="every_site_was_read",
        passed=not failed,
        severity=severity,
        metadata={report.site: str(report.error) for report in failed},
    )


def _raw_preview(lakehouse: LakehouseResource, reports: Sequence[SiteIngestion], collection: Collection) -> str:
    newest = [(report.site, report.batches[-1]) for report in reports if report.batches]
    documents = newest_documents(lakehouse.lake, lakehouse.settings, newest, PREVIEW_ROWS, collection)
    return markdown_table(("site", "batch", "operation", "fetched_at", "document"), documents)


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


def _time_of_ms(epoch_ms: float | None) -> dg.MetadataValue:
    return _time(None if epoch_ms is None else datetime.fromtimestamp(epoch_ms / 1000, UTC))


def _time(moment: datetime | None) -> dg.MetadataValue:
    return dg.MetadataValue.timestamp(moment) if moment else dg.MetadataValue.null()
