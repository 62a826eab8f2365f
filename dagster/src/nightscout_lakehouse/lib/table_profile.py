"""A table at a glance, in DuckDB or Postgres: rows, columns, from when to when, size, and its newest rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

import duckdb
from psycopg2.extensions import cursor as PsycopgCursor  # noqa: N812 - psycopg2 spells its class in lower case

from nightscout_lakehouse.lib.partition_counts import LiveRows, live_rows

PREVIEW_ROWS = 5
_LONGEST_CELL = 120
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class TableProfile:
    """What a table holds.

    Attributes:
        row_count: Its rows.
        columns: Names and types, in order.
        time_column: What `first` and `last` are of; empty if the table has no times.
        first: Least time or date.
        last: Greatest time or date.
        bytes: Size on disk with indexes; None for a view.
        preview: Some rows as a Markdown table: the newest, and of a view any.
    """

    row_count: int
    columns: tuple[tuple[str, str], ...]
    time_column: str
    first: datetime | date | None
    last: datetime | date | None
    bytes: int | None
    preview: str


def profile_warehouse(
    warehouse: duckdb.DuckDBPyConnection, table: str, *, live_rows_of: str | None = None
) -> TableProfile:
    """The profile of a table or view of the warehouse, named with its schema.

    Args:
        warehouse: The open warehouse.
        table: The table or view.
        live_rows_of: Collection whose live documents are the rows of a view, one each: then they are not counted again.
    """
    columns = tuple((row[0], row[1].lower()) for row in warehouse.execute(f"describe {table}").fetchall())
    size_bytes = _warehouse_bytes(warehouse, table)
    # To sort a view is to read all that is below it.
    profile = _profile(
        lambda query: warehouse.execute(query).fetchall(),
        table,
        columns,
        newest_first=size_bytes is not None,
        counted=live_rows(warehouse, live_rows_of) if live_rows_of else None,
    )
    return replace(profile, bytes=size_bytes)


def profile_postgres(cursor: PsycopgCursor, table: str, *, like: TableProfile | None = None) -> TableProfile:
    """The profile of a table of Postgres, named with its schema.

    Args:
        cursor: Of an open transaction: a connection for each table would cost more than what is asked.
        table: The table.
        like: Profile of the table that this one is a copy of: then no row of the copy is read.
    """

    def rows(query: str) -> Rows:
        cursor.execute(query)
        return cursor.fetchall()

    columns = rows(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute"
        f" where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped order by attnum"
    )
    ((size_bytes,),) = rows(f"select nullif(pg_total_relation_size('{table}'::regclass), 0)")
    types = tuple((row[0], row[1]) for row in columns)
    return replace(like or _profile(rows, table, types), columns=types, bytes=size_bytes)


def markdown_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as a Markdown table; long texts are cut."""
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _profile(
    rows: Callable[[str], Rows],
    table: str,
    columns: tuple[tuple[str, str], ...],
    *,
    newest_first: bool = True,
    counted: LiveRows | None = None,
) -> TableProfile:
    time_column, first_column, last_column = _time_columns(columns)
    if counted is None:
        bounds = f"min({first_column}), max({last_column})" if time_column else "null, null"
        ((row_count, first, last),) = rows(f"select count(*), {bounds} from {table}")
    else:
        row_count, first, last = counted.row_count, counted.first_time, counted.last_time
    order = f" order by {last_column} desc nulls last" if time_column and newest_first else ""
    newest = rows(f"select * from {table}{order} limit {PREVIEW_ROWS}")
    return TableProfile(
        row_count=row_count,
        columns=columns,
        time_column=time_column,
        first=first,
        last=last,
        bytes=None,
        preview=markdown_table([name for name, _ in columns], newest),
    )


def _time_columns(columns: Sequence[tuple[str, str]]) -> tuple[str, str, str]:
    """What says when a row is: its name, the column it begins with and the one it ends with; empty for none."""
    names = [name for name, _ in columns]
    if single := next((name for name in ("reading_timestamp", "reading_date") if name in names), None):
        return single, single, single
    for name in names:
        span = name.removeprefix("first_")
        if span != name and f"last_{span}" in names:
            return span, name, f"last_{span}"
    moments = [name for name, kind in columns if kind == "timestamp with time zone"]
    found = next(iter(moments + [name for name, kind in columns if kind == "date"]), "")
    return found, found, found


def _warehouse_bytes(warehouse: duckdb.DuckDBPyConnection, table: str) -> int | None:
    schema, name = table.split(".")
    found = warehouse.execute(
        "select 1 from duckdb_tables() where schema_name = ? and table_name = ?", [schema, name]
    ).fetchone()
    if found is None:
        return None
    return int(
        warehouse.execute(
            """
            select count(distinct block_id) * (select max(block_size) from pragma_database_size())
            from pragma_storage_info(?)
            where block_id >= 0
            """,
            [table],
        ).fetchall()[0][0]
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    text = f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
    text = text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…"
    return text.replace("|", "\\|")
