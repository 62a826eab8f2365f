"""From a document's field to a typed column: what the SQL that parses batch files makes of `sgv` and the others."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from nightscout_lakehouse.lib.lake import RAW_SCHEMA
from nightscout_lakehouse.lib.lineage.column_lineage import ColumnSource, QueryLineage
from nightscout_lakehouse.lib.lineage.facts import ColumnFacts
from nightscout_lakehouse.lib.lineage.models import ModelLineage
from nightscout_lakehouse.lib.nightscout_collections import Collection
from nightscout_lakehouse.lib.processing import parsing_sql

API = "api"
RAW = "raw"
# The struct in which the parsers hold a document's fields.
_STRUCT = "d"
_PREFIX = "document."
_ID = "_id"


def processed_lineage(collection: Collection, kept: ModelLineage) -> QueryLineage:
    """What the typed columns are made of; the table is always `raw.<collection>`, its batch files."""
    sql = parsing_sql(collection)
    code = hashlib.blake2b(sql.encode(), digest_size=16).hexdigest()
    return kept.of(f"processed_{collection.name}", code, lambda: _parsed(sql, collection))


def document_fields(lineage: QueryLineage) -> tuple[str, ...]:
    """The fields of a collection's documents that its typed columns are made of, sorted."""
    sources = [*lineage.rows, *(source for sources in lineage.columns.values() for source in sources)]
    return tuple(
        sorted({source.column.removeprefix(_PREFIX) for source in sources if source.column.startswith(_PREFIX)})
    )


def api_columns(fields: tuple[str, ...]) -> tuple[ColumnFacts, ...]:
    """The fields of a document as the server sends it; it may hold others, which land as they are."""
    return tuple(ColumnFacts(name, "") for name in (_ID, *fields))


def raw_columns(fields: tuple[str, ...]) -> tuple[ColumnFacts, ...]:
    """The columns of a batch file, and the fields of the document that stands in one of them."""
    return (
        *(ColumnFacts(field.name, str(field.type)) for field in RAW_SCHEMA),
        *(ColumnFacts(f"{_PREFIX}{name}", "", f"Field `{name}` of the document.") for name in fields),
    )


def raw_sources(collection: Collection, fields: tuple[str, ...]) -> dict[str, tuple[ColumnSource, ...]]:
    """What the columns of a batch file are made of; the table is always `api.<collection>`.

    The text of the whole document is no column with a source of its own: each field is traced by itself.
    """
    table = f"{API}.{collection.name}"
    return {
        "document_id": (ColumnSource(table, _ID),),
        **{f"{_PREFIX}{name}": (ColumnSource(table, name),) for name in fields},
    }


def _parsed(sql: str, collection: Collection) -> QueryLineage:
    """The lineage of a query that parses documents, with each field of a document as a column of the batch file."""
    from sqlglot import exp, parse_one

    from nightscout_lakehouse.lib.lineage.sql_columns import query_lineage

    # In DuckDB `->` is the arrow of a lambda, too, which sqlglot takes it for; both forms read the same field.
    tree = parse_one(sql.replace(" -> '", " ->> '"), dialect="duckdb")
    # DuckDB's names have no case, those of fields do.
    spelling: dict[str, str] = {}
    for column in list(tree.find_all(exp.Column)):
        if column.table == _STRUCT:
            field = f"{_PREFIX}{column.name}"
            spelling[field.lower()] = field
            column.replace(exp.column(exp.to_identifier(field.lower(), quoted=True)))
    for select in tree.find_all(exp.Select):
        select.set("expressions", [item for item in select.expressions if item.alias_or_name != _STRUCT])
    for table in list(tree.find_all(exp.Table)):
        if isinstance(table.this, exp.Func):
            table.replace(exp.table_(collection.name, db=RAW))
    columns = [*RAW_SCHEMA.names, *sorted(spelling)]
    found = query_lineage(tree.sql(dialect="duckdb"), "duckdb", {RAW: {collection.name: columns}})

    def spelled(sources: Iterable[ColumnSource]) -> tuple[ColumnSource, ...]:
        return tuple(replace(source, column=spelling.get(source.column, source.column)) for source in sources)

    # What is not a column of the typed files is not kept; `is_duplicate` is found later, by comparing with the others.
    typed = {name: spelled(found.columns[name]) for name in collection.view_columns if name in found.columns}
    return replace(found, columns=typed, rows=spelled(found.rows))
