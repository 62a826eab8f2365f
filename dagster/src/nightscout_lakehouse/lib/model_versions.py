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
    """The version of each model: a hash of its code and contract, of all macros and SQL functions, and of its parents.

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
            models[key]["contract"]["checksum"] or "",
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
    warehouse.execute(
        """
        insert into ops.model_versions select unnest(?), unnest(?)
        on conflict (model) do update set version = excluded.version
        """,
        [list(versions), list(versions.values())],
    )


def built_state(warehouse: duckdb.DuckDBPyConnection, versions: Mapping[str, str], position: str) -> str:
    """What a build of these models depends on: their code, and up to where the data has come.

    Args:
        warehouse: The open warehouse.
        versions: The version of each model of the build.
        position: Where what they read stands, if it is not the warehouse's own changes: when it was published last.
    """
    if not position:
        # A new site without readings is no change of a day, and has a row in dim_site all the same.
        row = warehouse.execute(
            """
            select
                (select warehouse_id from ops.info),
                (select coalesce(max(change_seq), 0) from ops.changes),
                (select md5(coalesce(string_agg(sites::varchar, ',' order by sites.site), '')) from (
                    select site, timezone, timezone_source, sensor_interval_minutes from ops.sites
                ) as sites)
            """
        ).fetchall()[0]
        position = ":".join(str(part) for part in row)
    code = hashlib.blake2b("\0".join(f"{name}={versions[name]}" for name in sorted(versions)).encode(), digest_size=16)
    return f"{position}:{code.hexdigest()}"


def is_built(warehouse: duckdb.DuckDBPyConnection, selection: str, state: str) -> bool:
    """Whether these models were built in this state, and passed all their tests."""
    row = warehouse.execute("select state from ops.builds where selection = ?", [selection]).fetchone()
    return row is not None and row[0] == state


def record_build(warehouse: duckdb.DuckDBPyConnection, selection: str, state: str) -> None:
    """Keep that these models were built in this state and passed all their tests."""
    warehouse.execute(
        "insert into ops.builds values (?, ?) on conflict (selection) do update set state = excluded.state",
        [selection, state],
    )


def mark_everything_changed(warehouse: duckdb.DuckDBPyConnection) -> None:
    """Have every consumer of the changes, publishing included, take in every day of every site again."""
    warehouse.execute("insert into ops.changes (site, reading_date) select site, null from ops.sites")
