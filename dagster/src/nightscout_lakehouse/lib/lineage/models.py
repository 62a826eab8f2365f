"""What the columns of each dbt model are made of, kept on disk until the model's code changes."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nightscout_lakehouse.lib.lineage.column_lineage import ColumnSource, QueryLineage, Schemas
from nightscout_lakehouse.lib.lineage.datasets import RUN_RECORDS
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS
from nightscout_lakehouse.lib.warehouse import bookkeeping_columns

logger = logging.getLogger(__name__)

# Raised whenever `query_lineage` finds something else in the same query.
_FORMAT = 1
# What is data of the bookkeeping (lib/warehouse.py); the rest only decides which days are computed again.
SITES_TABLE = "ops.sites"
RUN_TABLES = tuple(f"ops.{table}" for table in RUN_RECORDS)


def table_columns(manifest: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """The columns of every table that models read, by schema and table; each model's YAML names all of its own."""
    schemas: dict[str, dict[str, list[str]]] = {
        "lake": {collection.name: list(collection.view_columns) for collection in COLLECTIONS},
        "ops": bookkeeping_columns(),
    }
    for source in manifest["sources"].values():
        if source["source_name"] == "operations":
            schemas["ops"][source["identifier"]] = list(source["columns"])
    for node in manifest["nodes"].values():
        if node["resource_type"] == "model":
            schemas.setdefault(node["schema"], {})[node["alias"]] = list(node["columns"])
    return schemas


def model_lineage(sql: str, dialect: str, schemas: Schemas) -> QueryLineage:
    """The lineage of a model's compiled query, without the bookkeeping of what has changed."""
    from nightscout_lakehouse.lib.lineage.sql_columns import query_lineage

    found = query_lineage(sql, dialect, schemas)
    return QueryLineage(
        columns={name: _data_only(sources) for name, sources in found.columns.items()},
        rows=_data_only(found.rows),
        tables=tuple(table for table in found.tables if _is_data(table)),
        unresolved=found.unresolved,
    )


def _data_only(sources: Iterable[ColumnSource]) -> tuple[ColumnSource, ...]:
    return tuple(source for source in sources if _is_data(source.table))


def _is_data(table: str) -> bool:
    return table == SITES_TABLE or table in RUN_TABLES or not table.startswith("ops.")


class ModelLineage:
    """The lineage of models by name and version.

    Args:
        path: Where it is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = _read(path)
        self._is_changed = False

    def of(self, model: str, code: str, parse: Callable[[], QueryLineage]) -> QueryLineage:
        """What a model's columns are made of; parsed only where its code has changed.

        Args:
            model: Its name.
            code: The version of its code, and of all that it selects from.
            parse: Parses its query.
        """
        key = f"{_FORMAT}:{version('sqlglot')}:{code}"
        kept = self._kept.get(model)
        if kept is None or kept["code"] != key:
            kept = _as_json(key, _parsed(model, parse))
            self._kept[model] = kept
            self._is_changed = True
        return QueryLineage(
            columns={name: _sources(sources) for name, sources in kept["columns"].items()},
            rows=_sources(kept["rows"]),
            tables=tuple(kept["tables"]),
            unresolved=tuple(kept["unresolved"]),
        )

    def save(self) -> None:
        """Keep what was parsed."""
        if self._is_changed:
            temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self._kept), encoding="utf-8")
            temporary.replace(self._path)
            self._is_changed = False


def _parsed(model: str, parse: Callable[[], QueryLineage]) -> QueryLineage:
    from sqlglot.errors import SqlglotError

    try:
        return parse()
    except (SqlglotError, ValueError, KeyError, IndexError, AttributeError) as error:
        # A query that the parser does not understand has no edges rather than wrong ones.
        logger.warning(
            "The columns of %s cannot be traced: %s", model, str(error).splitlines()[0] if str(error) else ""
        )
        return QueryLineage({}, (), (), ())


def _as_json(code: str, lineage: QueryLineage) -> dict[str, Any]:
    return {
        "code": code,
        "columns": {name: [astuple(source) for source in sources] for name, sources in lineage.columns.items()},
        "rows": [astuple(source) for source in lineage.rows],
        "tables": lineage.tables,
        "unresolved": lineage.unresolved,
    }


def _sources(kept: Iterable[Iterable[Any]]) -> tuple[ColumnSource, ...]:
    return tuple(ColumnSource(*source) for source in kept)


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
