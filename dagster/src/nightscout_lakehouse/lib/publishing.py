"""From the warehouse to the serving database: the rows that changed, in one Postgres transaction.

The warehouse's `ops.changes` names the sites and local days that changed; `ops.publish_state` in Postgres says how
far that was published, and from which warehouse. Only rows of the days in between are compared, and only those that
differ are written, so Postgres has little to clean up afterwards. Whatever does not fit (another warehouse, another
number of rows, another set of columns) makes the publish a full one. A reader sees the state before or after.
"""

import io
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any, Final, Literal

import duckdb
from psycopg2 import ProgrammingError, errors, sql
from psycopg2.extensions import connection as PsycopgConnection  # noqa: N812 - psycopg2 spells its class in lower case
from psycopg2.extensions import cursor as PsycopgCursor  # noqa: N812

from nightscout_lakehouse.lib.errors import LakeError, ServingDatabaseError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection

logger = getLogger(__name__)

LOCK_TIMEOUT_SECONDS: Final = 300
ANALYZE_FROM_ROWS: Final = 10_000
_ROWS_PER_FETCH: Final = 20_000
# The models compute a changed day with those beside it (dbt/macros/incremental_by_arrival.sql).
_NEIGHBOUR_DAYS: Final = 1
_GRAIN_COLUMNS: Final = {"day": {"site", "reading_date"}, "site": {"site"}, "whole": set[str]()}


@dataclass(frozen=True)
class PublishedTable:
    """A table of the schema `curated`, which has the same name and columns on both sides.

    Attributes:
        name: Its name.
        key: Primary key.
        grain: What is compared when something changed: `day` (the changed days and those beside them; needs the columns
            `site` and `reading_date`), `site` (all rows of the changed sites; needs `site`), or `whole` (every row).
        indexes: Further indexes.
    """

    name: str
    key: tuple[str, ...]
    grain: Literal["day", "site", "whole"]
    indexes: tuple[tuple[str, ...], ...] = ()


PUBLISHED_TABLES: Final = (
    PublishedTable("dim_site", ("site",), grain="whole"),
    PublishedTable("dim_glucose_date", ("site", "reading_date"), grain="day"),
    # The index finds the rows of a changed day here, and for the marts that are built from it.
    PublishedTable("fact_glucose_readings", ("entry_id",), grain="day", indexes=(("site", "reading_date"),)),
    PublishedTable("fact_treatments", ("treatment_id",), grain="day", indexes=(("site", "reading_date"),)),
    PublishedTable("fact_daily_insulin", ("site", "reading_date"), grain="day"),
    PublishedTable("fact_meals", ("meal_id",), grain="day", indexes=(("site", "reading_date"),)),
    PublishedTable("fact_loop_status", ("site", "slot_timestamp"), grain="day", indexes=(("site", "reading_date"),)),
    PublishedTable("fact_glucose_profile", ("site", "period", "grid_minutes", "minute_of_day"), grain="site"),
    PublishedTable("fact_glucose_patterns", ("site", "pattern", "pattern_key", "metric"), grain="site"),
    PublishedTable("fact_glucose_episodes", ("episode_id",), grain="site", indexes=(("site", "start_date"),)),
    PublishedTable("fact_sensor_gaps", ("gap_id",), grain="site", indexes=(("site", "start_date"),)),
    PublishedTable("dim_sensor_session", ("site", "device", "session_start"), grain="site"),
    PublishedTable(
        "fact_glucose_metrics",
        ("site", "period", "metric", "period_end_date", "day_part", "readings_used"),
        grain="site",
    ),
    PublishedTable("fact_glucose_comparison", ("site", "readings_used", "metric"), grain="site"),
)


@dataclass(frozen=True)
class TableReport:
    """What a publish did to one table, in rows.

    Attributes:
        table: Its name.
        considered: Rows that were compared.
        inserted: New rows.
        updated: Rows of which some column differed.
        deleted: Rows that the warehouse no longer has.
        bytes_sent: Size of what went to Postgres.
        is_recreated: Whether the table was made anew, since its columns changed.
    """

    table: str
    considered: int
    inserted: int
    updated: int
    deleted: int
    bytes_sent: int
    is_recreated: bool = False

    @property
    def unchanged(self) -> int:
        """Rows that were compared and left alone."""
        return self.considered - self.inserted - self.updated


@dataclass(frozen=True)
class PublishReport:
    """What a publish did.

    Attributes:
        is_full: Whether everything was compared, not only the changed days.
        reason: Why it was a full one; empty if it was not.
        change_seq: How far the warehouse's changes are published now.
        tables: One report per table; empty if there was nothing to publish.
        seconds: How long it took.
    """

    is_full: bool
    reason: str
    change_seq: int
    tables: tuple[TableReport, ...]
    seconds: float

    @property
    def rows_written(self) -> int:
        """Rows inserted, updated or deleted, over all tables."""
        return sum(table.inserted + table.updated + table.deleted for table in self.tables)

    @property
    def bytes_sent(self) -> int:
        """Size of what went to Postgres, over all tables."""
        return sum(table.bytes_sent for table in self.tables)


@dataclass(frozen=True)
class _Column:
    name: str
    duckdb_type: str
    postgres_type: str


@dataclass(frozen=True)
class _Source:
    """What the warehouse has to offer."""

    warehouse_id: str
    change_seq: int
    columns: dict[str, tuple[_Column, ...]]
    row_counts: dict[str, int]


@dataclass(frozen=True)
class _Target:
    """What Postgres has; the columns with their types, None for a table that does not exist."""

    warehouse_id: str | None
    change_seq: int
    columns: dict[str, tuple[tuple[str, str], ...] | None]
    row_counts: dict[str, int]


def publish(
    warehouse: duckdb.DuckDBPyConnection,
    connection: PostgresConnection,
    *,
    full: bool = False,
    tables: Sequence[PublishedTable] = PUBLISHED_TABLES,
) -> PublishReport:
    """Bring the published tables up to what the warehouse's models hold.

    Args:
        warehouse: The open warehouse; not written to.
        connection: The owner's connection to a database that `prepare_database` has seen.
        full: Compare every row, whatever changed.
        tables: What to publish.

    Raises:
        LakeError: A model is missing in the warehouse, or has a column that Postgres cannot hold.
        ServingDatabaseError: Postgres fails, or a model's key is not unique; nothing was changed.
    """
    began = time.monotonic()
    # Of its own, so that all reads are of one snapshot, and what is temporary goes away with it.
    reader = warehouse.cursor()
    try:
        reader.execute("begin transaction")
        source = _read_source(reader, tables)
        with connection.transaction() as opened, opened.cursor() as cursor:
            cursor.execute(f"set lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
            target = _read_target(cursor, tables)
            if not full and _is_up_to_date(source, target):
                return PublishReport(False, "", source.change_seq, (), time.monotonic() - began)
            # One publisher at a time. A table's lock, since anybody who can log in can hold an advisory lock.
            cursor.execute("lock table ops.publish_state in exclusive mode")
            target = _read_target(cursor, tables)
            reason = "asked for" if full else _reason_for_full(source, target)
            scope = None if reason else _changed_days(reader, target.change_seq, source.change_seq)
            reports = tuple(_publish_table(reader, opened, table, source, target, scope) for table in tables)
            if not reason and _counts_after(target, reports) != source.row_counts:
                # What is there is not what this bookkeeping believes: compare everything, still in this transaction.
                reason = "the number of rows did not match the warehouse"
                logger.info("Publishing everything again: %s.", reason)
                found = _read_target(cursor, tables)
                reports = tuple(_publish_table(reader, opened, table, source, found, None) for table in tables)
            _write_state(cursor, source)
        return PublishReport(bool(reason), reason, source.change_seq, reports, time.monotonic() - began)
    finally:
        reader.close()


def published_position(connection: PostgresConnection) -> str:
    """What the published tables hold, as one text: from which warehouse, up to which change, and since when."""
    with connection.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("select warehouse_id, change_seq, published_at from ops.publish_state")
        return ":".join(str(part) for part in cursor.fetchone() or ("nothing",))


# What is on either side


def _read_source(reader: duckdb.DuckDBPyConnection, tables: Sequence[PublishedTable]) -> _Source:
    names = [table.name for table in tables]
    # A change is published once every model has taken it in; a model without a watermark is always built whole.
    row = reader.execute(
        """
        with
            arrived as (select coalesce(max(change_seq), 0) as change_seq from ops.changes),
            taken_in as (select min(change_seq) as change_seq from ops.watermarks where list_contains(?, consumer))
        select (select warehouse_id from ops.info), least(arrived.change_seq, taken_in.change_seq)
        from arrived, taken_in
        """,
        [names],
    ).fetchone()
    if row is None or row[0] is None:
        raise LakeError("The warehouse has no bookkeeping yet.", "Run the pipeline first.")
    columns = {table.name: _describe(reader, table) for table in tables}
    counts = " union all ".join(f"select '{name}', count(*) from curated.{_duck(name)}" for name in names)
    return _Source(str(row[0]), int(row[1]), columns, dict(reader.execute(counts).fetchall()))


def _describe(reader: duckdb.DuckDBPyConnection, table: PublishedTable) -> tuple[_Column, ...]:
    try:
        rows = reader.execute(f"describe select * from curated.{_duck(table.name)}").fetchall()
    except duckdb.CatalogException:
        raise LakeError(f"The warehouse has no table curated.{table.name}.", "Run `dbt build` first.") from None
    columns = tuple(_Column(name, kind, postgres_type(kind, f"{table.name}.{name}")) for name, kind, *_ in rows)
    needed = set(table.key) | _GRAIN_COLUMNS[table.grain]
    missing = sorted(needed - {column.name for column in columns})
    if missing:
        raise LakeError(f"curated.{table.name} lacks the column {', '.join(missing)}, which publishing needs.")
    return columns


def _read_target(cursor: PsycopgCursor, tables: Sequence[PublishedTable]) -> _Target:
    try:
        cursor.execute(
            """
            select
                (select warehouse_id from ops.publish_state),
                (select change_seq from ops.publish_state),
                (select coalesce(json_object_agg(table_name, row_count), '{}') from ops.published_tables),
                (
                    select json_object_agg(
                        wanted.name,
                        (
                            select json_agg(json_build_array(attname, format_type(atttypid, atttypmod)) order by attnum)
                            from pg_attribute
                            where attrelid = to_regclass(wanted.name) and attnum > 0 and not attisdropped
                        )
                    )
                    from unnest(%s) as wanted (name)
                )
            """,
            ([f"curated.{table.name}" for table in tables],),
        )
    except errors.UndefinedTable:
        raise ServingDatabaseError("The database is not prepared for publishing.", "Run the pipeline first.") from None
    warehouse_id, change_seq, counts, columns = cursor.fetchone() or (None, None, {}, {})
    found = {name.removeprefix("curated."): rows for name, rows in columns.items()}
    return _Target(
        warehouse_id,
        change_seq or 0,
        {name: None if rows is None else tuple((row[0], row[1]) for row in rows) for name, rows in found.items()},
        counts,
    )


def _is_up_to_date(source: _Source, target: _Target) -> bool:
    # The numbers of rows too: a new site without readings is no change of any day.
    return (
        not _reason_for_full(source, target)
        and source.change_seq == target.change_seq
        and source.row_counts == target.row_counts
    )


def _reason_for_full(source: _Source, target: _Target) -> str:
    if target.warehouse_id is None:
        return "nothing was published before"
    if target.warehouse_id != source.warehouse_id:
        return "the warehouse is another one"
    if target.change_seq > source.change_seq:
        return "the warehouse is older than what was published"
    differing = [name for name in source.columns if not _same_columns(source, target, name)]
    return f"the columns of {', '.join(differing)} changed" if differing else ""


def _same_columns(source: _Source, target: _Target, name: str) -> bool:
    wanted = {(column.name, column.postgres_type) for column in source.columns[name]}
    return set(target.columns[name] or ()) == wanted


def _counts_after(target: _Target, reports: Sequence[TableReport]) -> dict[str, int]:
    return {
        report.table: target.row_counts.get(report.table, 0) + report.inserted - report.deleted for report in reports
    }


def _write_state(cursor: PsycopgCursor, source: _Source) -> None:
    cursor.execute(
        """
        insert into ops.publish_state (warehouse_id, change_seq, published_at) values (%s, %s, now())
        on conflict (is_only_row) do update
        set warehouse_id = excluded.warehouse_id, change_seq = excluded.change_seq, published_at = now()
        """,
        (source.warehouse_id, source.change_seq),
    )
    for name, count in source.row_counts.items():
        cursor.execute(
            """
            insert into ops.published_tables (table_name, row_count) values (%s, %s)
            on conflict (table_name) do update set row_count = excluded.row_count
            """,
            (name, count),
        )


# What changed


@dataclass(frozen=True)
class _Scope:
    """Sites of which everything is compared, and single days of others."""

    sites: list[str]
    days: list[tuple[str, Any]]


def _changed_days(reader: duckdb.DuckDBPyConnection, after: int, until: int) -> _Scope:
    rows = reader.execute(
        "select distinct site, reading_date from ops.changes where change_seq > ? and change_seq <= ?", [after, until]
    ).fetchall()
    sites = {site for site, day in rows if day is None}
    return _Scope(sorted(sites), sorted((site, day) for site, day in rows if site not in sites))


def _set_scope(reader: duckdb.DuckDBPyConnection, cursor: PsycopgCursor, table: PublishedTable, scope: _Scope) -> None:
    """Make the temporary tables `publish_sites` and `publish_days`, the same on both sides."""
    if table.grain == "site":
        scope = _Scope(sorted({*scope.sites, *(site for site, _ in scope.days)}), [])
    reader.execute("create or replace temp table publish_sites as select unnest(?::varchar[]) as site", [scope.sites])
    reader.execute(
        """
        create or replace temp table publish_days as
        select distinct changed.site, (changed.day + around.days::integer)::date as reading_date
        from (select unnest(?::varchar[]) as site, unnest(?::date[]) as day) as changed
        cross join range(?, ?) as around (days)
        """,
        [
            [site for site, _ in scope.days],
            [day for _, day in scope.days],
            -_NEIGHBOUR_DAYS,
            _NEIGHBOUR_DAYS + 1,
        ],
    )
    cursor.execute(
        """
        drop table if exists pg_temp.publish_sites, pg_temp.publish_days;
        create temp table publish_sites (site text primary key) on commit drop;
        create temp table publish_days (site text, reading_date date, primary key (site, reading_date)) on commit drop;
        """
    )
    _copy(reader, cursor, "select site from publish_sites", ["site"], ["VARCHAR"], sql.Identifier("publish_sites"))
    _copy(
        reader,
        cursor,
        "select site, reading_date from publish_days",
        ["site", "reading_date"],
        ["VARCHAR", "DATE"],
        sql.Identifier("publish_days"),
    )
    cursor.execute("analyze publish_sites, publish_days")


# Bringing one table over


def _publish_table(
    reader: duckdb.DuckDBPyConnection,
    opened: PsycopgConnection,
    table: PublishedTable,
    source: _Source,
    target: _Target,
    scope: _Scope | None,
) -> TableReport:
    columns = source.columns[table.name]
    try:
        with opened.cursor() as cursor:
            if not _same_columns(source, target, table.name):
                return _recreate(reader, cursor, table, columns, is_new=target.columns[table.name] is None)
            if table.grain == "whole":
                scope = None
            if scope is not None:
                _set_scope(reader, cursor, table, scope)
            return _merge(reader, cursor, table, columns, is_whole=scope is None)
    except errors.UniqueViolation:
        raise ServingDatabaseError(
            f"curated.{table.name} of the warehouse has two rows with the same {', '.join(table.key)}.",
            "Nothing was published. Rebuild the models with `dbt build --full-refresh`.",
        ) from None
    except errors.NotNullViolation as error:
        raise ServingDatabaseError(
            f"curated.{table.name} of the warehouse has an empty {error.diag.column_name}.", "Nothing was published."
        ) from None


def _merge(
    reader: duckdb.DuckDBPyConnection,
    cursor: PsycopgCursor,
    table: PublishedTable,
    columns: Sequence[_Column],
    *,
    is_whole: bool,
) -> TableReport:
    names = [column.name for column in columns]
    target = sql.Identifier("curated", table.name)
    cursor.execute(
        sql.SQL(
            "drop table if exists pg_temp.publish_staged; create temp table publish_staged on commit drop as "
            "select {names} from {target} with no data"
        ).format(names=_names(names), target=target)
    )
    rows, size = _copy(
        reader,
        cursor,
        _selection(table, names, is_whole=is_whole),
        names,
        [column.duckdb_type for column in columns],
        sql.Identifier("publish_staged"),
    )
    cursor.execute("analyze publish_staged")
    # Three statements where `insert … on conflict do update` would be one: that one locks, so writes to, every row
    # it compares, even those it leaves alone.
    deleted = _delete_gone(cursor, table, target, is_whole=is_whole)
    updated = _update_changed(cursor, table, target, names)
    cursor.execute(
        sql.SQL(
            "insert into {target} ({names}) select {names} from publish_staged as staged "
            "where not exists (select from {target} as published where {same_key})"
        ).format(target=target, names=_names(names), same_key=_same_key(table))
    )
    inserted = cursor.rowcount
    if inserted + updated + deleted >= ANALYZE_FROM_ROWS:
        cursor.execute(sql.SQL("analyze {}").format(target))
    return TableReport(table.name, rows, inserted, updated, deleted, size)


def _delete_gone(cursor: PsycopgCursor, table: PublishedTable, target: sql.Identifier, *, is_whole: bool) -> int:
    gone = sql.SQL("not exists (select from publish_staged as staged where {})").format(_same_key(table))
    if is_whole:
        cursor.execute(sql.SQL("delete from {} as published where {}").format(target, gone))
        return cursor.rowcount
    deleted = 0
    # Two statements, since an `or` between them could not use the index.
    scopes = [("publish_sites", "scope.site = published.site")]
    if table.grain == "day":
        scopes.append(("publish_days", "scope.site = published.site and scope.reading_date = published.reading_date"))
    for using, condition in scopes:
        cursor.execute(
            sql.SQL("delete from {} as published using {} as scope where {} and {}").format(
                target, sql.Identifier(using), sql.SQL(condition), gone
            )
        )
        deleted += cursor.rowcount
    return deleted


def _update_changed(cursor: PsycopgCursor, table: PublishedTable, target: sql.Identifier, names: Sequence[str]) -> int:
    values = [name for name in names if name not in table.key]
    if not values:
        return 0
    cursor.execute(
        sql.SQL(
            "update {target} as published set {assignments} from publish_staged as staged "
            "where {same_key} and ({old}) is distinct from ({new})"
        ).format(
            target=target,
            assignments=sql.SQL(", ").join(sql.SQL("{0} = staged.{0}").format(sql.Identifier(name)) for name in values),
            same_key=_same_key(table),
            old=sql.SQL(", ").join(sql.Identifier("published", name) for name in values),
            new=sql.SQL(", ").join(sql.Identifier("staged", name) for name in values),
        )
    )
    return cursor.rowcount


def _recreate(
    reader: duckdb.DuckDBPyConnection,
    cursor: PsycopgCursor,
    table: PublishedTable,
    columns: Sequence[_Column],
    *,
    is_new: bool,
) -> TableReport:
    """Fill a new table beside the old one, then put it in its place; readers of the old one go on until the end."""
    incoming = sql.Identifier("curated", f"{table.name}__incoming")
    definitions = [sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(c.postgres_type)) for c in columns]
    cursor.execute(sql.SQL("drop table if exists {}").format(incoming))
    cursor.execute(sql.SQL("create table {} ({})").format(incoming, sql.SQL(", ").join(definitions)))
    names = [column.name for column in columns]
    rows, size = _copy(
        reader,
        cursor,
        _selection(table, names, is_whole=True),
        names,
        [column.duckdb_type for column in columns],
        incoming,
    )
    cursor.execute(sql.SQL("alter table {} add primary key ({})").format(incoming, _names(table.key)))
    for index in table.indexes:
        cursor.execute(sql.SQL("create index on {} ({})").format(incoming, _names(index)))
    cursor.execute(sql.SQL("analyze {}").format(incoming))
    deleted = 0
    views: list[_View] = []
    if not is_new:
        cursor.execute(sql.SQL("select count(*) from curated.{}").format(sql.Identifier(table.name)))
        deleted = (cursor.fetchone() or (0,))[0]
        views = _dependent_views(cursor, table.name)
        cursor.execute(sql.SQL("drop table curated.{} cascade").format(sql.Identifier(table.name)))
    cursor.execute(sql.SQL("alter table {} rename to {}").format(incoming, sql.Identifier(table.name)))
    _rename_indexes(cursor, table.name)
    for view in views:
        _restore_view(cursor, view)
    return TableReport(table.name, rows, rows, 0, deleted, size, is_recreated=not is_new)


def _rename_indexes(cursor: PsycopgCursor, table: str) -> None:
    cursor.execute(
        "select indexrelid::regclass::name, c.relname from pg_index join pg_class as c on c.oid = indexrelid "
        "where indrelid = to_regclass(%s)",
        (f"curated.{table}",),
    )
    for _, name in cursor.fetchall():
        cursor.execute(
            sql.SQL("alter index {} rename to {}").format(
                sql.Identifier("curated", name), sql.Identifier(name.replace("__incoming", ""))
            )
        )


@dataclass(frozen=True)
class _View:
    schema: str
    name: str
    is_materialized: bool
    query: str


def _dependent_views(cursor: PsycopgCursor, table: str) -> list[_View]:
    """The views that read a table, directly or through each other, in the order to make them again."""
    cursor.execute(
        """
        with recursive dependents (oid, depth) as (
            select to_regclass(%s)::oid, 0
            union all
            select rewritten.ev_class, dependents.depth + 1
            from dependents
            join pg_depend on refobjid = dependents.oid and refclassid = 'pg_class'::regclass
                and classid = 'pg_rewrite'::regclass
            join pg_rewrite as rewritten on rewritten.oid = objid and rewritten.ev_class <> dependents.oid
        )
        select nspname, relname, relkind = 'm', pg_get_viewdef(pg_class.oid)
        from (select oid, max(depth) as depth from dependents where depth > 0 group by oid) as dependents
        join pg_class on pg_class.oid = dependents.oid
        join pg_namespace on pg_namespace.oid = relnamespace
        order by depth
        """,
        (f"curated.{table}",),
    )
    return [_View(*row) for row in cursor.fetchall()]


def _restore_view(cursor: PsycopgCursor, view: _View) -> None:
    cursor.execute("savepoint restore_view")
    try:
        cursor.execute(
            sql.SQL("create {} {} as {}").format(
                sql.SQL("materialized view" if view.is_materialized else "view"),
                sql.Identifier(view.schema, view.name),
                sql.SQL(view.query),
            )
        )
    except ProgrammingError as error:
        cursor.execute("rollback to savepoint restore_view")
        logger.warning(
            "The view %s.%s does not fit the new columns and was dropped (%s): build it again with dbt.",
            view.schema,
            view.name,
            str(error).partition("\n")[0],
        )


def _selection(table: PublishedTable, names: Sequence[str], *, is_whole: bool) -> str:
    columns = ", ".join(f"model.{_duck(name)}" for name in names)
    select = f"select {columns} from curated.{_duck(table.name)} as model"
    if is_whole:
        return select
    of_sites = f"{select} semi join publish_sites as scope on scope.site = model.site"
    if table.grain == "site":
        return of_sites
    return (
        f"{of_sites} union all {select} semi join publish_days as scope "
        "on scope.site = model.site and scope.reading_date = model.reading_date"
    )


def _same_key(table: PublishedTable) -> sql.Composable:
    return sql.SQL(" and ").join(sql.SQL("staged.{0} = published.{0}").format(sql.Identifier(n)) for n in table.key)


def _names(names: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _duck(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# Types and text

_POSTGRES_TYPES: Final = {
    "BOOLEAN": "boolean",
    "TINYINT": "smallint",
    "UTINYINT": "smallint",
    "SMALLINT": "smallint",
    "USMALLINT": "integer",
    "INTEGER": "integer",
    "UINTEGER": "bigint",
    "BIGINT": "bigint",
    "UBIGINT": "numeric(20,0)",
    "HUGEINT": "numeric(39,0)",
    "FLOAT": "real",
    "DOUBLE": "double precision",
    "VARCHAR": "text",
    "DATE": "date",
    "TIME": "time without time zone",
    "TIMESTAMP": "timestamp without time zone",
    "TIMESTAMP_S": "timestamp without time zone",
    "TIMESTAMP_MS": "timestamp without time zone",
    "TIMESTAMP WITH TIME ZONE": "timestamp with time zone",
    "UUID": "uuid",
    "JSON": "json",
}


def postgres_type(duckdb_type: str, column: str) -> str:
    """The Postgres type, as `format_type` writes it, that holds every value of a DuckDB type.

    Args:
        duckdb_type: As DuckDB's `describe` writes it.
        column: Whose type it is, for the message.

    Raises:
        LakeError: There is none.
    """
    decimal = re.fullmatch(r"DECIMAL\((\d+),\s*(\d+)\)", duckdb_type)
    if decimal:
        return f"numeric({decimal[1]},{decimal[2]})"
    if duckdb_type.startswith("ENUM("):
        return "text"
    if duckdb_type not in _POSTGRES_TYPES:
        raise LakeError(
            f"The column {column} has the type {duckdb_type}, which is not published.", "Cast it in the model."
        )
    return _POSTGRES_TYPES[duckdb_type]


def _line_expression(names: Sequence[str], types: Sequence[str]) -> str:
    """A row as one line of COPY's text format; DuckDB is quicker at this than Python."""
    return " || chr(9) || ".join(
        f"coalesce({_field_expression(_duck(name), kind)}, '\\N')" for name, kind in zip(names, types, strict=True)
    )


def _field_expression(column: str, kind: str) -> str:
    text = f"{column}::varchar"
    if kind not in {"VARCHAR", "JSON"} and not kind.startswith("ENUM("):
        return text
    # Postgres has no character 0; the others have a meaning in the format.
    for character, escaped in (
        ("\\", "\\\\"),
        ("chr(0)", ""),
        ("chr(9)", "\\t"),
        ("chr(10)", "\\n"),
        ("chr(13)", "\\r"),
    ):
        searched = character if character.startswith("chr") else f"'{character}'"
        text = f"replace({text}, {searched}, '{escaped}')"
    return text


class _CopyStream(io.RawIOBase):
    """The lines of a DuckDB query as the file that `copy … from stdin` reads: nothing touches the disk."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._left = memoryview(b"")
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(next(self._blocks, b""))
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        self.size += count
        return count


def _copy(
    reader: duckdb.DuckDBPyConnection,
    cursor: PsycopgCursor,
    query: str,
    names: Sequence[str],
    types: Sequence[str],
    target: sql.Identifier,
) -> tuple[int, int]:
    """Send a DuckDB query's rows to a Postgres table.

    Returns:
        Rows and bytes.
    """
    lines = reader.execute(f"select {_line_expression(names, types)} from ({query})")

    def blocks() -> Iterator[bytes]:
        while rows := lines.fetchmany(_ROWS_PER_FETCH):
            yield "".join([row[0] + "\n" for row in rows]).encode()

    stream = _CopyStream(blocks())
    cursor.copy_expert(
        sql.SQL("copy {} ({}) from stdin").format(target, _names(names)),
        io.BufferedReader(stream, 1 << 20),
        size=1 << 16,
    )
    return cursor.rowcount, stream.size
