"""From batch files to typed Parquet: one row per document, the latest version winning.

For each site, the batches that are not processed yet are read by DuckDB, joined with the partitions they
touch, and only these are written again. What refuses to be a reading goes to the kind `quarantined`, with
the reason and the original text. Before a partition is written, the site's local days that change are
recorded in `ops.changes`, so that a run killed at any point is made good by the next.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import duckdb

from nightscout_lakehouse.lib.errors import LakeError
from nightscout_lakehouse.lib.ingestion import site_timezone
from nightscout_lakehouse.lib.lake import (
    Lake,
    batch_file,
    batch_number,
    partition_file,
    partition_files,
    processing_state_file,
    raw_folder,
    sql_list,
    sql_text,
)
from nightscout_lakehouse.lib.nightscout_client import UNIDENTIFIED
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS, ENTRIES, Collection
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect, open_warehouse

logger = logging.getLogger(__name__)

# Bounds of memory: documents per step. A step touches few partitions, since a batch is one window of time.
DOCUMENTS_PER_STEP = 500_000

LOWEST_READING_MG_DL = 20
HIGHEST_READING_MG_DL = 600
EARLIEST_READING = "2000-01-01"
FUTURE_TOLERANCE_MINUTES = 15

_HIVE_TYPES = "{'kind': 'varchar', 'site': 'varchar', 'month': 'varchar'}"


@dataclass(frozen=True)
class BatchAccounting:
    """What became of the documents of one batch: `documents == stored + duplicates + quarantined`."""

    site: str
    batch: int
    documents: int
    stored: int
    duplicates: int
    quarantined: int
    deletions: int


@dataclass(frozen=True)
class SiteProcessing:
    """What processing a site did: its batches, the partitions written, and the local days that changed."""

    site: str
    timezone: str
    timezone_source: str
    batches: tuple[BatchAccounting, ...]
    partitions_written: int
    days_changed: int
    seconds: float

    @property
    def documents(self) -> int:
        """Documents in the batches."""
        return sum(batch.documents for batch in self.batches)

    @property
    def stored(self) -> int:
        """Documents that are now the current version of a reading."""
        return sum(batch.stored for batch in self.batches)

    @property
    def duplicates(self) -> int:
        """Documents that say nothing new."""
        return sum(batch.duplicates for batch in self.batches)

    @property
    def quarantined(self) -> int:
        """Documents that were refused."""
        return sum(batch.quarantined for batch in self.batches)


def process_sites(sites: Sequence[Site], settings: Settings, lake: Lake) -> list[SiteProcessing]:
    """Process every pending batch of the sites and show the result in the warehouse as `lake.nightscout_entries`.

    Raises:
        LakeError: The lake cannot be read or written, or the accounting of a batch does not add up.
    """
    with open_warehouse(settings) as warehouse:
        reports = [_process_site(site, settings, lake, warehouse) for site in sites]
        refresh_views(warehouse, lake)
    return reports


def refresh_views(warehouse: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    """(Re)create the views `lake.nightscout_…` over the processed files, typed and empty where there are none."""
    warehouse.execute("create schema if not exists lake")
    for collection in COLLECTIONS:
        warehouse.execute(f"create or replace view lake.{collection.name} as {_view_sql(lake, collection)}")


def _view_sql(lake: Lake, collection: Collection) -> str:
    kinds = collection.all_kinds
    has_files = any(lake.list_folders(f"processed/{collection.name}/kind={kind}") for kind in kinds)
    if not has_files:
        columns = ", ".join(f"null::{kind} as {name}" for name, kind in collection.view_columns.items())
        return f"select {columns} where false"
    pattern = lake.duckdb_path(partition_file("*", "*", "*", collection))
    source = f"read_parquet({sql_text(pattern)}, hive_partitioning = true, hive_types = {_HIVE_TYPES})"
    return f"select {', '.join(collection.view_columns)} from {source}"


def pending_batches(lake: Lake, site: str) -> list[int]:
    """Numbers of the batches that are written and not processed yet, in order."""
    state = lake.read_json(processing_state_file(site))
    if state is None:
        numbers = (batch_number(path) for path in lake.list_files(raw_folder(site)))
        return sorted(number for number in numbers if number is not None)
    pending: list[int] = []
    number = int(state["processed_batch"]) + 1
    while lake.exists(batch_file(site, number)):
        pending.append(number)
        number += 1
    return pending


def _process_site(site: Site, settings: Settings, lake: Lake, warehouse: duckdb.DuckDBPyConnection) -> SiteProcessing:
    started = time.monotonic()
    timezone, source = site_timezone(lake, site)
    if source == "default":
        logger.warning(
            "site %s: neither the configuration nor its profile names a time zone; days are counted in UTC", site.name
        )
    _register_site(warehouse, site, timezone, source)
    batches: list[BatchAccounting] = []
    partitions = days = 0
    for step in _steps(lake, site.name):
        with connect(settings) as engine:
            engine.execute("set temp_directory = ?", [str(settings.home / "tmp")])
            work = _SiteStep(engine, lake, site.name, timezone, step)
            work.load()
            accounting = work.accounting()
            changed_days = work.changed_days()
            _record(warehouse, site.name, accounting, changed_days)
            partitions += work.write_partitions()
        lake.write_json(
            processing_state_file(site.name),
            {"processed_batch": step[-1], "processed_at": datetime.now(UTC).isoformat()},
        )
        batches += accounting
        days += len(changed_days)
        logger.info(
            "site %s: %s documents processed, %d days touched",
            site.name,
            f"{sum(batch.documents for batch in batches):,}",
            days,
        )
    return SiteProcessing(
        site=site.name,
        timezone=timezone,
        timezone_source=source,
        batches=tuple(batches),
        partitions_written=partitions,
        days_changed=days,
        seconds=time.monotonic() - started,
    )


def _steps(lake: Lake, site: str) -> list[list[int]]:
    """Pending batches in groups of bounded size."""
    steps: list[list[int]] = []
    documents = 0
    for number in pending_batches(lake, site):
        rows = lake.parquet_rows(batch_file(site, number))
        if not steps or documents + rows > DOCUMENTS_PER_STEP:
            steps.append([])
            documents = 0
        steps[-1].append(number)
        documents += rows
    return steps


def _register_site(warehouse: duckdb.DuckDBPyConnection, site: Site, timezone: str, source: str) -> None:
    """Keep the site's row, and have all its days counted anew where what they depend on has changed."""
    warehouse.begin()
    held = warehouse.execute(
        "select timezone, sensor_interval_minutes from ops.sites where site = ?", [site.name]
    ).fetchone()
    if held is not None and held != (timezone, site.sensor_interval_minutes):
        logger.warning("site %s: time zone or sensor interval changed; all its days are counted anew", site.name)
        warehouse.execute("insert into ops.changes (site, reading_date) values (?, null)", [site.name])
    warehouse.execute(
        """
        insert into ops.sites values (?, ?, ?, ?, now())
        on conflict (site) do update set
            timezone = excluded.timezone,
            timezone_source = excluded.timezone_source,
            sensor_interval_minutes = excluded.sensor_interval_minutes,
            updated_at = excluded.updated_at
        """,
        [site.name, timezone, source, site.sensor_interval_minutes],
    )
    warehouse.commit()


def _record(
    warehouse: duckdb.DuckDBPyConnection, site: str, accounting: Sequence[BatchAccounting], days: Sequence[str]
) -> None:
    """Record what will change before it does: a run killed in between only has days counted twice."""
    warehouse.begin()
    for batch in accounting:
        # A batch that is processed again after a kill keeps its first accounting.
        warehouse.execute(
            "insert or ignore into ops.batches values (?, ?, ?, ?, ?, ?, ?, now())",
            [
                batch.site,
                batch.batch,
                batch.documents,
                batch.stored,
                batch.duplicates,
                batch.quarantined,
                batch.deletions,
            ],
        )
    if days:
        warehouse.execute(
            "insert into ops.changes (site, reading_date) select ?, unnest(?::date[])", [site, list(days)]
        )
    warehouse.commit()


class _SiteStep:
    """Some batches of one site on their way into its partitions."""

    def __init__(
        self, engine: duckdb.DuckDBPyConnection, lake: Lake, site: str, timezone: str, batches: Sequence[int]
    ) -> None:
        self._engine = engine
        self._lake = lake
        self._site = site
        self._timezone = timezone
        self._batches = batches

    def load(self) -> None:
        """Parse the batches, and find the rows that each partition holds before and after."""
        files = [self._lake.duckdb_path(batch_file(self._site, number)) for number in self._batches]
        self._engine.execute(f"create temp table incoming as {_incoming_sql(files, self._site, self._timezone)}")
        self._load_held()
        self._engine.execute(_RESULT_SQL)

    def accounting(self) -> list[BatchAccounting]:
        """What became of each batch's documents.

        Raises:
            LakeError: A document is neither stored, nor a duplicate, nor quarantined.
        """
        rows = self._engine.execute(_ACCOUNTING_SQL).fetchall()
        accounting = [BatchAccounting(self._site, *row) for row in rows]
        for batch in accounting:
            if batch.documents != batch.stored + batch.duplicates + batch.quarantined:
                raise LakeError(
                    f"Site {self._site}, batch {batch.batch}: {batch.documents} documents do not add up to "
                    f"{batch.stored} stored, {batch.duplicates} duplicates and {batch.quarantined} quarantined.",
                    "Nothing was written. This is a fault of the program; please report it.",
                )
        return accounting

    def changed_days(self) -> list[str]:
        """Local days (ISO) on which a reading appears, disappears or changes."""
        rows = self._engine.execute(_CHANGED_DAYS_SQL, {"timezone": self._timezone}).fetchall()
        return [row[0] for row in rows]

    def write_partitions(self) -> int:
        """Write each touched partition again, whole and atomically; returns their number."""
        touched = self._engine.execute(
            "select distinct kind, month from (select kind, month from held union all select kind, month from result)"
            " order by all"
        ).fetchall()
        columns = ", ".join(ENTRIES.columns)
        for kind, month in touched:
            target = partition_file(kind, self._site, month)
            where = f"where kind = {sql_text(kind)} and month = {sql_text(month)}"
            remaining = self._engine.execute(f"select count(*) from result {where}").fetchall()[0][0]
            if remaining:
                query = f"select {columns} from result {where} order by reading_timestamp, entry_id"
                self._lake.write_query(self._engine, target, query)
            else:
                self._lake.delete(target)
        return len(touched)

    def _load_held(self) -> None:
        """The rows held by the touched partitions, and by those that hold a document which has moved."""
        rows = self._engine.execute(
            "select distinct month from (select month from incoming union all select known_month from incoming)"
            " where month is not null"
        ).fetchall()
        months = {row[0] for row in rows}
        by_month: dict[str, list[str]] = {}
        for kind in ENTRIES.all_kinds:
            for month, file in partition_files(self._lake, kind, self._site).items():
                by_month.setdefault(month, []).append(file)
        touched = [file for month in sorted(months) for file in by_month.get(month, [])]
        self._create_held(touched)
        others = [file for month, files in by_month.items() if month not in months for file in files]
        moved = self._months_with_moved_documents(others)
        if moved:
            self._create_held(touched + [file for month in sorted(moved) for file in by_month[month]])

    def _create_held(self, files: Sequence[str]) -> None:
        columns = ", ".join(["kind", "month", *ENTRIES.columns])
        if files:
            paths = sql_list(self._lake.duckdb_path(file) for file in files)
            query = f"select {columns} from read_parquet({paths}, hive_partitioning = true, hive_types = {_HIVE_TYPES})"
        else:
            typed = {"kind": "varchar", "month": "varchar", **ENTRIES.columns}
            query = f"select {', '.join(f'null::{kind} as {name}' for name, kind in typed.items())} where false"
        self._engine.execute(f"create or replace temp table held as {query}")

    def _months_with_moved_documents(self, files: Sequence[str]) -> set[str]:
        """Months of the given partitions that hold a document of this step under another date.

        Ids begin with their time of creation, so the bounds let DuckDB skip all files of other times.
        """
        bounds = self._engine.execute(
            "select min(nightscout_id), max(nightscout_id) from incoming anti join held using (nightscout_id)"
        ).fetchall()[0]
        if not files or bounds[0] is None:
            return set()
        paths = sql_list(self._lake.duckdb_path(file) for file in files)
        rows = self._engine.execute(
            f"""
            select distinct month
            from read_parquet({paths}, hive_partitioning = true, hive_types = {_HIVE_TYPES})
            where nightscout_id between {sql_text(bounds[0])} and {sql_text(bounds[1])}
                and nightscout_id in (select nightscout_id from incoming anti join held using (nightscout_id))
            """
        ).fetchall()
        return {row[0] for row in rows}


def _incoming_sql(files: Sequence[str], site: str, timezone: str) -> str:
    """The documents of batch files, typed, each with its kind, its partition and why it is refused, if it is.

    The time of a reading is `date` (epoch milliseconds, number or text), else `mills`, else `dateString`,
    `date`, `created_at` or `sysTime` as text. Text without a zone counts by `utcOffset` (minutes), else by the
    site's zone.
    """
    zone = sql_text(timezone)
    return rf"""
    with landed as (
        select
            *,
            -- Half a surrogate pair in a text is JSON to Nightscout and an error to DuckDB.
            case when json_valid(document) then document else 'null' end as parsable,
        from read_parquet({sql_list(files)})
    ),

    documents as (
        select
            * exclude (parsable),
            json_type(parsable) = 'OBJECT' as is_object,
            json_transform(
                case when json_type(parsable) = 'OBJECT' then parsable else '{{}}' end,
                '{{"type": "VARCHAR", "date": "VARCHAR", "mills": "VARCHAR", "dateString": "VARCHAR",
                   "created_at": "VARCHAR", "sysTime": "VARCHAR", "utcOffset": "VARCHAR", "sgv": "VARCHAR",
                   "mbg": "VARCHAR", "direction": "VARCHAR", "device": "VARCHAR", "trend": "VARCHAR",
                   "noise": "VARCHAR", "filtered": "VARCHAR", "unfiltered": "VARCHAR", "rssi": "VARCHAR",
                   "slope": "VARCHAR", "intercept": "VARCHAR", "scale": "VARCHAR", "isValid": "VARCHAR"}}'
            ) as d,
            json_type(parsable, '$.date') in ('BIGINT', 'UBIGINT', 'DOUBLE', 'HUGEINT') as date_is_number
        from landed
    ),

    numbers as (
        select
            *,
            {_epoch_ms("d.date")} as date_as_ms,
            {_epoch_ms("d.mills")} as mills_as_ms,
            try_cast(try_cast(d."utcOffset" as double) as integer) as utc_offset_minutes,
            case
                when d.type is null and d.sgv is not null then 'sgv'
                when d.type is null and d.mbg is not null then 'mbg'
                else lower(d.type)
            end as type
        from documents
    ),

    timed as (
        select
            *,
            coalesce(
                make_timestamptz((coalesce(date_as_ms, mills_as_ms) * 1000)::bigint),
                {_text_time('d."dateString"', zone)},
                {_text_time("d.date", zone)},
                {_text_time("d.created_at", zone)},
                {_text_time('d."sysTime"', zone)}
            ) as reading_timestamp,
            trim(case type when 'sgv' then d.sgv when 'mbg' then d.mbg end) as glucose_text
        from numbers
    ),

    measured as (
        select
            *,
            case when isfinite(try_cast(glucose_text as double)) then try_cast(glucose_text as double) end as glucose
        from timed
    ),

    judged as (
        select
            *,
            case
                when operation = 'delete' then null
                when not is_object then 'not_a_json_object'
                when document_id like '{UNIDENTIFIED}%' then 'missing_id'
                when type is null or type not in ('sgv', 'mbg', 'cal') then 'unknown_type'
                when reading_timestamp is null then 'unreadable_timestamp'
                when reading_timestamp < timestamptz '{EARLIEST_READING} 00:00:00+00' then 'timestamp_too_old'
                when reading_timestamp > fetched_at + interval {FUTURE_TOLERANCE_MINUTES} minutes
                    then 'timestamp_in_future'
                when type = 'cal' then null
                when glucose_text is null then 'missing_glucose'
                when upper(glucose_text) in ('HIGH', 'LOW', 'HI', 'LO') then 'glucose_sentinel'
                when glucose is null then 'glucose_not_a_number'
                when glucose > 0 and glucose < {LOWEST_READING_MG_DL} then 'sensor_error_code'
                when glucose <= 0 or glucose > {HIGHEST_READING_MG_DL} then 'glucose_out_of_range'
            end as quarantine_reason
        from measured
    )

    select
        operation,
        case when quarantine_reason is not null then 'quarantined' else type end as kind,
        case
            when operation = 'upsert'
                then coalesce(strftime(reading_timestamp at time zone 'UTC', '%Y-%m'), 'undated')
        end as month,
        known_month,
        {sql_text(site + "/")} || document_id as entry_id,
        document_id as nightscout_id,
        reading_timestamp,
        case when quarantine_reason is null then glucose end as glucose_mg_dl,
        {_text("d.direction")} as direction,
        {_text("d.device")} as device,
        try_cast(try_cast(d.trend as double) as integer) as trend,
        try_cast(try_cast(d.noise as double) as integer) as noise,
        try_cast(d.filtered as double) as filtered,
        try_cast(d.unfiltered as double) as unfiltered,
        try_cast(try_cast(d.rssi as double) as integer) as rssi,
        utc_offset_minutes,
        try_cast(d.slope as double) as slope,
        try_cast(d.intercept as double) as intercept,
        try_cast(d.scale as double) as scale,
        coalesce(lower(d."isValid") = 'false', false) as is_deleted,
        false as is_duplicate,
        quarantine_reason,
        case when quarantine_reason is not null then document end as document,
        document_hash,
        batch,
        document_number,
        fetched_at,
        case when date_is_number then date_as_ms end as date_ms
    from judged
    """


def _epoch_ms(column: str) -> str:
    # Years 1900 to 9999: beyond, DuckDB's timestamps overflow. Milliseconds are what Nightscout counts in.
    number = f"try_cast({column} as double)"
    return f"case when {number} between -2208988800000 and 253402300799000 then floor({number}) end"


def _text_time(column: str, zone: str) -> str:
    has_zone = rf"regexp_matches({column}, '\d:\d\d.*(z|[+-]\d\d(:?\d\d)?)\s*$', 'i')"
    by_offset = f"(try_cast({column} as timestamp) - to_minutes(utc_offset_minutes)) at time zone 'UTC'"
    by_zone = f"timezone({zone}, try_cast({column} as timestamp))"
    return (
        f"case when {has_zone} then try_cast({column} as timestamptz)"
        f" when utc_offset_minutes is not null then {by_offset} else {by_zone} end"
    )


def _text(column: str) -> str:
    # Postgres takes no NUL in a text.
    return f"nullif(trim(replace({column}, chr(0), '')), '')"


# The rows that the touched partitions hold afterwards: per id the latest version. A deletion keeps the last
# content and forgets its hash, so that the same document counts as new should it come back. Of the rows of one
# kind, device and time only the latest counts.
_RESULT_SQL = f"""
create or replace temp table result as
with versions as (
    select 'upsert' as operation, {", ".join(["kind", "month", *ENTRIES.columns])} from held
    union all
    select operation, {", ".join(["kind", "month", *ENTRIES.columns])} from incoming
),

contents as (
    select * exclude (operation)
    from versions
    where operation = 'upsert'
    qualify row_number() over (partition by nightscout_id order by batch desc, document_number desc) = 1
),

deletions as (
    select nightscout_id, batch, document_number, fetched_at
    from versions
    where operation = 'delete'
    qualify row_number() over (partition by nightscout_id order by batch desc, document_number desc) = 1
),

latest as (
    select
        contents.* replace (
            case when is_gone then true else contents.is_deleted end as is_deleted,
            case when is_gone then null else contents.document_hash end as document_hash,
            case when is_gone then deletions.batch else contents.batch end as batch,
            case when is_gone then deletions.document_number else contents.document_number end as document_number,
            case when is_gone then deletions.fetched_at else contents.fetched_at end as fetched_at
        )
    from contents
    left join deletions on contents.nightscout_id = deletions.nightscout_id,
    lateral (
        select deletions.batch is not null
            and (deletions.batch, deletions.document_number) > (contents.batch, contents.document_number) as is_gone
    )
)

select
    * replace (
        kind <> 'quarantined' and not is_deleted and row_number() over (
            partition by kind, coalesce(device, ''), reading_timestamp, is_deleted
            order by batch desc, document_number desc
        ) > 1 as is_duplicate
    )
from latest
"""

_ACCOUNTING_SQL = """
with outcomes as (
    select
        incoming.batch,
        incoming.operation,
        case
            when incoming.operation = 'delete' then 'deletion'
            when held.document_hash is not distinct from incoming.document_hash then 'duplicate'
            when row_number() over (
                partition by incoming.nightscout_id, incoming.operation
                order by incoming.batch desc, incoming.document_number desc
            ) > 1 then 'duplicate'
            when incoming.kind = 'quarantined' then 'quarantined'
            when result.is_duplicate then 'duplicate'
            else 'stored'
        end as outcome
    from incoming
    left join held on incoming.nightscout_id = held.nightscout_id
    left join result on incoming.nightscout_id = result.nightscout_id
)

select
    batch,
    -- Counted apart from the outcomes: a join that loses or repeats a document shows as a sum that is off.
    (select count(*) from incoming where incoming.batch = outcomes.batch and operation = 'upsert'),
    count(*) filter (outcome = 'stored'),
    count(*) filter (outcome = 'duplicate'),
    count(*) filter (outcome = 'quarantined'),
    count(*) filter (outcome = 'deletion')
from outcomes
group by batch
order by batch
"""

# What makes a reading: a row that differs in none of these is the same reading.
_READING = "kind, reading_timestamp, glucose_mg_dl, direction, device, trend, noise, is_deleted, is_duplicate"

_CHANGED_DAYS_SQL = f"""
with changed as (
    (select nightscout_id, {_READING} from held except select nightscout_id, {_READING} from result)
    union all
    (select nightscout_id, {_READING} from result except select nightscout_id, {_READING} from held)
)

select distinct strftime(timezone($timezone, reading_timestamp), '%Y-%m-%d')
from changed
where kind <> 'quarantined'
order by all
"""
