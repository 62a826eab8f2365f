"""Raw files that are older than some days, moved out of the lake into an archive, after a verified rebuild.

Nothing is removed that is the only copy of what a server sent:

1. Of each site's collection all raw files, those of the archive and those of the lake, are processed into an empty
   lake, and its rows compared with the processed files in use. Only if all are the same, of every site, is anything
   moved.
2. The files are copied into the archive, each read back and compared.
3. The archive's manifest names them, then the lake's `pruned.json`: from here on they count as being there.
4. Only then they are removed from the lake.

Killed before the third step, the lake has all and the archive some copies; after it, the archive has all and the lake
some copies, which nobody reads (`lake.raw_files`). The next pruning compares the copies and removes them.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from nightscout_lakehouse.lib.care.archive import (
    Archive,
    ArchivedFile,
    check_still_there,
    copy_into,
    make_ready,
    moved_files,
    open_archive,
    other_files,
    says_if_it_fails,
    stretch_of,
    write_manifest,
)
from nightscout_lakehouse.lib.care.compaction import processed_until, read_raw
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.ingestion import site_timezone
from nightscout_lakehouse.lib.lake import (
    Lake,
    Pruned,
    RawFile,
    load_pruned,
    partition_files,
    pruned_file,
    raw_files,
    raw_folder,
    remember_archive,
    save_pruned,
    sql_list,
    sql_text,
    superseded_files,
)
from nightscout_lakehouse.lib.locking import lake_lock
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS, Collection
from nightscout_lakehouse.lib.processing import build_anew, pending_files
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect, open_to_read

logger = logging.getLogger(__name__)

# How many files are looked at together, and after how many the log says how far it is.
_FILES_AT_ONCE: Final = 500
_DIFFERENCES_SHOWN: Final = 3


@dataclass(frozen=True)
class _Content:
    """A raw file of the lake and what is in it."""

    file: RawFile
    documents: int
    deletions: int
    newest: datetime


@dataclass(frozen=True)
class Planned:
    """What a pruning does with a site's collection.

    Attributes:
        site: Name of the site.
        collection: The collection.
        contents: The raw files that it moves, in the order of their batches.
        leftovers: Copies of these, or of what was moved before, that a killed pruning or compaction left in the lake.
        size_bytes: Size of both.
    """

    site: str
    collection: Collection
    contents: tuple[_Content, ...]
    leftovers: tuple[RawFile, ...]
    size_bytes: int

    @property
    def name(self) -> str:
        """What it is about, for people."""
        return f"{self.site}, {self.collection.name}"

    @property
    def first(self) -> int:
        """Number of the first batch that moves."""
        return self.contents[0].file.first

    @property
    def last(self) -> int:
        """Number of the last batch that moves."""
        return self.contents[-1].file.last

    @property
    def documents(self) -> int:
        """Documents in the files that move."""
        return sum(each.documents for each in self.contents)


@dataclass(frozen=True)
class BroughtBack:
    """What was brought back of a site's collection: files, and the bytes they have."""

    site: str
    collection: str
    files: int
    size_bytes: int


def plan_pruning(settings: Settings, path: Path, *, older_than_days: int, now: datetime | None = None) -> list[Planned]:
    """Which raw files a pruning would move; nothing is touched.

    Args:
        settings: Of which lake.
        path: Folder of the archive.
        older_than_days: How long ago the last document of a file must have been fetched.
        now: The time that this is counted from.

    Raises:
        LakehouseError: No archive can be there, or raw files are missing.
    """
    lake = Lake.open(settings)
    open_archive(settings, lake, path)
    before = (now or datetime.now(UTC)) - timedelta(days=older_than_days)
    planned = []
    with closing(connect(settings)) as engine:
        for collection in COLLECTIONS:
            for folder in lake.list_folders(f"raw/{collection.name}"):
                each = _plan_site(engine, lake, folder.rpartition("site=")[2], collection, before)
                if each.contents or each.leftovers:
                    planned.append(each)
    return planned


def prune(settings: Settings, path: Path, *, older_than_days: int, now: datetime | None = None) -> list[Planned]:
    """Move old raw files into an archive, once a rebuild from all of them has given what is in use.

    Args:
        settings: Of which lake.
        path: Folder of the archive; it is made if its parent is there.
        older_than_days: How long ago the last document of a file must have been fetched.
        now: The time that this is counted from.

    Returns:
        What was moved, by site and collection.

    Raises:
        LakehouseError: Another run is writing the lake, the archive is not whole or cannot be written, or a rebuild
            gives something else than what is in use. Nothing was moved then, or what was is in the archive whole.
    """
    lake = Lake.open(settings)
    archive = open_archive(settings, lake, path)
    with lake_lock(settings, "lakehouse prune", wait_seconds=0):
        planned = plan_pruning(settings, path, older_than_days=older_than_days, now=now)
        if not planned:
            return []
        with says_if_it_fails(archive):
            folders = [raw_folder(each.site, each.collection) for each in planned]
            make_ready(archive, lake, folders, sum(each.size_bytes for each in planned))
            moved = [_check_site(lake, archive, each) for each in planned]
        zones = _zones_in_use(settings)
        for each, in_archive in zip(planned, moved, strict=True):
            if each.contents:
                zone = zones.get(each.site) or site_timezone(lake, Site(each.site, ""))[0]
                _verify_rebuild(settings, lake, archive, each, in_archive, zone)
        for each, in_archive in zip(planned, moved, strict=True):
            with says_if_it_fails(archive):
                _move(lake, archive, each, in_archive)
    return planned


def bring_back(settings: Settings, path: Path) -> tuple[list[BroughtBack], dict[str, str]]:
    """Copy the raw files of an archive back into the lake, where they count again; the archive keeps its copies.

    Returns:
        What was brought back, and what was moved to another archive: which, by site and collection.

    Raises:
        LakehouseError: Another run is writing the lake, or the archive is not whole; then nothing was brought back.
    """
    lake = Lake.open(settings)
    archive = open_archive(settings, lake, path)
    elsewhere: dict[str, str] = {}
    back = []
    with lake_lock(settings, "lakehouse prune", wait_seconds=0), says_if_it_fails(archive):
        found: list[tuple[str, Collection, list[ArchivedFile]]] = []
        for collection in COLLECTIONS:
            for folder in lake.list_folders(f"raw/{collection.name}"):
                site = folder.rpartition("site=")[2]
                pruned = load_pruned(lake, site, collection)
                if pruned is None:
                    continue
                if pruned.archive != str(archive.root) and not archive.folder(site, collection).is_dir():
                    elsewhere[f"{site}, {collection.name}"] = pruned.archive
                    continue
                found.append((site, collection, moved_files(archive, site, collection, pruned)))
        for site, collection, files in found:
            for number, file in enumerate(files, start=1):
                _copy_back(lake, archive, site, collection, file)
                _say_how_far(site, collection, number, len(files), "back")
            remember_archive(lake, site, collection, str(archive.root))
            # All are there again: from here on they count.
            lake.delete(pruned_file(site, collection))
            back.append(BroughtBack(site, collection.name, len(files), sum(file.size_bytes for file in files)))
    return back, elsewhere


# What is to be moved


def _plan_site(
    engine: duckdb.DuckDBPyConnection, lake: Lake, site: str, collection: Collection, before: datetime
) -> Planned:
    pruned = load_pruned(lake, site, collection)
    until = pruned.until if pruned else 0
    processed = processed_until(lake, site, collection)
    files = [file for file in raw_files(lake, site, collection) if file.last <= processed]
    old: list[_Content] = []
    for start in range(0, len(files), _FILES_AT_ONCE):
        some = files[start : start + _FILES_AT_ONCE]
        contents = _contents(engine, lake, some)
        too_young = next((place for place, each in enumerate(contents) if each.newest >= before), None)
        old += contents[:too_young]
        if too_young is not None:
            break
    if old:
        _check_no_gap(lake, site, collection, files, until, processed)
    moved_until = old[-1].file.last if old else until
    leftovers = [file for file in superseded_files(lake, site, collection) if file.last <= moved_until]
    size = sum(lake.size_bytes(file.path) for file in (*(each.file for each in old), *leftovers))
    return Planned(site, collection, tuple(old), tuple(leftovers), size)


def _contents(engine: duckdb.DuckDBPyConnection, lake: Lake, files: Sequence[RawFile]) -> list[_Content]:
    paths = [lake.duckdb_path(file.path) for file in files]
    query = f"""
        select
            filename,
            count(*) filter (operation = 'upsert'),
            count(*) filter (operation = 'delete'),
            max(fetched_at)
        from read_parquet({sql_list(paths)}, filename = true, hive_partitioning = false)
        group by filename
    """
    with _says_what_cannot_be_read("Raw files"):
        rows = engine.execute(query).fetchall()
    found = {path: values for path, *values in rows}
    return [_Content(file, *found[path]) for file, path in zip(files, paths, strict=True)]


def _check_no_gap(
    lake: Lake, site: str, collection: Collection, files: Sequence[RawFile], until: int, processed: int
) -> None:
    reached = until
    for file in (*files, RawFile("", processed + 1, processed + 1)):
        if file.first != reached + 1:
            raise LakehouseError(
                f"{site}, {collection.name}: the raw files of batches {reached + 1} to {file.first - 1} are gone from "
                f"{lake.url}, so nothing can be built anew to compare.",
                "Nothing was moved. Put them back from a backup.",
            )
        reached = file.last


def _check_site(lake: Lake, archive: Archive, planned: Planned) -> list[ArchivedFile]:
    """The files in the archive, seen to be whole; what else lies there must be copies of what the lake has."""
    site, collection = planned.site, planned.collection
    pruned = load_pruned(lake, site, collection)
    moved = moved_files(archive, site, collection, pruned)
    for file in other_files(archive, site, collection, moved):
        if not _has_same_rows(lake, archive, site, collection, moved, archive.as_lake(), file):
            raise LakehouseError(
                f"{archive.root / file.path} is neither a copy of what the lake has in these batches nor of what was "
                "moved there.",
                "Nothing was moved. If this folder is the archive of another lakehouse, give one of its own; else move "
                "the file away.",
            )
    for file in planned.leftovers:
        if not _has_same_rows(lake, archive, site, collection, moved, lake, file):
            raise LakehouseError(
                f"{lake.url}/{file.path} is left of what was moved or put together, and differs from it.",
                "Nothing was moved. This is a fault of the program; please report it.",
            )
    return moved


def _has_same_rows(
    lake: Lake,
    archive: Archive,
    site: str,
    collection: Collection,
    moved: Sequence[ArchivedFile],
    place: Lake,
    file: RawFile,
) -> bool:
    """Whether all rows of a file, and no others of its batches, are in the files that count."""
    counting = [(archive.as_lake(), archive.raw_file(site, collection, each)) for each in moved]
    counting += [(lake, each) for each in raw_files(lake, site, collection)]
    batches = pa.array(range(file.first, file.last + 1), pa.int64())
    parts = []
    for where, each in counting:
        if each.first <= file.last and file.first <= each.last:
            rows = read_raw(where, each.path)
            parts.append(rows.filter(pc.is_in(rows["batch"], batches)))
    return bool(parts) and pa.concat_tables(parts).equals(read_raw(place, file.path))


# The rebuild


def _zones_in_use(settings: Settings) -> Mapping[str, str]:
    """The time zone that each site was processed with, as far as there is a warehouse that knows."""
    if not settings.has_warehouse:
        return {}
    with closing(open_to_read(settings)) as warehouse:
        try:
            return dict(warehouse.execute("select site, timezone from ops.sites").fetchall())
        except duckdb.CatalogException:
            return {}


def _verify_rebuild(
    settings: Settings, lake: Lake, archive: Archive, planned: Planned, moved: Sequence[ArchivedFile], zone: str
) -> None:
    """Build the site's collection anew from all its raw files, and compare it with what is in use.

    Raises:
        LakehouseError: They are not the same.
    """
    site, collection = planned.site, planned.collection
    processed = processed_until(lake, site, collection)
    of_archive = archive.as_lake()
    files = [(of_archive.duckdb_path(archive.raw_file(site, collection, file).path), file.rows) for file in moved]
    files += [
        (lake.duckdb_path(file.path), lake.parquet_rows(file.path))
        for file in raw_files(lake, site, collection)
        if file.last <= processed
    ]
    logger.info("%s: building it anew from %s files", planned.name, f"{len(files):,}")
    scratch = settings.home / "tmp" / "prune"
    # What is left of one that was killed.
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True, mode=0o700)
        built = Lake(str(scratch), str(scratch), pafs.LocalFileSystem())
        with _says_what_cannot_be_read(planned.name), closing(connect(settings)) as engine:
            build_anew(settings, built, site, zone, files, collection)
            same, differences = _compare(engine, lake, built, site, collection)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if differences:
        more = f" and {len(differences) - _DIFFERENCES_SHOWN:,} more" if len(differences) > _DIFFERENCES_SHOWN else ""
        raise LakehouseError(
            f"{planned.name}: built anew from its raw files it is not what is in use: "
            f"{'; '.join(differences[:_DIFFERENCES_SHOWN])}{more}.",
            _mend(lake, archive, planned, has_moved=bool(moved)),
        )
    logger.info("%s: all %s processed files are the same", planned.name, f"{same:,}")


def _mend(lake: Lake, archive: Archive, planned: Planned, *, has_moved: bool) -> str:
    if pending_files(lake, planned.site, planned.collection):
        return "Nothing was moved. Some batches are not processed yet: run `lakehouse run`, then prune."
    first = f"run `lakehouse prune {archive.root} --bring-back`, " if has_moved else ""
    return (
        "Nothing was moved. If an upgrade, or another time zone of the site, has changed the rules since it was "
        f"processed: {first}remove {lake.url}/processed/{planned.collection.name}, run `lakehouse run`, and prune. If "
        "it differs even then, please report it."
    )


@contextmanager
def _says_what_cannot_be_read(what: str) -> Iterator[None]:
    try:
        yield
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        raise LakehouseError(
            f"{what} cannot be read ({str(error).partition(chr(10))[0]}).",
            "Nothing was moved. Check the disk, and put the file back from a copy.",
        ) from None


def _compare(
    engine: duckdb.DuckDBPyConnection, used: Lake, built: Lake, site: str, collection: Collection
) -> tuple[int, list[str]]:
    """How many partitions have the same rows in two lakes, and one text for each that has not."""
    same, differences = 0, []
    for kind in collection.all_kinds:
        in_use, anew = (partition_files(lake, kind, site, collection) for lake in (used, built))
        for month in sorted({*in_use, *anew}):
            here = _rows_sql(used, in_use.get(month), collection)
            there = _rows_sql(built, anew.get(month), collection)
            try:
                (counts,) = engine.execute(
                    f"select (select count(*) from ({here} except all {there})),"
                    f" (select count(*) from ({there} except all {here}))"
                ).fetchall()
            except duckdb.BinderException:
                differences.append(f"{kind} of {month} has other columns")
                continue
            if any(counts):
                differences.append(f"{kind} of {month} has {counts[0]:,} other rows in use, and {counts[1]:,} anew")
            else:
                same += 1
    return same, differences


def _rows_sql(lake: Lake, file: str | None, collection: Collection) -> str:
    if file is None:
        nothing = ", ".join(f"null::{kind} as {name}" for name, kind in collection.columns.items())
        return f"(select {nothing} where false)"
    source = f"read_parquet({sql_text(lake.duckdb_path(file))}, hive_partitioning = false)"
    return f"(select {', '.join(collection.columns)} from {source})"


# There and back


def _move(lake: Lake, archive: Archive, planned: Planned, moved: Sequence[ArchivedFile]) -> None:
    site, collection = planned.site, planned.collection
    folder = archive.folder(site, collection)
    files = list(moved)
    before = load_pruned(lake, site, collection)
    if planned.contents:
        remember_archive(lake, site, collection, str(archive.root))
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for partial in folder.glob(".*.partial"):
            partial.unlink()
        for number, each in enumerate(planned.contents, start=1):
            size, digest = copy_into(archive, lake, each.file.path)
            name = each.file.path.rpartition("/")[2]
            batches = (each.file.first, each.file.last)
            files.append(ArchivedFile(name, *batches, each.documents, each.deletions, size, digest))
            _say_how_far(site, collection, number, len(planned.contents), "copied")
        write_manifest(archive, site, collection, files)
        stretch = stretch_of(files[len(moved) :], datetime.now(UTC).isoformat(timespec="seconds"))
        stretches = (*(before.stretches if before else ()), stretch)
        save_pruned(lake, site, collection, Pruned(str(archive.root), stretches))
    # What is left of a pruning or compaction that was killed was compared, as were the copies in the archive.
    first, *others = [each.file.path for each in planned.contents] + [each.path for each in planned.leftovers]
    content = lake.read_bytes(first)
    lake.delete(first)
    try:
        check_still_there(archive, site, collection, files)
    except (LakehouseError, OSError):
        lake.write_bytes(first, content, durable=True)
        if before is None:
            lake.delete(pruned_file(site, collection))
        else:
            save_pruned(lake, site, collection, before)
        raise
    for path in others:
        lake.delete(path)
    for copy in other_files(archive, site, collection, files):
        (archive.root / copy.path).unlink()


def _copy_back(lake: Lake, archive: Archive, site: str, collection: Collection, file: ArchivedFile) -> None:
    path = archive.raw_file(site, collection, file).path
    lake.write_bytes(path, (archive.root / path).read_bytes(), durable=True)
    if hashlib.sha256(lake.read_bytes(path)).hexdigest() != file.sha256:
        raise LakehouseError(f"{lake.url}/{path} is not what was written.", "Check the disk, then run the same again.")


def _say_how_far(site: str, collection: Collection, number: int, total: int, what: str) -> None:
    if number % _FILES_AT_ONCE == 0 or number == total:
        logger.info("%s, %s: %s of %s files %s", site, collection.name, f"{number:,}", f"{total:,}", what)
