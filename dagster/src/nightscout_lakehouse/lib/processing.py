"""From batch files to typed Parquet: one row per document, the latest version winning.

For each site and collection, the batches that are not processed yet are read by DuckDB, joined with the partitions they
touch, and only these are written again. What is refused goes to the kind `quarantined`, with
the reason and the original text. Before a partition is written, the site's local days that change are
recorded in `ops.changes`, so that a run killed at any point is made good by the next.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import duckdb
import pyarrow as pa

from nightscout_lakehouse.lib.errors import LakeError
from nightscout_lakehouse.lib.ingestion import site_timezone
from nightscout_lakehouse.lib.lake import (
    LAYOUT_FILE,
    Lake,
    Pruned,
    RawFile,
    batch_file,
    load_pruned,
    partition_file,
    partition_files,
    processing_state_file,
    raw_files,
    sql_list,
    sql_text,
)
from nightscout_lakehouse.lib.nightscout_collections import (
    COLLECTIONS,
    DEVICE_STATUS,
    ENTRIES,
    PROFILES,
    TREATMENTS,
    Collection,
)
from nightscout_lakehouse.lib.parse_device_status import device_status_sql
from nightscout_lakehouse.lib.parse_entries import entries_sql
from nightscout_lakehouse.lib.parse_profiles import profiles_sql
from nightscout_lakehouse.lib.parse_treatments import treatments_sql
from nightscout_lakehouse.lib.partition_counts import HIVE_TYPES, count_unknown_sites, counts_query, replace_counts
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect, open_warehouse

logger = logging.getLogger(__name__)

# Which version of a document it is, and where it came from: not part of what it says.
_BOOKKEEPING = {"document_hash", "batch", "document_number", "fetched_at", "first_fetched_at", "date_ms"}
_LAYOUT = 2
_FEW_DOCUMENTS = 10_000
_IDENTITY = {"device_status_id", "nightscout_id", "is_deleted", "is_duplicate", "quarantine_reason", "document"}


@dataclass(frozen=True)
class _Rules:
    """How the documents of one collection become rows.

    Attributes:
        incoming_sql: The documents of batch files, typed and judged, from files, site and time zone.
        same: Expressions that are equal for documents which say the same; of these only the latest counts.
        content: Columns that make a row what it is: one that differs in none of them has not changed.
        reaches_until: Until when a row has effect, beyond its own time; null for its own day alone.
    """

    incoming_sql: Callable[[Sequence[str], str, str], str]
    same: Sequence[str]
    content: Sequence[str]
    reaches_until: str = "null::timestamptz"


def _content(collection: Collection) -> list[str]:
    return ["kind", *(name for name in collection.columns if name not in _BOOKKEEPING)]


_RULES: Mapping[str, _Rules] = {
    ENTRIES.name: _Rules(
        incoming_sql=entries_sql,
        same=["kind", "coalesce(device, '')", "reading_timestamp"],
        content=[
            *("kind", "reading_timestamp", "glucose_mg_dl", "direction", "device", "trend", "noise"),
            *("is_deleted", "is_duplicate"),
        ],
    ),
    # Insulin or carbohydrates counted twice are the danger: two documents of one time and type with the same amounts
    # are one event, whatever else they say. Without amounts they must agree in what they say, too.
    TREATMENTS.name: _Rules(
        incoming_sql=treatments_sql,
        same=[
            *("kind", "treatment_timestamp", "event_type", "insulin_units", "carbs_g"),
            *(
                f"case when insulin_units is null and carbs_g is null then {column} end"
                for column in (
                    *("duration_minutes", "rate_units_per_hour", "rate_percent", "glucose", "notes"),
                    *("profile_name", "profile_percentage", "target_low", "target_high"),
                )
            ),
        ],
        content=_content(TREATMENTS),
        # A profile holds until the next one.
        reaches_until=(
            "case when event_type = 'Profile Switch' then now()"
            " when duration_minutes > 0 then treatment_timestamp + to_minutes(least(duration_minutes, 527040)::bigint)"
            " end"
        ),
    ),
    DEVICE_STATUS.name: _Rules(
        incoming_sql=device_status_sql,
        # A phone may send the loop's and the pump's state as two documents of one moment.
        same=[name for name in _content(DEVICE_STATUS) if name not in _IDENTITY],
        content=_content(DEVICE_STATUS),
    ),
    PROFILES.name: _Rules(
        incoming_sql=profiles_sql,
        same=["kind", "profile_timestamp", "created_timestamp", "default_profile_name", "store"],
        content=_content(PROFILES),
        reaches_until="now()",
    ),
}


def parsing_sql(collection: Collection) -> str:
    """The query that types the documents of a collection's batch files, for one site: to be read, not to be run."""
    return _RULES[collection.name].incoming_sql(["batch=….parquet"], "site", "UTC")


@dataclass(frozen=True)
class BatchAccounting:
    """What became of the documents of one batch: `documents == stored + duplicates + quarantined`."""

    collection: str
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
    bytes_written: int
    days_changed: int
    seconds: float

    @property
    def documents(self) -> int:
        """Documents in the batches."""
        return sum(batch.documents for batch in self.batches)

    @property
    def stored(self) -> int:
        """Documents that are now the current version of what they say."""
        return sum(batch.stored for batch in self.batches)

    @property
    def duplicates(self) -> int:
        """Documents that say nothing new."""
        return sum(batch.duplicates for batch in self.batches)

    @property
    def quarantined(self) -> int:
        """Documents that were refused."""
        return sum(batch.quarantined for batch in self.batches)


def process_sites(
    sites: Sequence[Site], settings: Settings, lake: Lake, collection: Collection = ENTRIES
) -> list[SiteProcessing]:
    """Process every pending batch of a collection, and show the result in the warehouse as the view of its name.

    Raises:
        LakeError: The lake cannot be read or written, or the accounting of a batch does not add up.
    """
    with open_warehouse(settings) as warehouse:
        return process_into(warehouse, sites, settings, lake, collection)


def process_into(
    warehouse: duckdb.DuckDBPyConnection,
    sites: Sequence[Site],
    settings: Settings,
    lake: Lake,
    collection: Collection = ENTRIES,
) -> list[SiteProcessing]:
    """What `process_sites` does, with a warehouse that is open."""
    upgrade_layout(settings, lake)
    with _engine(settings, warehouse) as engine:
        count_unknown_sites(warehouse, lake, collection, (site.name for site in sites))
        reports = [_process_site(site, settings, lake, warehouse, engine, collection) for site in sites]
        refresh_views(warehouse, lake, collection)
    return reports


def upgrade_layout(settings: Settings, lake: Lake) -> None:
    """Give files of the time before `first_fetched_at` this column, once; killed in between, it goes on where it was.

    What is not known any more counts as fetched first when the kept version was.
    """
    if (lake.read_json(LAYOUT_FILE) or {}).get("layout") == _LAYOUT:
        return
    with connect(settings) as engine:
        for collection in COLLECTIONS:
            for folder in lake.list_folders(f"processed/{collection.name}"):
                for file in lake.list_files(folder, recursive=True):
                    if not file.endswith(f"/{collection.file_name}"):
                        continue
                    source = f"read_parquet({sql_text(lake.duckdb_path(file))}, hive_partitioning = false)"
                    names = [row[0] for row in engine.execute(f"describe from {source}").fetchall()]
                    if "first_fetched_at" not in names:
                        columns = ", ".join(collection.columns).replace(
                            "first_fetched_at", "fetched_at as first_fetched_at"
                        )
                        lake.write_query(engine, file, f"select {columns} from {source}")
    lake.write_json(LAYOUT_FILE, {"layout": _LAYOUT})


def refresh_views(warehouse: duckdb.DuckDBPyConnection, lake: Lake, changed: Collection) -> None:
    """(Re)create the views `lake.nightscout_…` over the processed files, typed and empty where there are none.

    A view lists all files of its collection when it is made, so the others are only made where they are missing.
    """
    warehouse.execute("create schema if not exists lake")
    for collection in COLLECTIONS:
        if collection is changed or not _is_shown(warehouse, collection):
            warehouse.execute(f"create or replace view lake.{collection.name} as {_view_sql(lake, collection)}")


def _is_shown(warehouse: duckdb.DuckDBPyConnection, collection: Collection) -> bool:
    """Whether there is a view of a collection that has all its columns and can be read."""
    # To look for the columns among those of all views would open the files of every one.
    try:
        columns = warehouse.execute(f"describe lake.{collection.name}").fetchall()
    except duckdb.Error:
        return False
    return set(collection.columns) <= {column for column, *_ in columns}


def _view_sql(lake: Lake, collection: Collection) -> str:
    kinds = collection.all_kinds
    has_files = any(lake.list_folders(f"processed/{collection.name}/kind={kind}") for kind in kinds)
    if not has_files:
        columns = ", ".join(f"null::{kind} as {name}" for name, kind in collection.view_columns.items())
        return f"select {columns} where false"
    pattern = lake.duckdb_path(partition_file("*", "*", "*", collection))
    source = f"read_parquet({sql_text(pattern)}, hive_partitioning = true, hive_types = {HIVE_TYPES})"
    return f"select {', '.join(collection.view_columns)} from {source}"


def pending_files(lake: Lake, site: str, collection: Collection = ENTRIES) -> list[RawFile]:
    """Raw files that are written and not processed yet, in the order of their batches.

    Raises:
        LakeError: Among these are files that lie in an archive.
    """
    state = lake.read_json(processing_state_file(site, collection))
    pruned = load_pruned(lake, site, collection)
    if pruned is not None and (state is None or int(state["processed_batch"]) < pruned.until):
        raise _without_its_beginning(lake, site, collection, pruned)
    if state is None:
        return raw_files(lake, site, collection)
    number = int(state["processed_batch"]) + 1
    if number <= int(state.get("rebuilt_until", 0)):
        return [file for file in raw_files(lake, site, collection) if file.last >= number]
    # Compaction leaves alone what is not processed, so no list of all files is needed.
    pending: list[RawFile] = []
    while lake.exists(path := batch_file(site, number, collection)):
        pending.append(RawFile(path, number, number))
        number += 1
    return pending


def _without_its_beginning(lake: Lake, site: str, collection: Collection, pruned: Pruned) -> LakeError:
    return LakeError(
        f"What was processed of {collection.name} of site {site} is gone from {lake.url}, and the raw files of its "
        f"batches 1 to {pruned.until} lie in the archive {pruned.archive}: without them its history would have no "
        "beginning.",
        f"Nothing was processed. Run `lakehouse prune {pruned.archive} --bring-back`, then try again.",
    )


def pending_batches(lake: Lake, site: str, collection: Collection = ENTRIES) -> list[int]:
    """Numbers of the batches that are written and not processed yet, in order."""
    return _numbers(pending_files(lake, site, collection))


def all_batches(lake: Lake, site: str, collection: Collection = ENTRIES) -> list[int]:
    """Numbers of all the batches of a site, in order."""
    return _numbers(raw_files(lake, site, collection))


def _numbers(files: Sequence[RawFile]) -> list[int]:
    return [number for file in files for number in range(file.first, file.last + 1)]


def _process_site(
    site: Site,
    settings: Settings,
    lake: Lake,
    warehouse: duckdb.DuckDBPyConnection,
    engine: duckdb.DuckDBPyConnection,
    collection: Collection,
) -> SiteProcessing:
    started = time.monotonic()
    timezone, source = site_timezone(lake, site)
    if source == "default" and collection is ENTRIES:
        logger.warning(
            "site %s: neither the configuration nor its profile names a time zone; days are counted in UTC", site.name
        )
    _register_site(warehouse, site, timezone, source)
    batches: list[BatchAccounting] = []
    partitions = size_bytes = days = 0
    pending = pending_files(lake, site.name, collection)
    if pending:
        _check_beginning(lake, site.name, collection)
    # Where files of several batches are read again, a run that is killed goes on among them.
    until = {"rebuilt_until": pending[-1].last} if any(file.first != file.last for file in pending) else {}
    documents = {file: lake.parquet_rows(file.path) for file in pending}
    for step in _steps(list(documents.items()), collection.documents_per_step):
        files = [lake.duckdb_path(file.path) for file in step]
        with _step_engine(engine, settings, files, sum(documents[file] for file in step)) as of_step:
            work = _SiteStep(of_step, lake, site.name, timezone, files, collection)
            work.load()
            accounting = work.accounting()
            changed_days = work.changed_days()
            _record(warehouse, site.name, accounting, changed_days, work)
            written = work.write_partitions()
        partitions += len(written)
        size_bytes += sum(lake.size_bytes(file) for file in written)
        lake.write_json(
            processing_state_file(site.name, collection),
            {"processed_batch": step[-1].last, "processed_at": datetime.now(UTC).isoformat(), **until},
        )
        batches += accounting
        days += len(changed_days)
        logger.info(
            "site %s: %s documents of %s processed, %d days touched",
            site.name,
            f"{sum(batch.documents for batch in batches):,}",
            collection.api_v3_name,
            days,
        )
    return SiteProcessing(
        site=site.name,
        timezone=timezone,
        timezone_source=source,
        batches=tuple(batches),
        partitions_written=partitions,
        bytes_written=size_bytes,
        days_changed=days,
        seconds=time.monotonic() - started,
    )


def _check_beginning(lake: Lake, site: str, collection: Collection) -> None:
    """Refuse to go on with a history whose files were removed, where it cannot be built again from the raw ones.

    Whatever the server deletes, its row stays and says so: a history that had documents always has a file.
    """
    pruned = load_pruned(lake, site, collection)
    if pruned is None or not any(stretch.documents for stretch in pruned.stretches):
        return
    if not any(partition_files(lake, kind, site, collection) for kind in collection.all_kinds):
        raise _without_its_beginning(lake, site, collection, pruned)


def build_anew(
    settings: Settings,
    target: Lake,
    site: str,
    timezone: str,
    files: Sequence[tuple[str, int]],
    collection: Collection = ENTRIES,
) -> None:
    """Process raw files, wherever they lie, into another lake that has nothing of the site: to compare, not to use.

    Neither the warehouse nor any state learns of it.

    Args:
        settings: Limits of memory, and the keys of a bucket.
        target: Where the processed files go.
        site: Name of the site.
        timezone: The zone its days are counted in.
        files: Each raw file as DuckDB opens it and its number of rows, in the order of their batches.
        collection: Whose documents they are.

    Raises:
        LakeError: A file cannot be read or written, or the accounting of a batch does not add up.
    """
    done = 0
    documents = dict(files)
    with connect(settings) as engine:
        for step in _steps(files, collection.documents_per_step):
            with _step_engine(engine, settings, step, sum(documents[file] for file in step)) as of_step:
                work = _SiteStep(of_step, target, site, timezone, step, collection)
                work.load()
                done += sum(batch.documents for batch in work.accounting())
                work.write_partitions()
            logger.info("site %s: %s documents of %s built anew", site, f"{done:,}", collection.api_v3_name)


@contextmanager
def _engine(settings: Settings, warehouse: duckdb.DuckDBPyConnection) -> Iterator[duckdb.DuckDBPyConnection]:
    """What reads and writes the lake: the warehouse, or a DuckDB of this machine where that is elsewhere."""
    if not settings.is_warehouse_remote:
        yield warehouse
        return
    with connect(settings) as engine:
        yield engine


@contextmanager
def _step_engine(
    engine: duckdb.DuckDBPyConnection, settings: Settings, files: Sequence[str], documents: int
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection for one step, whose tables end with it: its files as DuckDB opens them, and their documents.

    A few documents take one thread half the CPU time that they take eight, and no longer. Files of a bucket are read by
    several at once, since they are waited for.
    """
    is_remote = any(file.startswith("s3://") for file in files)
    is_little = documents <= _FEW_DOCUMENTS and not is_remote and not settings.duckdb_threads
    with engine.cursor() as of_step:
        if is_little:
            of_step.execute("set threads = 1")
        try:
            yield of_step
        finally:
            if is_little:
                # Of all that is open there, and not by what may have failed just now.
                engine.execute("reset threads")


_File = TypeVar("_File")


def _steps(files: Sequence[tuple[_File, int]], most_rows: int) -> list[list[_File]]:
    """Files with their numbers of rows in groups of bounded size."""
    steps: list[list[_File]] = []
    documents = 0
    for file, rows in files:
        if not steps or documents + rows > most_rows:
            steps.append([])
            documents = 0
        steps[-1].append(file)
        documents += rows
    return steps


def _register_site(warehouse: duckdb.DuckDBPyConnection, site: Site, timezone: str, source: str) -> None:
    """Keep the site's row, and have all its days counted anew where what they depend on has changed."""
    held = warehouse.execute(
        "select timezone, sensor_interval_minutes, timezone_source from ops.sites where site = ?", [site.name]
    ).fetchone()
    if held == (timezone, site.sensor_interval_minutes, source):
        return
    warehouse.begin()
    if held is not None and held[:2] != (timezone, site.sensor_interval_minutes):
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
    warehouse: duckdb.DuckDBPyConnection,
    site: str,
    accounting: Sequence[BatchAccounting],
    days: Sequence[str],
    work: "_SiteStep",
) -> None:
    """Record what will change before it does: a run killed in between only has days counted twice."""
    warehouse.begin()
    for batch in accounting:
        # A batch that is processed again after a kill keeps its first accounting.
        warehouse.execute(
            "insert or ignore into ops.batches values (?, ?, ?, ?, ?, ?, ?, ?, now())",
            [
                batch.collection,
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
    replace_counts(warehouse, work.collection, site, work.touched_partitions(), work.counts())
    warehouse.commit()


class _SiteStep:
    """Some batches of one site and collection on their way into its partitions."""

    def __init__(
        self,
        engine: duckdb.DuckDBPyConnection,
        lake: Lake,
        site: str,
        timezone: str,
        files: Sequence[str],
        collection: Collection,
    ) -> None:
        self._engine = engine
        self._lake = lake
        self._site = site
        self._timezone = timezone
        self._files = files
        self._collection = collection
        self._rules = _RULES[collection.name]

    def load(self) -> None:
        """Parse the batches, and find the rows that each partition holds before and after."""
        incoming = self._rules.incoming_sql(self._files, self._site, self._timezone)
        self._engine.execute(f"create temp table incoming as {incoming}")
        self._load_held()
        self._engine.execute(_result_sql(self._collection, self._rules))

    def accounting(self) -> list[BatchAccounting]:
        """What became of each batch's documents.

        Raises:
            LakeError: A document is neither stored, nor a duplicate, nor quarantined.
        """
        rows = self._engine.execute(_ACCOUNTING_SQL).fetchall()
        accounting = [BatchAccounting(self._collection.name, self._site, *row) for row in rows]
        for batch in accounting:
            if batch.documents != batch.stored + batch.duplicates + batch.quarantined:
                raise LakeError(
                    f"Site {self._site}, {batch.collection}, batch {batch.batch}: {batch.documents} "
                    f"documents do not add up to {batch.stored} stored, {batch.duplicates} duplicates and "
                    f"{batch.quarantined} quarantined.",
                    "Nothing was written. This is a fault of the program; please report it.",
                )
        return accounting

    def changed_days(self) -> list[str]:
        """Local days (ISO) on which a row appears, disappears or changes, as far as it has effect."""
        query = _changed_days_sql(self._collection, self._rules)
        rows = self._engine.execute(query, {"timezone": self._timezone}).fetchall()
        return [row[0] for row in rows]

    @property
    def collection(self) -> Collection:
        """Whose documents they are."""
        return self._collection

    def touched_partitions(self) -> list[tuple[str, str]]:
        """Kind and month of every partition that is written again."""
        return self._engine.execute(
            "select distinct kind, month from (select kind, month from held union all select kind, month from result)"
            " order by all"
        ).fetchall()

    def counts(self) -> pa.Table:
        """What these partitions hold afterwards, counted."""
        return self._engine.execute(counts_query(self._collection, "result")).to_arrow_table()

    def write_partitions(self) -> list[str]:
        """Write each touched partition again, whole and atomically; returns their files, also of those now empty."""
        columns = ", ".join(self._collection.columns)
        order = f"{self._collection.time_column}, {self._collection.id_column}"
        targets = []
        for kind, month in self.touched_partitions():
            target = partition_file(kind, self._site, month, self._collection)
            targets.append(target)
            where = f"where kind = {sql_text(kind)} and month = {sql_text(month)}"
            remaining = self._engine.execute(f"select count(*) from result {where}").fetchall()[0][0]
            if remaining:
                query = f"select {columns} from result {where} order by {order}"
                self._lake.write_query(self._engine, target, query)
            else:
                self._lake.delete(target)
        return targets

    def _load_held(self) -> None:
        """The rows held by the touched partitions, and by those that hold a document which has moved."""
        rows = self._engine.execute(
            "select distinct month from (select month from incoming union all select known_month from incoming)"
            " where month is not null"
        ).fetchall()
        months = {row[0] for row in rows}
        by_month: dict[str, list[str]] = {}
        for kind in self._collection.all_kinds:
            for month, file in partition_files(self._lake, kind, self._site, self._collection).items():
                by_month.setdefault(month, []).append(file)
        touched = [file for month in sorted(months) for file in by_month.get(month, [])]
        self._create_held(touched)
        others = [file for month, files in by_month.items() if month not in months for file in files]
        moved = self._months_with_moved_documents(others)
        if moved:
            self._create_held(touched + [file for month in sorted(moved) for file in by_month[month]])

    def _create_held(self, files: Sequence[str]) -> None:
        columns = ", ".join(["kind", "month", *self._collection.columns])
        if files:
            paths = sql_list(self._lake.duckdb_path(file) for file in files)
            query = f"select {columns} from read_parquet({paths}, hive_partitioning = true, hive_types = {HIVE_TYPES})"
        else:
            typed = {"kind": "varchar", "month": "varchar", **self._collection.columns}
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
            from read_parquet({paths}, hive_partitioning = true, hive_types = {HIVE_TYPES})
            where nightscout_id between {sql_text(bounds[0])} and {sql_text(bounds[1])}
                and nightscout_id in (select nightscout_id from incoming anti join held using (nightscout_id))
            """
        ).fetchall()
        return {row[0] for row in rows}


# The rows that the touched partitions hold afterwards: per id the latest version. A deletion keeps the last
# content and forgets its hash, so that the same document counts as new should it come back. Of the rows that say the
# same only the latest counts.
def _result_sql(collection: Collection, rules: _Rules) -> str:
    columns = ", ".join(["kind", "month", *collection.columns])
    return f"""
create or replace temp table result as
with versions as (
    select 'upsert' as operation, {columns} from held
    union all
    select operation, {columns} from incoming
),

contents as (
    select
        * exclude (operation)
        -- However often it comes again: when any version of it came first.
        replace (min(first_fetched_at) over (partition by nightscout_id) as first_fetched_at)
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
            partition by {", ".join(rules.same)}, is_deleted
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
            -- The same text can be judged anew: a reading is no longer in the future. So what leaves quarantine in a
            -- retry is stored, and what stays there is a duplicate: it is counted as quarantined once, when it came.
            when held.document_hash is not distinct from incoming.document_hash and held.kind = incoming.kind
                then 'duplicate'
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


def _changed_days_sql(collection: Collection, rules: _Rules) -> str:
    columns = ", ".join(["nightscout_id", *rules.content])
    return f"""
with changed as (
    (select {columns} from held except select {columns} from result)
    union all
    (select {columns} from result except select {columns} from held)
),

spans as (
    select
        timezone($timezone, {collection.time_column})::date as first_day,
        timezone($timezone, greatest({collection.time_column}, {rules.reaches_until}))::date as last_day
    from changed
    where kind <> 'quarantined'
),

days as (
    select distinct unnest(generate_series(first_day::timestamp, last_day::timestamp, interval 1 day)) as day
    from spans
)

select strftime(day, '%Y-%m-%d') from days order by all
"""
