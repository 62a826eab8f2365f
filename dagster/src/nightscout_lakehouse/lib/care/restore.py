"""Bringing a backup back: all of it is verified first, then put in place part by part.

The lake goes in place first, then the rest. What a killed restore leaves out is built from the lake by the next
run, and restoring again is always possible.
"""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from nightscout_lakehouse.lib.care.backup import (
    DAGSTER,
    HOME,
    LAKE,
    LEFT_OUT,
    POSTGRES,
    REPLACED,
    RESTORING,
    SUPERSET_DUMP,
    WAREHOUSE,
    Manifest,
    dagster_database,
    figures_of,
    read_manifest,
    verify,
)
from nightscout_lakehouse.lib.care.files import copy_file
from nightscout_lakehouse.lib.care.postgres_dump import SCHEMAS, restore_database
from nightscout_lakehouse.lib.dashboard.databases import metadata_connection
from nightscout_lakehouse.lib.embedded_postgres import password_file, stop_if_unused
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.locking import lake_lock
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.processing import refresh_views
from nightscout_lakehouse.lib.serving import READER, prepare_database, serving_database
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.warehouse import open_warehouse

# What commands make before they do anything, and nobody would miss.
_NOT_CONTENT: Final = frozenset({*LEFT_OUT, RESTORING, "logs"} - {"postgres"})


@dataclass(frozen=True)
class Restored:
    """What a restore did.

    Attributes:
        manifest: Of the backup.
        replaced: Where what was there before lies now; None if nothing was.
        has_postgres: Whether the serving database was restored.
    """

    manifest: Manifest
    replaced: Path | None
    has_postgres: bool


def restore(settings: Settings, source: Path, *, replace: bool = False, with_postgres: bool = True) -> Restored:
    """Put a backup in the place that the settings name.

    Args:
        settings: Where to.
        source: The folder of the backup.
        replace: Whether something may be there; it is moved aside, not removed.
        with_postgres: Whether to restore the serving database too.

    Raises:
        LakehouseError: The backup is not whole or is of a newer version, something is in the place, or is in use.
    """
    source = source.expanduser().absolute()
    manifest = read_manifest(source)
    _check_versions(manifest)
    verify(source, manifest)
    has_dump = with_postgres and any(file.path == POSTGRES for file in manifest.files)
    settings.home.mkdir(parents=True, exist_ok=True)
    with lake_lock(settings, "lakehouse restore", wait_seconds=0):
        present = _present(settings)
        if present and not replace:
            raise LakehouseError(
                f"{settings.home} is not empty: it has {', '.join(path.name for path in present[:4])}.",
                "Set LAKEHOUSE_HOME to a new folder, or add --replace: what is there is then moved aside.",
            )
        if not stop_if_unused(settings.postgres_dir):
            raise LakehouseError("The database of this lakehouse is in use.", "Stop `make dev` and try again.")
        lake = Lake.open(settings)
        is_inside = lake.is_local and Path(lake.url).is_relative_to(settings.home)
        if not is_inside and (lake.list_folders("raw") or lake.list_folders("processed")):
            raise LakehouseError(f"The lake {lake.url} is not empty.", "Set LAKE_URL to an empty folder or bucket.")
        if settings.warehouse_path.is_file() and settings.warehouse_path not in present and not replace:
            raise LakehouseError(f"{settings.warehouse_path} is there already.", "Add --replace to overwrite it.")
        if has_dump:
            _check_database(settings, replace=replace)
        staging = settings.home / RESTORING
        shutil.rmtree(staging, ignore_errors=True)
        _stage(source, manifest, staging, with_lake=is_inside)
        replaced = _move_aside(settings, present) if present else None
        if is_inside:
            _move(staging / LAKE, Path(lake.url))
        else:
            _upload(source, manifest, lake)
        _move(staging / WAREHOUSE, settings.warehouse_path)
        for part in sorted((staging / HOME).iterdir()) if (staging / HOME).is_dir() else ():
            _move(part, settings.home / part.name)
        shutil.rmtree(staging)
        _show_lake(settings, lake, manifest)
        if has_dump:
            _restore_postgres(settings, source)
        dagster = dagster_database(settings)
        if dagster is not None and with_postgres and (source / DAGSTER).is_file():
            restore_database(dagster, source / DAGSTER)
    return Restored(manifest, replaced, has_dump)


def _check_versions(manifest: Manifest) -> None:
    import importlib.metadata

    for name in ("nightscout-lakehouse", "duckdb"):
        saved, installed = manifest.versions.get(name, "0"), importlib.metadata.version(name)
        if _numbers(saved) > _numbers(installed):
            raise LakehouseError(
                f"The backup was made with {name} {saved}; installed is {installed}.",
                "Upgrade first; see CHANGELOG.md.",
            )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _present(settings: Settings) -> list[Path]:
    """What somebody may want to keep, in the place where the backup goes."""

    def is_content(path: Path) -> bool:
        if path.name in _NOT_CONTENT or path.name.startswith(REPLACED):
            return False
        # Every command writes Dagster's settings; that alone is nothing.
        is_file = path.is_file() or path.is_symlink()
        return is_file or any(file.is_file() and file.name != "dagster.yaml" for file in path.rglob("*"))

    return sorted(path for path in settings.home.iterdir() if is_content(path))


def _check_database(settings: Settings, *, replace: bool) -> None:
    if not settings.database_url.get_secret_value():
        return
    with serving_database(settings) as connection:
        opened = connection.connect()
        try:
            with opened.cursor() as cursor:
                cursor.execute(
                    "select count(*) from pg_tables where schemaname = any(%s) and schemaname <> 'ops'",
                    (list(SCHEMAS),),
                )
                tables = (cursor.fetchone() or (0,))[0]
        finally:
            opened.close()
    if tables and not replace:
        raise LakehouseError(
            f"The database {connection.address} has {tables} tables of a lakehouse.",
            "Add --replace to overwrite them, or --without-postgres to leave them as they are.",
        )


def _stage(source: Path, manifest: Manifest, staging: Path, *, with_lake: bool) -> None:
    """Copy what goes into LAKEHOUSE_HOME onto the disk where it will lie."""
    for file in manifest.files:
        part = file.path.partition("/")[0]
        if part in (POSTGRES, SUPERSET_DUMP, DAGSTER) or (part == LAKE and not with_lake):
            continue
        size, digest = copy_file(source / file.path, staging / file.path)
        # A copy of a SQLite file is as good as the file, and need not be the same bytes.
        if part != HOME and (size, digest) != (file.size_bytes, file.sha256):
            raise LakehouseError(f"{file.path} changed while it was restored.", "Nothing was replaced. Try again.")
        (staging / file.path).chmod(int(file.mode, 8) | 0o600)


def _move_aside(settings: Settings, present: list[Path]) -> Path:
    aside = settings.home / f"{REPLACED}{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    aside.mkdir(mode=0o711)
    # The lake last: without it nothing else is complete, and whoever is killed here still finds it in its place.
    for path in sorted(present, key=lambda path: path.name == LAKE):
        path.rename(aside / path.name)
    return aside


def _move(source: Path, target: Path) -> None:
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        # Made empty by a command, or with Dagster's settings in it.
        shutil.rmtree(target)
    source.rename(target) if source.stat().st_dev == target.parent.stat().st_dev else shutil.move(source, target)


def _upload(source: Path, manifest: Manifest, lake: Lake) -> None:
    prefix = f"{LAKE}/"
    # The states last: where they are missing, all files count as new, which is right though slow.
    files = sorted(
        (file.path for file in manifest.files if file.path.startswith(prefix)), key=lambda path: path.endswith(".json")
    )
    for path in files:
        lake.write_bytes(path.removeprefix(prefix), (source / path).read_bytes())


def _show_lake(settings: Settings, lake: Lake, manifest: Manifest) -> None:
    """Point the warehouse's views to where the lake lies now, and hold its figures to those of the backup."""
    if not settings.warehouse_path.is_file():
        return
    with open_warehouse(settings) as warehouse:
        for collection in COLLECTIONS:
            refresh_views(warehouse, lake, collection)
        figures = figures_of(warehouse)
    if figures != manifest.figures:
        raise LakehouseError(
            "The restored figures are not those of the backup.", "This is a fault of the program; please report it."
        )


def _restore_postgres(settings: Settings, folder: Path) -> None:
    """Restore the dumps of a folder: the serving database, and Superset's where there is one."""
    with serving_database(settings) as connection:
        restore_database(connection, folder / POSTGRES)
        prepare_again(settings, connection)
        if (folder / SUPERSET_DUMP).is_file() and has_place_for_superset(settings):
            restore_database(metadata_connection(settings, connection), folder / SUPERSET_DUMP)


def has_place_for_superset(settings: Settings) -> bool:
    """Whether Superset's database can be made or is named: beside an external serving database it must be named."""
    return bool(settings.superset_database_url.get_secret_value() or not settings.database_url.get_secret_value())


def prepare_again(settings: Settings, connection: PostgresConnection) -> None:
    """Give owners and readers what a dump does not hold."""
    is_ours = not settings.database_url.get_secret_value()
    prepare_database(connection, reader_password_file=password_file(settings.postgres_dir, READER) if is_ours else None)
