"""Removing one person from everywhere, and proving it.

The order is that of the flow of data: first the lake, so that nothing that follows can be built from it again, then the
warehouse, the serving database, and what tells of runs. A forgetting that was killed is taken up where it stood by
running it again: until the end, what to look for is kept in a file of its own.
"""

import gzip
import json
import re
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
from psycopg2 import sql
from psycopg2.extensions import cursor as PsycopgCursor  # noqa: N812 - psycopg2 spells its class in lower case

from nightscout_lakehouse.lib.care.archive import Archive, remove_site
from nightscout_lakehouse.lib.care.backup import (
    OTHER_SCHEMAS,
    REPLACED,
    dagster_database,
    figures_of,
    superset_database,
)
from nightscout_lakehouse.lib.care.files import is_sqlite
from nightscout_lakehouse.lib.care.postgres_dump import SCHEMAS, dump_database, restore_database
from nightscout_lakehouse.lib.care.restore import prepare_again
from nightscout_lakehouse.lib.care.traces import (
    Found,
    Traces,
    every_file,
    gather,
    in_files,
    in_lake,
    in_warehouse,
)
from nightscout_lakehouse.lib.dashboard.databases import metadata_connection
from nightscout_lakehouse.lib.embedded_postgres import stop_if_unused, write_private_file
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lake import Lake, load_archives, processing_state_file, raw_folder, sql_text
from nightscout_lakehouse.lib.locking import lake_lock
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.processing import refresh_views
from nightscout_lakehouse.lib.serving import serving_database
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import load_sites, load_sites_of_files
from nightscout_lakehouse.lib.warehouse import connect, open_warehouse

# What to look for, while a forgetting is under way.
NOTE: Final = ".forgetting.json"
# Lines of these are events of their own; of any other file a trace takes the whole.
_LINE_FILES: Final = frozenset({".log", ".jsonl", ".ndjson", ".txt", ".prom", ".out", ".err", ".1"})
# Whether schedules and sensors are on, not what they did: a word like a site's name is chance there.
_STATE_TABLES: Final = frozenset({"instigators", "jobs", "alembic_version", "kvs", "daemon_heartbeats"})
# Somebody else's databases: they are searched, and left alone.
_FOREIGN: Final = ("superset", "marquez")


@dataclass(frozen=True)
class Survey:
    """What a lakehouse has of a site.

    Attributes:
        documents: Documents by collection, by the processed files.
        batch_files: Raw batch files.
        warehouse_rows: Rows in all tables of the warehouse.
        dropped_files: Files in its folder of the drop folder.
        traces: What to search for.
        archives: Folders to which raw files of it were ever moved out of the lake.
    """

    documents: Mapping[str, int]
    batch_files: int
    warehouse_rows: int
    dropped_files: tuple[Path, ...]
    traces: Traces
    archives: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the site is there."""
        return not (self.documents or self.batch_files or self.warehouse_rows or self.traces.probes or self.archives)


@dataclass
class Forgotten:
    """What was removed, and what a search of all that remains found.

    Attributes:
        removed: How much of what.
        searched_files: Files that were searched byte by byte.
        searched_bytes: Their size.
        left: Where something still stands.
    """

    removed: dict[str, int] = field(default_factory=dict)
    searched_files: int = 0
    searched_bytes: int = 0
    left: list[Found] = field(default_factory=list)


def check_not_configured(settings: Settings, site: str) -> None:
    """Refuse while the next run would fetch the site again.

    Raises:
        ConfigurationError: The configuration is malformed.
        LakehouseError: It names the site.
    """
    if site in {each.name for each in (*load_sites(settings), *load_sites_of_files(settings))}:
        where = settings.sites_file.name if settings.sites_file.is_file() else "NIGHTSCOUT_URL"
        raise LakehouseError(
            f"The site {site} is still configured ({where}): the next run would fetch it again.",
            "Take it out first." if where != "NIGHTSCOUT_URL" else "Unset NIGHTSCOUT_URL first.",
        )


def survey(settings: Settings, site: str) -> Survey:
    """Count what there is of a site.

    Raises:
        LakehouseError: The lake or the warehouse cannot be read.
    """
    lake = Lake.open(settings)
    documents: dict[str, int] = {}
    batch_files = 0
    with connect(settings) as engine:
        for collection in COLLECTIONS:
            batch_files += sum(path.endswith(".parquet") for path in lake.list_files(raw_folder(site, collection)))
            files = [
                file
                for kind in collection.all_kinds
                for file in lake.list_files(f"processed/{collection.name}/kind={kind}/site={site}", recursive=True)
            ]
            if files:
                documents[collection.api_v3_name] = sum(lake.parquet_rows(file) for file in files)
        traces = gather(engine, lake, site)
    noted = _noted(settings, site)
    traces = Traces(site, tuple(sorted({*traces.probes, *noted.get("probes", ())})))
    rows = 0
    if settings.warehouse_path.is_file():
        with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
            rows = sum(_rows_of(warehouse, site).values())
    dropped = settings.drop_dir / site
    files_dropped = tuple(every_file(dropped)) if dropped.is_dir() else ()
    named = {place for collection in COLLECTIONS for place in load_archives(lake, site, collection)}
    archives = noted["archives"] if "archives" in noted else sorted(named)
    return Survey(documents, batch_files, rows, files_dropped, traces, tuple(archives))


def forget(settings: Settings, found: Survey, *, with_dropped_files: bool = False) -> Forgotten:
    """Remove a site from everywhere, then search all that remains for it.

    Args:
        settings: Of which lakehouse.
        found: What there is of it.
        with_dropped_files: Remove its folder of exported files too.

    Raises:
        LakehouseError: It is still configured, its files would be imported again, something is in use, or the rows of
            another site would not stay as they are; then the warehouse is as it was.
    """
    site, result = found.traces.site, Forgotten()
    check_not_configured(settings, site)
    if found.dropped_files and not with_dropped_files:
        raise LakehouseError(
            f"{settings.drop_dir / site} has {len(found.dropped_files)} files: the next run would import them again.",
            "Move them away, or add --with-dropped-files to remove them.",
        )
    aside = [path.name for path in settings.home.glob(f"{REPLACED}*")]
    if aside:
        raise LakehouseError(
            f"{settings.home} still has what a restore replaced: {', '.join(aside)}.", "Remove it first."
        )
    with lake_lock(settings, "lakehouse forget", wait_seconds=0):
        if not stop_if_unused(settings.postgres_dir):
            raise LakehouseError("The database of this lakehouse is in use.", "Stop `make dev` and try again.")
        note = {"site": site, "probes": found.traces.probes, "archives": found.archives}
        write_private_file(settings.home / NOTE, json.dumps(note))
        lake = Lake.open(settings)
        not_reached = _forget_in_archives(found, result)
        write_private_file(settings.home / NOTE, json.dumps(note | {"archives": [each.place for each in not_reached]}))
        result.removed["files of the lake"] = _forget_in_lake(lake, site)
        if found.dropped_files:
            shutil.rmtree(settings.drop_dir / site)
            result.removed["dropped files"] = len(found.dropped_files)
        if settings.warehouse_path.is_file():
            result.removed["rows of the warehouse"] = _forget_in_warehouse(settings, lake, site)
        if settings.database_url.get_secret_value() or _has_cluster(settings):
            result.removed["rows in Postgres"] = _forget_in_postgres(settings, found.traces)
        dagster = dagster_database(settings)
        if dagster is not None:
            tables, rows = delete_rows(dagster, found.traces, OTHER_SCHEMAS)
            _vacuum(dagster, tables)
            result.removed["rows of Dagster's storage"] = rows
        result.removed |= _forget_in_files(settings, lake, found.traces)
        # Compiled models and logs of dbt, and scratch files: every run makes them anew.
        for folder in (settings.dbt_dir, settings.home / "tmp", settings.warehouse_scratch_dir):
            shutil.rmtree(folder, ignore_errors=True)
        (settings.home / NOTE).unlink(missing_ok=True)
        _prove(settings, lake, found.traces, result)
        result.left += not_reached
    return result


def _forget_in_archives(found: Survey, result: Forgotten) -> list[Found]:
    """Remove the raw files that were moved out of the lake; returns the archives where they are not to be found."""
    not_reached = []
    folders = f"raw/*/site={found.traces.site}"
    for place in found.archives:
        try:
            removed = remove_site(Archive(Path(place)), found.traces.site)
            why = "" if removed else f"it has no {folders} now"
        except OSError as error:
            removed, why = 0, f"they cannot be removed ({error.strerror})"
        if removed:
            result.removed["files of the archive"] = result.removed.get("files of the archive", 0) + removed
        if why:
            what = f"the raw files of {found.traces.site} were moved there, and {why}: "
            not_reached.append(Found(place, f"{what}remove {folders} where that folder lies now, and from its copies"))
    return not_reached


def _noted(settings: Settings, site: str) -> dict[str, Any]:
    """What a forgetting of this site that was killed was looking for, and the archives that it had not reached."""
    path = settings.home / NOTE
    if not path.is_file():
        return {}
    note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if note["site"] != site:
        raise LakehouseError(f"Forgetting {note['site']} was not finished.", f"Run `lakehouse forget {note['site']}`.")
    return note


def _forget_in_lake(lake: Lake, site: str) -> int:
    removed = 0
    for collection in COLLECTIONS:
        folders = [raw_folder(site, collection)]
        folders += [f"processed/{collection.name}/kind={kind}/site={site}" for kind in collection.all_kinds]
        # The state last: it says that there was something.
        for folder in folders:
            removed += len(lake.list_files(folder, recursive=True))
            lake.delete_folder(folder)
        lake.delete(processing_state_file(site, collection))
    return removed


# The warehouse


def _rows_of(warehouse: duckdb.DuckDBPyConnection, site: str) -> dict[str, int]:
    """Rows of a site in each table that has the column `site`."""
    tables = warehouse.execute(
        """
        select schema_name, table_name
        from duckdb_columns()
        join duckdb_tables() using (schema_name, table_name)
        where column_name = 'site'
        """
    ).fetchall()
    counts = {}
    for schema, table in tables:
        name = f'"{schema}"."{table}"'
        counts[name] = warehouse.execute(f"select count(*) from {name} where site = ?", [site]).fetchall()[0][0]
    return counts


def _all_rows(warehouse: duckdb.DuckDBPyConnection) -> dict[str, int]:
    names = warehouse.execute("select schema_name, table_name from duckdb_tables()").fetchall()
    return {
        f'"{schema}"."{table}"': warehouse.execute(f'select count(*) from "{schema}"."{table}"').fetchall()[0][0]
        for schema, table in names
    }


def _forget_in_warehouse(settings: Settings, lake: Lake, site: str) -> int:
    """Delete the rows of a site, and write the file anew: deleted rows stay in the pages of the old one."""
    path = settings.warehouse_path
    with open_warehouse(settings) as warehouse:
        for collection in COLLECTIONS:
            refresh_views(warehouse, lake, collection)
        counts = _rows_of(warehouse, site)
        figures = {name: values for name, values in figures_of(warehouse).items() if name != site}
        warehouse.begin()
        for table, rows in counts.items():
            if rows:
                warehouse.execute(f"delete from {table} where site = ?", [site])
        # The newest change may have been one of this site's, and what was published up to there would then look newer
        # than the warehouse: a day of somebody else's is looked at once more.
        warehouse.execute(
            "insert into ops.changes (site, reading_date) select site, reading_date from ops.changes"
            " where reading_date is not null order by change_seq desc limit 1"
        )
        warehouse.commit()
    rewrite_warehouse(settings)
    with connect(settings, path, read_only=True) as warehouse:
        if figures_of(warehouse) != figures:
            raise LakehouseError(
                "The figures of other sites changed while one was forgotten.",
                "This is a fault of the program; please report it, and restore the last backup.",
            )
    return sum(counts.values())


def rewrite_warehouse(settings: Settings) -> None:
    """Write the warehouse anew with what is in it now, and nothing of what was.

    Raises:
        LakehouseError: The copy differs; then the file is as it was.
    """
    path = settings.warehouse_path
    fresh = path.with_name(f".{path.name}.fresh")
    for leftover in (fresh, fresh.with_name(f"{fresh.name}.wal")):
        leftover.unlink(missing_ok=True)
    with connect(settings, path) as warehouse:
        warehouse.execute("checkpoint")
        comments = warehouse.execute(
            "select schema_name, table_name, column_name, columns.comment from duckdb_columns() as columns"
            " join duckdb_tables() using (schema_name, table_name) where columns.comment is not null"
        ).fetchall()
        before, name = _all_rows(warehouse), warehouse.execute("select current_database()").fetchall()[0][0]
        sequences = _sequences(warehouse)
        warehouse.execute(f"attach {sql_text(str(fresh))} as fresh")
        warehouse.execute(f'copy from database "{name}" to fresh')
        for schema, table, column, comment in comments:
            warehouse.execute(f'comment on column fresh."{schema}"."{table}"."{column}" is {sql_text(comment)}')
        warehouse.execute("checkpoint fresh")
        warehouse.execute("detach fresh")
    with connect(settings, fresh, read_only=True) as copy:
        # A sequence that began again would hide changes from every model.
        is_same = (
            _all_rows(copy) == before
            and all(after >= sequences[key] for key, after in _sequences(copy).items())
            and _sequences(copy).keys() == sequences.keys()
        )
    if not is_same:
        fresh.unlink()
        raise LakehouseError("The warehouse could not be copied whole.", "Nothing was replaced. Please report it.")
    fresh.chmod(path.stat().st_mode & 0o777)
    fresh.replace(path)


def _sequences(warehouse: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], int]:
    rows = warehouse.execute(
        "select schema_name, sequence_name, coalesce(last_value, start_value - 1) from duckdb_sequences()"
    ).fetchall()
    return {(schema, name): value for schema, name, value in rows}


# The serving database


def _has_cluster(settings: Settings) -> bool:
    return any((settings.postgres_dir / name).is_dir() for name in ("data", "data.forgotten"))


def _forget_in_postgres(settings: Settings, traces: Traces) -> int:
    """Delete the rows, and leave nothing of them in the files of a server that is ours."""
    if settings.database_url.get_secret_value():
        with serving_database(settings) as connection:
            tables, removed = delete_rows(connection, traces, SCHEMAS)
            _count_published(connection)
            _vacuum(connection, tables)
        return removed
    directory, removed = settings.postgres_dir, 0
    data, old = directory / "data", directory / "data.forgotten"
    dump, of_superset = directory / "forgetting.dump", directory / "forgetting.superset.dump"
    # The old cluster has the rows in its pages and its log; a new one never had them. Where the old one is aside
    # already, the dumps are whole, and a forgetting was killed while it filled the new one.
    if old.is_dir():
        shutil.rmtree(data, ignore_errors=True)
    else:
        for leftover in (dump, of_superset):
            leftover.unlink(missing_ok=True)
        with serving_database(settings) as connection:
            _, removed = delete_rows(connection, traces, SCHEMAS)
            _count_published(connection)
            dump_database(connection, dump)
            superset = superset_database(settings, connection)
            if superset is not None and not settings.superset_database_url.get_secret_value():
                dump_database(superset, of_superset, ())
        data.rename(old)
    with serving_database(settings) as connection:
        restore_database(connection, dump)
        prepare_again(settings, connection)
        if of_superset.is_file():
            restore_database(metadata_connection(settings, connection), of_superset)
    shutil.rmtree(old)
    for dumped in (dump, of_superset):
        dumped.unlink(missing_ok=True)
    return removed


def delete_rows(
    connection: PostgresConnection, traces: Traces, schemas: Sequence[str]
) -> tuple[list[sql.Identifier], int]:
    """Delete the rows of the site, and of tables without this column those that name it."""
    touched, removed = [], 0
    values = {"site": traces.site, "name": traces.name_pattern, "probes": _any_probe(traces)}
    with connection.transaction() as opened, opened.cursor() as cursor:
        for schema, table, has_site in _tables(cursor, schemas):
            name, row = sql.Identifier(schema, table), sql.Identifier(table)
            condition: sql.Composable = sql.SQL("site = %(site)s")
            if not has_site:
                condition = sql.SQL("{}::text ~ %(probes)s").format(row)
                if table not in _STATE_TABLES:
                    condition += sql.SQL(" or {}::text ~ %(name)s").format(row)
            cursor.execute(sql.SQL("delete from {} where {}").format(name, condition), values)
            if cursor.rowcount:
                touched.append(name)
                removed += cursor.rowcount
    return touched, removed


def _any_probe(traces: Traces) -> str:
    """A pattern for any of the probes; where there are none, one that matches nothing."""
    return "|".join(map(re.escape, traces.probes)) or "a^"


def _count_published(connection: PostgresConnection) -> None:
    """Tell the next publish how many rows there are now: other numbers would make it a full one."""
    with connection.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("select table_name from ops.published_tables")
        for (table,) in cursor.fetchall():
            cursor.execute(
                sql.SQL(
                    "update ops.published_tables set row_count = (select count(*) from {}) where table_name = %s"
                ).format(sql.Identifier("curated", table)),
                (table,),
            )


def _tables(cursor: PsycopgCursor, schemas: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Schema and name of each table, and whether it has the column `site`."""
    cursor.execute(
        """
        select nspname, relname, exists (
            select from pg_attribute where attrelid = pg_class.oid and attname = 'site' and not attisdropped
        )
        from pg_class
        join pg_namespace on pg_namespace.oid = relnamespace
        where nspname = any(%s) and relkind in ('r', 'p')
        order by 1, 2
        """,
        (list(schemas),),
    )
    return [(str(schema), str(table), bool(has_site)) for schema, table, has_site in cursor.fetchall()]


def _vacuum(connection: PostgresConnection, tables: list[sql.Identifier]) -> None:
    opened = connection.connect()
    opened.autocommit = True
    try:
        with opened.cursor() as cursor:
            for table in tables:
                cursor.execute(sql.SQL("vacuum (full) {}").format(table))
    finally:
        opened.close()


# Files that tell of runs


def _forget_in_files(settings: Settings, lake: Lake, traces: Traces) -> dict[str, int]:
    removed = {"entries of runs, checks and alerts": 0, "lines of logs and lineage": 0, "reports and other files": 0}
    left_alone = [
        settings.postgres_dir / "data",
        settings.dbt_dir,
        settings.duckdb_extension_dir,
        *(settings.home / name for name in _FOREIGN),
        *([Path(lake.url)] if lake.is_local else []),
    ]
    kept = {settings.warehouse_path, settings.home / NOTE, settings.lock_path}
    report = re.compile(rf"agp-{re.escape(traces.site)}-\d{{4}}-\d\d-\d\d-\d+d\.\w+")
    for path in every_file(settings.home, left_alone):
        if path in kept:
            continue
        if report.fullmatch(path.name) or traces.found_in(path.name.encode()):
            path.unlink()
            removed["reports and other files"] += 1
        elif is_sqlite(path):
            removed["entries of runs, checks and alerts"] += _forget_in_sqlite(path, traces)
        elif not traces.found_in_file(path):
            continue
        elif path.suffix in _LINE_FILES or (path.suffixes[-2:-1] and path.suffixes[-2] in _LINE_FILES):
            removed["lines of logs and lineage"] += _forget_lines(path, traces)
        else:
            path.unlink()
            removed["reports and other files"] += 1
    return removed


def _forget_in_sqlite(path: Path, traces: Traces) -> int:
    """Delete every row that names the person, and write the file anew without them."""

    def has_trace(value: object) -> bool:
        content = value if isinstance(value, bytes) else str(value).encode(errors="replace")
        return bool(traces.found_in(content))

    def has_probe(value: object) -> bool:
        content = value if isinstance(value, bytes) else str(value).encode(errors="replace")
        return bool(traces.found_in(content, by_name=False))

    removed = 0
    with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as database:
        database.create_function("has_trace", 1, has_trace, deterministic=True)
        database.create_function("has_probe", 1, has_probe, deterministic=True)
        database.execute("pragma secure_delete = on")
        names = database.execute("select name from sqlite_master where type = 'table' and name not like 'sqlite_%'")
        database.execute("begin immediate")
        for (table,) in names.fetchall():
            columns = [row[1] for row in database.execute(f'pragma table_info("{table}")')]
            test = "has_probe" if table in _STATE_TABLES else "has_trace"
            condition = " or ".join(f'{test}("{column}")' for column in columns)
            removed += database.execute(f'delete from "{table}" where {condition}').rowcount
        database.execute("commit")
        database.execute("vacuum")
        database.execute("pragma wal_checkpoint(truncate)")
    return removed


def _forget_lines(path: Path, traces: Traces) -> int:
    """Write a file of lines anew without those that name the person."""
    is_gzip = path.suffix == ".gz"
    content = gzip.decompress(path.read_bytes()) if is_gzip else path.read_bytes()
    lines = content.splitlines(keepends=True)
    kept = [line for line in lines if not traces.found_in(line)]
    fresh = path.with_name(f".{path.name}.fresh")
    fresh.write_bytes(gzip.compress(b"".join(kept)) if is_gzip else b"".join(kept))
    fresh.chmod(path.stat().st_mode & 0o777)
    fresh.replace(path)
    return len(lines) - len(kept)


# The proof


def _prove(settings: Settings, lake: Lake, traces: Traces, result: Forgotten) -> None:
    with connect(settings) as engine:
        result.left += in_lake(engine, lake, traces)
    if settings.warehouse_path.is_file():
        with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
            result.left += in_warehouse(warehouse, traces)
    if settings.database_url.get_secret_value() or (settings.postgres_dir / "data").is_dir():
        with serving_database(settings) as connection:
            result.left += _in_postgres(connection, traces, SCHEMAS)
            superset = superset_database(settings, connection)
            if superset is not None:
                result.left += _in_postgres(superset, traces, OTHER_SCHEMAS)
    dagster = dagster_database(settings)
    if dagster is not None:
        result.left += _in_postgres(dagster, traces, OTHER_SCHEMAS)
    files = list(every_file(settings.home, [settings.duckdb_extension_dir]))
    result.searched_files = len(files)
    result.searched_bytes = sum(path.stat().st_size for path in files)
    result.left += in_files(files, traces, settings.home)


def _in_postgres(connection: PostgresConnection, traces: Traces, schemas: Sequence[str]) -> list[Found]:
    """Which tables still have rows of the site, or with one of the probes."""
    found = []
    with connection.transaction() as opened, opened.cursor() as cursor:
        for schema, table, has_site in _tables(cursor, schemas):
            query = sql.SQL("select count(*) from {} where {}::text ~ %(probes)s").format(
                sql.Identifier(schema, table), sql.Identifier(table)
            )
            if has_site:
                query += sql.SQL(" or site = %(site)s")
            cursor.execute(query, {"site": traces.site, "probes": _any_probe(traces)})
            if rows := (cursor.fetchone() or (0,))[0]:
                found.append(Found(f"Postgres, {connection.database}, {schema}.{table}", f"{rows} rows"))
    return found
