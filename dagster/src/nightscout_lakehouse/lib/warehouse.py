"""The DuckDB side: connections that read the lake, and the bookkeeping tables that dbt builds on.

The schema `ops` of the warehouse holds what tells the models *what arrived*:

* `ops.sites`: one row per site, with the time zone its days are counted in.
* `ops.changes`: one row per site and local day touched by a batch; `reading_date` null means every day of the site.
* `ops.watermarks`: how far each consumer (a dbt model) has taken the changes in.
* `ops.builds`: for each selection of models, the state in which all of them were built and passed their tests.
* `ops.checks`: up to which change each model's rows have passed all its data tests.
* `ops.partitions`: what each processed Parquet file holds, counted when it is written.
* `ops.batches`: the accounting of every processed batch.
* `ops.model_versions`: which code each model's table was built with.
"""

import importlib.util
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from nightscout_lakehouse.lib.clinical.duckdb_functions import register
from nightscout_lakehouse.lib.errors import ConfigurationError, LakeError, WarehouseInUseError
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES
from nightscout_lakehouse.lib.settings import Settings

_OPS_TABLES = """
create schema if not exists ops;
create table if not exists ops.info (warehouse_id varchar not null, created_at timestamptz not null);
create table if not exists ops.sites (
    site varchar primary key,
    timezone varchar not null,
    timezone_source varchar not null,
    sensor_interval_minutes double,
    updated_at timestamptz not null
);
create sequence if not exists ops.change_seq;
create table if not exists ops.changes (
    change_seq bigint not null default nextval('ops.change_seq'),
    site varchar not null,
    reading_date date
);
create table if not exists ops.watermarks (consumer varchar primary key, change_seq bigint not null);
create table if not exists ops.builds (selection varchar primary key, state varchar not null);
create table if not exists ops.checks (model varchar primary key, change_seq bigint not null);
create table if not exists ops.partitions (
    collection varchar not null,
    kind varchar not null,
    site varchar not null,
    month varchar not null,
    label varchar not null,
    quarantine_reason varchar,
    row_count bigint not null,
    live_row_count bigint not null,
    first_live_time timestamptz,
    last_live_time timestamptz
);
create table if not exists ops.batches (
    collection varchar not null,
    site varchar not null,
    batch bigint not null,
    documents bigint not null,
    stored bigint not null,
    duplicates bigint not null,
    quarantined bigint not null,
    deletions bigint not null,
    processed_at timestamptz not null,
    primary key (collection, site, batch)
);
create table if not exists ops.model_versions (model varchar primary key, version varchar not null);
"""


def bookkeeping_columns() -> dict[str, list[str]]:
    """The columns of the tables of the schema `ops`, by table."""
    with duckdb.connect() as scratch:
        scratch.execute(_OPS_TABLES)
        rows = scratch.execute(
            "select table_name, column_name from duckdb_columns() where schema_name = 'ops' order by column_index"
        ).fetchall()
    return {table: [column for name, column in rows if name == table] for table, _ in rows}


def connect(settings: Settings, path: Path | None = None, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB database that can read and write the lake.

    Args:
        settings: Whose lake, memory limit and threads to use.
        path: Database file; in memory if None. For the warehouse, which may be no file, there is `connect_warehouse`.
        read_only: Refuse writes; several processes can then read at once.

    Raises:
        WarehouseInUseError: Another process holds the file.
        LakeError: An extension's wheel is missing.
    """
    try:
        connection = duckdb.connect(str(path) if path else ":memory:", read_only=read_only)
    except duckdb.IOException as error:
        if "lock" not in str(error).lower():
            raise
        raise WarehouseInUseError(
            f"The warehouse {path} is in use by another process.",
            "Wait for the running pipeline to finish, or close the program that has it open.",
        ) from None
    configure_connection(connection, settings)
    if path is None:
        # Of its own: two that share a folder for what does not fit into memory overwrite each other's files.
        scratch = settings.home / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        connection.execute("set temp_directory = ?", [str(scratch / f"duckdb-{uuid.uuid4().hex}")])
    return connection


def connect_warehouse(settings: Settings, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """Open the warehouse, a file or a database of MotherDuck.

    Args:
        settings: Which one.
        read_only: Refuse writes; MotherDuck goes by what the token may do.

    Raises:
        LakeError: It cannot be opened, as the message says.
    """
    if not settings.is_warehouse_remote:
        return connect(settings, settings.warehouse_path, read_only=read_only)
    try:
        connection = duckdb.connect(settings.warehouse, config=motherduck_config(settings))
    except duckdb.Error as error:
        token = settings.motherduck_token.get_secret_value()
        reason = str(error).partition("\n")[0].replace(token or "\0", "***")
        raise LakeError(
            f"{settings.warehouse} of MotherDuck cannot be opened: {reason}", "Check MOTHERDUCK_TOKEN and the network."
        ) from None
    configure_connection(connection, settings)
    return connection


def motherduck_config(settings: Settings) -> dict[str, str | bool | int | float | list[str]]:
    """With what DuckDB is opened on MotherDuck: the token, and the extension from its wheel, never from the network.

    Raises:
        ConfigurationError: There is no token.
        LakeError: The wheel is not installed.
    """
    token = settings.motherduck_token.get_secret_value()
    if not token:
        raise ConfigurationError(f"LAKEHOUSE_WAREHOUSE is {settings.warehouse}, and MOTHERDUCK_TOKEN is not set.")
    link_extension(settings.duckdb_extension_dir, "motherduck")
    return {
        "motherduck_token": token,
        "extension_directory": str(settings.duckdb_extension_dir),
        "autoinstall_known_extensions": False,
    }


def configure_connection(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Give a connection UTC, the limits of the settings, our SQL functions and the lake (dbt's come here too)."""
    # Global, since a cursor, such as dbt takes for each statement, begins with the machine's time zone otherwise.
    connection.execute("set global TimeZone = 'UTC'")
    connection.execute("set autoinstall_known_extensions = false")
    connection.execute("set memory_limit = ?", [settings.duckdb_memory_limit])
    if settings.duckdb_threads:
        connection.execute("set threads = ?", [settings.duckdb_threads])
    register(connection)
    if settings.lake_url.startswith("s3://"):
        _configure_s3(connection, settings)


def _configure_s3(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    connection.execute(
        "set extension_directory = ?",
        [str(link_extension(settings.duckdb_extension_dir, "httpfs"))],
    )
    connection.execute("load httpfs")
    endpoint = settings.s3_endpoint.rpartition("://")[2]
    use_ssl = not settings.s3_endpoint.startswith("http://")
    options = {
        "key_id": settings.s3_access_key_id.get_secret_value(),
        "secret": settings.s3_secret_access_key.get_secret_value(),
        "region": settings.s3_region,
    }
    if endpoint:
        options |= {"endpoint": endpoint.rstrip("/"), "url_style": "path"}
    body = ", ".join(f"{key} {_quoted(value)}" for key, value in options.items())
    connection.execute(f"create or replace secret lake (type s3, {body}, use_ssl {str(use_ssl).lower()})")


def link_extension(directory: Path, name: str) -> Path:
    """Link an extension that came as a wheel where DuckDB looks for it, so that it never downloads one.

    Args:
        directory: DuckDB's extension directory.
        name: `httpfs`, or `motherduck`, which is an optional dependency.

    Returns:
        `directory`, laid out as DuckDB expects: `v<version>/<platform>/<name>.duckdb_extension`.

    Raises:
        LakeError: The wheel `duckdb-extension-<name>` is not installed.
    """
    platform = duckdb.execute("pragma platform").fetchall()[0][0]
    target_dir = directory / f"v{duckdb.__version__}" / platform
    target_dir.mkdir(parents=True, exist_ok=True)
    spec = importlib.util.find_spec(f"duckdb_extension_{name}")
    if spec is None or spec.origin is None:
        raise LakeError(
            f"The DuckDB extension {name} is not installed.",
            "Run `make setup`." if name == "httpfs" else "Run `.uv/bin/uv sync --frozen --extra motherduck`.",
        )
    source = Path(spec.origin).parent / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
    if not source.is_file():
        raise LakeError(
            f"The installed {name} extension does not fit DuckDB {duckdb.__version__}.",
            "Run `make setup`.",
        )
    link = target_dir / source.name
    if not link.is_symlink() or link.readlink() != source:
        link.unlink(missing_ok=True)
        link.symlink_to(source)
    return directory


@contextmanager
def open_warehouse(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the warehouse for writing, with its bookkeeping tables made on first use."""
    settings.warehouse_path.parent.mkdir(parents=True, exist_ok=True)
    with connect_warehouse(settings) as connection:
        _name_collections(connection)
        connection.execute(_OPS_TABLES)
        _allow_unknown_intervals(connection)
        connection.execute(
            "insert into ops.info select ?, now() where not exists (from ops.info)",
            [uuid.uuid4().hex],
        )
        yield connection


def open_to_read(settings: Settings) -> duckdb.DuckDBPyConnection:
    """Open the warehouse for reading.

    Raises:
        LakeError: There is none yet, or another process is writing it.
    """
    if not settings.has_warehouse:
        raise LakeError("There is no warehouse yet.", "Run `make run` first.")
    return connect_warehouse(settings, read_only=True)


def _name_collections(warehouse: duckdb.DuckDBPyConnection) -> None:
    """Bring a warehouse of the time when entries were the only collection to the present shape, without loss."""
    try:
        columns = [row[0] for row in warehouse.execute("describe ops.batches").fetchall()]
    except duckdb.CatalogException:
        return
    if "collection" in columns:
        return
    warehouse.begin()
    warehouse.execute("create or replace temp table old_batches as from ops.batches")
    warehouse.execute("drop table ops.batches")
    warehouse.execute(_OPS_TABLES)
    warehouse.execute(f"insert into ops.batches select '{ENTRIES.name}', * from old_batches")
    warehouse.execute("drop table old_batches")
    warehouse.commit()


def _allow_unknown_intervals(warehouse: duckdb.DuckDBPyConnection) -> None:
    """In a warehouse of version 0.1 every sensor's interval had to be known; what is altered is written at the end."""
    is_nullable = {row[0]: row[2] == "YES" for row in warehouse.execute("describe ops.sites").fetchall()}
    if not is_nullable["sensor_interval_minutes"]:
        warehouse.execute("alter table ops.sites alter column sensor_interval_minutes drop not null")


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
