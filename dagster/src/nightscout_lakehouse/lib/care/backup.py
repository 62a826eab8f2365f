"""A backup: everything that cannot be made again, in one folder with a manifest of checksums and versions.

Below the folder of a backup:

    manifest.json       versions, checksums, what was left out and why, and the figures of each site
    lake/…              the lake, from a folder or a bucket
    warehouse.duckdb    the warehouse, all of it checkpointed
    home/…              what else lies in LAKEHOUSE_HOME: Dagster's runs, alerts, lineage, reports, logs
    postgres.dump       our schemas of the serving database
    dagster.dump        Dagster's storage, where it is in Postgres
    superset.dump       Superset's users, charts and dashboards, where it has any
"""

import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final

import duckdb

from nightscout_lakehouse.lib.care.files import (
    SQLITE_COMPANIONS,
    copy_file,
    copy_stream,
    private_file,
    sha256_of,
    whole_folder,
)
from nightscout_lakehouse.lib.care.postgres_dump import SCHEMAS, dump_database
from nightscout_lakehouse.lib.dashboard.databases import SUPERSET, metadata_connection
from nightscout_lakehouse.lib.embedded_postgres import password_file
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lake import Lake, load_pruned
from nightscout_lakehouse.lib.locking import lake_lock
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection, parse_database_url
from nightscout_lakehouse.lib.serving import serving_database
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.warehouse import connect

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
LAKE: Final = "lake"
HOME: Final = "home"
WAREHOUSE: Final = "warehouse.duckdb"
POSTGRES: Final = "postgres.dump"
DAGSTER: Final = "dagster.dump"
SUPERSET_DUMP: Final = "superset.dump"
# Where other programs keep their tables in databases of their own.
OTHER_SCHEMAS: Final = ("public",)
_PACKAGES: Final = ("nightscout-lakehouse", "duckdb", "dagster")

LEFT_OUT: Final[Mapping[str, str]] = {
    "postgres": "the server's files and its generated passwords: its content is dumped, a restore makes new passwords",
    "dbt": "compiled models: each run makes them",
    "duckdb_extensions": "links into the installed packages",
    "tmp": "scratch files",
    "lake.lock": "who writes the lake now",
    "lake.holder": "who writes the lake now",
}
# Made by a restore: what it brought in and not yet put in place, and what it replaced.
RESTORING: Final = ".restoring"
REPLACED: Final = ".replaced-"
_NOT_HERE: Final = (
    ".env and sites.toml, which hold or name the tokens: keep them where you keep passwords",
    "the settings of the environment, such as DATABASE_URL",
)


@dataclass(frozen=True)
class SavedFile:
    """One file of a backup.

    Attributes:
        path: Where it lies below the backup's folder.
        size_bytes: Its size.
        sha256: Hash of its content, in hex.
        mode: Its permissions when it was saved, such as `600`.
    """

    path: str
    size_bytes: int
    sha256: str
    mode: str = "600"


@dataclass(frozen=True)
class Manifest:
    """What a backup holds.

    Attributes:
        format: Version of this layout.
        created_at: When it was made, ISO 8601, UTC.
        versions: Of the programs that made it.
        figures: Readings, their mean, first and last time of each site, to compare after a restore.
        files: Every file, with its checksum.
        left_out: What is not in it, and why.
    """

    format: int
    created_at: str
    versions: Mapping[str, str]
    figures: Mapping[str, Mapping[str, Any]]
    files: tuple[SavedFile, ...]
    left_out: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size_bytes for file in self.files)


def back_up(settings: Settings, target: Path, *, with_postgres: bool = True) -> Manifest:
    """Save a lakehouse while no run writes it.

    Args:
        settings: Which one.
        target: The folder to make; it appears when the backup is whole.
        with_postgres: Whether to dump the serving database too.

    Raises:
        LakehouseError: There is nothing to save, no room, or a part cannot be read.
    """
    target = target.expanduser().absolute()
    lake = Lake.open(settings)
    for folder in (settings.home, *([Path(lake.url)] if lake.is_local else [])):
        if target.is_relative_to(folder):
            raise LakehouseError(f"{target} lies inside {folder}, which is what is saved.", "Choose another place.")
    with lake_lock(settings, "lakehouse backup"), whole_folder(target, "backup") as folder:
        lake_files = [*lake.list_files("raw", recursive=True), *lake.list_files("processed", recursive=True)]
        if not lake_files and not settings.warehouse_path.is_file():
            raise LakehouseError("There is nothing to back up yet.", "Run the pipeline first.")
        _check_room(settings, lake, lake_files, folder)
        files = [*_save_lake(lake, lake_files, folder), *_save_home(settings, lake, folder)]
        figures: dict[str, dict[str, Any]] = {}
        left_out = {name: reason for name, reason in LEFT_OUT.items() if (settings.home / name).is_dir()}
        left_out |= dict.fromkeys(_NOT_HERE, "they hold secrets")
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        if settings.warehouse_path.is_file():
            saved, figures = _save_warehouse(settings, folder)
            files.append(saved)
        else:
            left_out["warehouse"] = "there is no file of it: the next run builds it from the lake"
        if with_postgres and _has_database(settings):
            dumps, versions["postgres"] = _save_postgres(settings, folder)
            files += dumps
        else:
            left_out["Postgres"] = "as asked, or never filled: the next run publishes all of it from the warehouse"
        dagster = dagster_database(settings)
        if with_postgres and dagster is not None:
            files.append(_dumped(dagster, folder / DAGSTER, ()))
        if settings.drop_dir_setting is not None and not settings.drop_dir.is_relative_to(settings.home):
            left_out[str(settings.drop_dir)] = "it lies elsewhere and is yours; what was imported is in the lake"
        left_out |= dict.fromkeys(
            archives_of(lake), "the archive of `lakehouse prune`, the only place of these raw files: copy it, too"
        )
        manifest = Manifest(
            FORMAT, datetime.now(UTC).isoformat(timespec="seconds"), versions, figures, tuple(files), left_out
        )
        with private_file(folder / MANIFEST) as file:
            file.write(json.dumps(asdict(manifest), indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
    return manifest


def archives_of(lake: Lake) -> list[str]:
    """Folders to which raw files of the lake were moved, and which are their only place."""
    found = set()
    for collection in COLLECTIONS:
        for folder in lake.list_folders(f"raw/{collection.name}"):
            if (pruned := load_pruned(lake, folder.rpartition("site=")[2], collection)) is not None:
                found.add(pruned.archive)
    return sorted(found)


def read_manifest(source: Path) -> Manifest:
    """What a backup says that it holds.

    Raises:
        LakehouseError: It is no backup, or one of a newer version.
    """
    path = source / MANIFEST
    if not path.is_file():
        raise LakehouseError(f"{source} is not a backup: it has no {MANIFEST}.", "Give the folder of a backup.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise LakehouseError(f"{source} was made by a newer version.", "Upgrade first.")
        manifest = Manifest(**content | {"files": tuple(SavedFile(**file) for file in content["files"])})
    except (ValueError, KeyError, TypeError):
        raise LakehouseError(f"{path} is damaged.", "Take another backup.") from None
    for file in manifest.files:
        parts = PurePosixPath(file.path).parts
        if PurePosixPath(file.path).is_absolute() or ".." in parts or not parts:
            raise LakehouseError(f"{path} names a file outside of the backup.", "Take another backup.")
    return manifest


def verify(source: Path, manifest: Manifest) -> None:
    """Hold every file of a backup to its checksum.

    Raises:
        LakehouseError: A file is missing, is too many, or differs.
    """
    faults = []
    for file in manifest.files:
        path = source / file.path
        if path.is_symlink() or not path.is_file():
            faults.append(f"{file.path} is missing")
        elif path.stat().st_size != file.size_bytes or sha256_of(path) != file.sha256:
            faults.append(f"{file.path} is damaged")
    known = {file.path for file in manifest.files} | {MANIFEST}
    for path in source.rglob("*"):
        if (path.is_file() or path.is_symlink()) and path.relative_to(source).as_posix() not in known:
            faults.append(f"{path.relative_to(source)} is not of the backup")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise LakehouseError(
            f"The backup {source} is not whole: {'; '.join(faults[:3])}{more}.", "Nothing was touched. Take another."
        )


def figures_of(warehouse: duckdb.DuckDBPyConnection) -> dict[str, dict[str, Any]]:
    """Readings, their mean, first and last time of each site; empty where the models were never built."""
    try:
        rows = warehouse.execute(
            """
            select
                site, count(*), round(avg(glucose_mg_dl), 6), min(reading_timestamp)::varchar,
                max(reading_timestamp)::varchar
            from curated.fact_glucose_readings
            group by site
            order by site
            """
        ).fetchall()
    except duckdb.CatalogException:
        return {}
    names = ("readings", "mean_glucose_mg_dl", "first_reading", "last_reading")
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}


def _save_lake(lake: Lake, files: list[str], folder: Path) -> Iterator[SavedFile]:
    for file in files:
        path = f"{LAKE}/{file}"
        with lake.filesystem.open_input_stream(f"{lake.root}/{file}") as stream:
            yield SavedFile(path, *copy_stream(stream, folder / path))


def _save_home(settings: Settings, lake: Lake, folder: Path) -> Iterator[SavedFile]:
    for source in home_files(settings, lake):
        path = f"{HOME}/{source.relative_to(settings.home).as_posix()}"
        try:
            mode = f"{source.stat().st_mode & 0o777:o}"
            yield SavedFile(path, *copy_file(source, folder / path), mode=mode)
        except FileNotFoundError:
            # Of another program, which removed it meanwhile: a log, a scratch file.
            (folder / path).unlink(missing_ok=True)


def home_files(settings: Settings, lake: Lake) -> Iterator[Path]:
    """Files of LAKEHOUSE_HOME that are saved as they are: neither lake, warehouse nor what is made again."""
    elsewhere = {Path(lake.url) if lake.is_local else None, settings.warehouse_scratch_dir}
    for parent, folders, names in os.walk(settings.home):
        here = Path(parent)
        folders[:] = sorted(
            name
            for name in folders
            if here / name not in elsewhere and not (here == settings.home and is_not_saved(name))
        )
        for name in sorted(names):
            path = here / name
            if path.is_symlink() or not path.is_file() or (here == settings.home and is_not_saved(name)):
                continue
            if path.name.startswith(settings.warehouse_path.name) and here == settings.warehouse_path.parent:
                continue
            if any(name.endswith(end) and (here / name.removesuffix(end)).is_file() for end in SQLITE_COMPANIONS):
                continue
            yield path


def is_not_saved(name: str) -> bool:
    """Whether something directly in LAKEHOUSE_HOME is made again, or is of a restore."""
    return name in LEFT_OUT or name == RESTORING or name.startswith(REPLACED)


def _save_warehouse(settings: Settings, folder: Path) -> tuple[SavedFile, dict[str, dict[str, Any]]]:
    path = settings.warehouse_path
    if path.with_name(f"{path.name}.wal").exists():
        # Of a run that was killed: opening it for writing takes it in.
        with connect(settings, path) as warehouse:
            warehouse.execute("checkpoint")
    # While we have it open, nobody else can write it.
    with connect(settings, path, read_only=True) as warehouse:
        saved = SavedFile(WAREHOUSE, *copy_file(path, folder / WAREHOUSE))
        return saved, figures_of(warehouse)


def _has_database(settings: Settings) -> bool:
    return bool(settings.database_url.get_secret_value()) or (settings.postgres_dir / "data").is_dir()


def _save_postgres(settings: Settings, folder: Path) -> tuple[list[SavedFile], str]:
    with serving_database(settings) as connection:
        saved = [_dumped(connection, folder / POSTGRES, SCHEMAS)]
        superset = superset_database(settings, connection)
        if superset is not None:
            saved.append(_dumped(superset, folder / SUPERSET_DUMP, ()))
        opened = connection.connect()
        version = str(opened.server_version // 10_000)
        opened.close()
    return saved, version


def _dumped(connection: PostgresConnection, target: Path, schemas: Sequence[str]) -> SavedFile:
    dump_database(connection, target, schemas)
    return SavedFile(target.name, target.stat().st_size, sha256_of(target))


def superset_database(settings: Settings, owner: PostgresConnection) -> PostgresConnection | None:
    """Superset's own database; None where it has none that we know of. Makes none.

    Args:
        settings: Name an external one.
        owner: The owner's connection to the serving database, which runs.
    """
    is_external = bool(settings.superset_database_url.get_secret_value())
    is_embedded = (
        not settings.database_url.get_secret_value() and password_file(settings.postgres_dir, SUPERSET).exists()
    )
    return metadata_connection(settings, owner) if is_external or is_embedded else None


def dagster_database(settings: Settings) -> PostgresConnection | None:
    """Where Dagster's storage is in Postgres; None where it is in files."""
    url = settings.dagster_postgres_url.get_secret_value()
    return parse_database_url(url, variable="DAGSTER_POSTGRES_URL") if url else None


def _check_room(settings: Settings, lake: Lake, lake_files: list[str], folder: Path) -> None:
    needed = sum(lake.size_bytes(file) for file in lake_files)
    needed += sum(path.stat().st_size for path in home_files(settings, lake))
    if settings.warehouse_path.is_file():
        # Twice: the dump of Postgres, which holds the same figures, is not known before it is made.
        needed += 2 * settings.warehouse_path.stat().st_size
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise LakehouseError(
            f"The backup needs about {needed / 1e6:,.0f} MB, and {folder.parent} has {free / 1e6:,.0f} MB.",
            "Make room.",
        )
