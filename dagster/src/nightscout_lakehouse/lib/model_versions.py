"""Which code each table of the warehouse was built with.

An incremental model computes the days that changed. When its code changes, that would leave the history as the old code
saw it; so the version of each model's code is kept beside its table, and a difference builds the table anew.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import duckdb

from nightscout_lakehouse.lib.clinical.duckdb_functions import functions_version


def model_versions(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The version of each model: a hash of its code, of all macros and SQL functions, and of what it selects from.

    Args:
        manifest: dbt's `manifest.json`.
    """
    project = manifest["metadata"]["project_name"]
    macros = sorted(macro["macro_sql"] for macro in manifest["macros"].values() if macro["package_name"] == project)
    models = {key: node for key, node in manifest["nodes"].items() if node["resource_type"] == "model"}

    @cache
    def version(key: str) -> str:
        parents = sorted(parent for parent in models[key]["depends_on"]["nodes"] if parent in models)
        parts = [
            models[key]["checksum"]["checksum"],
            functions_version(),
            *macros,
            *(version(parent) for parent in parents),
        ]
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

    return {models[key]["name"]: version(key) for key in models}


def outdated_models(warehouse: duckdb.DuckDBPyConnection, versions: Mapping[str, str]) -> list[str]:
    """The models whose table stands there as other code built it, sorted."""
    rows = warehouse.execute(
        """
        select tables.table_name, built.version
        from duckdb_tables() as tables
        left join ops.model_versions as built on tables.table_name = built.model
        where tables.schema_name <> 'ops'
        """
    ).fetchall()
    return sorted(name for name, built in rows if name in versions and built != versions[name])


def record_versions(warehouse: duckdb.DuckDBPyConnection, versions: Mapping[str, str]) -> None:
    """Keep with which version these models' tables have been built."""
    for item in versions.items():
        warehouse.execute(
            "insert into ops.model_versions values (?, ?) on conflict (model) do update set version = excluded.version",
            list(item),
        )


def mark_everything_changed(warehouse: duckdb.DuckDBPyConnection) -> None:
    """Have every consumer of the changes, publishing included, take in every day of every site again."""
    warehouse.execute("insert into ops.changes (site, reading_date) select site, null from ops.sites")
