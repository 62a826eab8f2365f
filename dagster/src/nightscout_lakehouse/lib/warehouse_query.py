"""A user's query on the warehouse: it can read, and do nothing else."""

import re
from dataclasses import dataclass
from typing import Any

import duckdb

from nightscout_lakehouse.lib.errors import LakeError
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.warehouse import open_to_read

_EXPLAIN = re.compile(r"\s*explain\b\s*(analyze\b|\([^)]*\))?", re.IGNORECASE)


@dataclass(frozen=True)
class WarehouseResult:
    """Names of the columns, and the rows."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def query_warehouse(settings: Settings, query: str) -> WarehouseResult:
    """Run one query that reads.

    Raises:
        LakeError: There is no warehouse, the query is none or more than one, or it would write, or DuckDB refuses it.
    """
    with open_to_read(settings) as connection:
        try:
            _check_only_reads(connection, query)
            cursor = connection.execute(query)
            return WarehouseResult(tuple(column[0] for column in cursor.description or []), cursor.fetchall())
        except duckdb.Error as error:
            raise LakeError(f"DuckDB refuses the query: {error}") from None


def _check_only_reads(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Refuse what a read-only database lets pass: files written by COPY and EXPORT, other databases attached."""
    statements = connection.extract_statements(query)
    # DuckDB makes a temporary type of its own before a PIVOT; it has no text.
    written = [s for s in statements if not (s.type == duckdb.StatementType.CREATE and not s.query)]
    if len(written) != 1:
        raise LakeError(f"{len(written)} statements were given.", "Give one query.")
    (statement,) = written
    if statement.type == duckdb.StatementType.EXPLAIN:
        # EXPLAIN ANALYZE runs what it explains.
        _check_only_reads(connection, _EXPLAIN.sub("", statement.query, count=1))
    elif statement.type != duckdb.StatementType.SELECT:
        raise LakeError(
            f"This only reads; the statement is of the kind {statement.type.name}.",
            "Give a SELECT (or FROM, DESCRIBE, SUMMARIZE, EXPLAIN).",
        )
