"""An archive: a folder outside of the lake with the raw files that `lakehouse prune` moved there.

It is laid out as the lake, with a manifest of checksums beside the files of each site's collection:

    raw/<collection>/site=<site>/batch=….parquet
    raw/<collection>/site=<site>/manifest.json
"""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import pyarrow.fs as pafs

from nightscout_lakehouse.lib.care.files import private_file, sha256_of
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lake import Lake, Pruned, PrunedStretch, RawFile, batches_of, raw_folder, sync_to_disk
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS, Collection
from nightscout_lakehouse.lib.settings import Settings

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
_FAULTS_SHOWN: Final = 3
# What a lake has beside its raw files, and an archive has not.
_OF_A_LAKE: Final = ("processed", "state.json", "imports.json", "pruned.json", "archives.json")


@dataclass(frozen=True)
class ArchivedFile:
    """A raw file in an archive.

    Attributes:
        name: Its name, as it was in the lake.
        first: Number of its first batch.
        last: Number of its last batch.
        documents: Documents in it.
        deletions: Deletions in it.
        size_bytes: Its size.
        sha256: Hash of its content, in hex.
    """

    name: str
    first: int
    last: int
    documents: int
    deletions: int
    size_bytes: int
    sha256: str

    @property
    def rows(self) -> int:
        """Its number of rows."""
        return self.documents + self.deletions


@dataclass(frozen=True)
class Archive:
    """The folder of an archive, absolute."""

    root: Path

    def folder(self, site: str, collection: Collection) -> Path:
        """Where the files of a site's collection lie."""
        return self.root / raw_folder(site, collection)

    def as_lake(self) -> Lake:
        """The same folder, to be read as a lake is."""
        return Lake(str(self.root), str(self.root), pafs.LocalFileSystem())

    def raw_file(self, site: str, collection: Collection, file: ArchivedFile) -> RawFile:
        """One of its files, as a lake names it."""
        return RawFile(f"{raw_folder(site, collection)}/{file.name}", file.first, file.last)


def open_archive(settings: Settings, lake: Lake, path: Path) -> Archive:
    """The archive in a folder, which need not be there yet.

    Raises:
        LakehouseError: No archive can be there: it is no folder, or lies in what it is to relieve.
    """
    root = path.expanduser().resolve()
    for folder in (settings.home, *([Path(lake.url)] if lake.is_local else [])):
        if root.is_relative_to(folder.resolve()):
            raise LakehouseError(
                f"{root} lies inside {folder}: moving files there would free nothing.",
                "Choose a folder elsewhere, best on another disk.",
            )
        # The same folder mounted a second time has another path.
        if folder.is_dir() and any(each.is_dir() and each.samefile(folder) for each in (root, *root.parents)):
            raise LakehouseError(
                f"{root} lies inside {folder} under another name: moving files there would free nothing.",
                "Choose a folder elsewhere, best on another disk.",
            )
    if root.exists() and not root.is_dir():
        raise LakehouseError(f"{root} is not a folder.", "Give a folder for the archive.")
    if not root.parent.is_dir():
        raise LakehouseError(
            f"There is no folder {root.parent} to make the archive in.", "Is the disk mounted? Else make it first."
        )
    if (root / MANIFEST).is_file():
        raise LakehouseError(f"{root} is a backup.", "Give a folder of its own for the archive.")
    return Archive(root)


def make_ready(archive: Archive, lake: Lake, folders: Sequence[str], needed_bytes: int) -> None:
    """Make the folder where it is missing, and see that it takes what is to be moved.

    Args:
        archive: The archive.
        lake: What is to be relieved.
        folders: Those of the lake whose files are to be moved.
        needed_bytes: Their size.

    Raises:
        LakehouseError: It has no room, or is the lake itself under another name.
        OSError: It cannot be written.
    """
    archive.root.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryFile(dir=archive.root):
        pass
    for folder in ("", *folders):
        _check_not_the_lake(archive, lake, folder)
    free = shutil.disk_usage(archive.root).free
    if free < needed_bytes:
        raise LakehouseError(
            f"The files have {needed_bytes / 1e6:,.1f} MB, and {archive.root} has {free / 1e6:,.1f} MB.",
            "Nothing was moved. Make room, or give a folder on another disk.",
        )


def _check_not_the_lake(archive: Archive, lake: Lake, folder: str) -> None:
    """Refuse where what is written into a folder of the archive appears in the lake, such as in a mounted bucket.

    A mount, or a server with a cache, may show it only later: so what each lake has and no archive is looked for, too.
    """
    place = archive.root / folder
    found = next((name for name in _OF_A_LAKE if (place / name).exists()), None)
    # A folder that is not there yet is none of the lake, which has all of them.
    if found is None and place.is_dir():
        name = f"probe-{secrets.token_hex(16)}.tmp"
        probe = place / name
        try:
            with private_file(probe) as file:
                file.write(b"Written by lakehouse prune; it may be removed.")
                file.flush()
                os.fsync(file.fileno())
            found = name if lake.exists(f"{folder}/{name}".lstrip("/")) else None
        finally:
            probe.unlink(missing_ok=True)
    if found is not None:
        raise LakehouseError(
            f"{place} is the lake {lake.url} under another name, or another lake (it has {found}): what is moved there "
            "would be removed with what is in the lake.",
            "Nothing was moved. Give a folder of its own for the archive, outside of the lake and its bucket.",
        )


def check_still_there(archive: Archive, site: str, collection: Collection, files: Sequence[ArchivedFile]) -> None:
    """See that the archive has its files still, now that one was removed from the lake.

    Raises:
        LakehouseError: One is gone, or has another size.
    """
    for file in files:
        path = archive.folder(site, collection) / file.name
        if not path.is_file() or path.stat().st_size != file.size_bytes:
            raise LakehouseError(
                f"{path} went when a file was removed from the lake: the archive is the lake under another name.",
                "The file was put back, and no other was removed. Give a folder of its own for the archive.",
            )


@contextmanager
def says_if_it_fails(archive: Archive) -> Iterator[None]:
    """Say plainly that an archive cannot be read or written."""
    try:
        yield
    except OSError as error:
        raise LakehouseError(
            f"The archive {archive.root} cannot be read and written ({error.strerror or error}).",
            "No raw file was lost. Check its disk and permissions, then run the same again.",
        ) from None


def read_manifest(archive: Archive, site: str, collection: Collection) -> tuple[ArchivedFile, ...]:
    """The files that an archive says it has of a site's collection, in the order of their batches.

    Raises:
        LakehouseError: The manifest is damaged, or of a newer version.
    """
    path = archive.folder(site, collection) / MANIFEST
    if not path.is_file():
        return ()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise LakehouseError(f"{path} was written by a newer version.", "Upgrade first.")
        files = tuple(ArchivedFile(**file) for file in content["files"])
    except (ValueError, KeyError, TypeError):
        raise LakehouseError(f"{path} is damaged.", "Bring the folder back from a copy of it.") from None
    if any(batches_of(file.name) != (file.first, file.last) or "/" in file.name for file in files):
        raise LakehouseError(f"{path} is damaged.", "Bring the folder back from a copy of it.")
    return tuple(sorted(files, key=lambda file: file.first))


def write_manifest(archive: Archive, site: str, collection: Collection, files: Sequence[ArchivedFile]) -> None:
    """Say in the archive which files of a site's collection it has."""
    folder = archive.folder(site, collection)
    content = {"format": FORMAT, "site": site, "collection": collection.name, "files": [asdict(f) for f in files]}
    partial = folder / f".{MANIFEST}.partial"
    partial.unlink(missing_ok=True)
    with private_file(partial) as file:
        file.write(json.dumps(content, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / MANIFEST)
    for each in (folder, *folder.parents):
        sync_to_disk(each)
        # Also what names the archive itself: it may have been made just now.
        if each == archive.root.parent:
            break


def copy_into(archive: Archive, lake: Lake, path: str) -> tuple[int, str]:
    """Copy a raw file of the lake into the archive, whole or not at all, and read it back.

    Returns:
        Its size in bytes and SHA-256.

    Raises:
        LakehouseError: It cannot be read, or what was read back is not what was written.
        OSError: The archive cannot be written.
    """
    target = archive.root / path
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    content = lake.read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    with private_file(partial) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if sha256_of(partial) != digest:
        partial.unlink()
        raise LakehouseError(
            f"{target} is not what was written.", "It is still in the lake. Check the disk of the archive."
        )
    partial.replace(target)
    return len(content), digest


def digest_of(files: Sequence[ArchivedFile]) -> str:
    """One hash for some files: of their names and hashes."""
    return hashlib.sha256("\n".join(f"{file.name} {file.sha256}" for file in files).encode()).hexdigest()


def stretch_of(files: Sequence[ArchivedFile], pruned_at: str) -> PrunedStretch:
    """What the lake keeps of files in a row that it moved into an archive."""
    return PrunedStretch(
        first=files[0].first,
        last=files[-1].last,
        documents=sum(file.documents for file in files),
        deletions=sum(file.deletions for file in files),
        size_bytes=sum(file.size_bytes for file in files),
        sha256=digest_of(files),
        pruned_at=pruned_at,
    )


def moved_files(archive: Archive, site: str, collection: Collection, pruned: Pruned | None) -> list[ArchivedFile]:
    """The files that were moved into the archive, each held to its checksum and all of them to what the lake keeps.

    Raises:
        LakehouseError: One is missing or has changed, or it is not the archive that they were moved to.
    """
    if pruned is None:
        return []
    listed = [file for file in read_manifest(archive, site, collection) if file.last <= pruned.until]
    faults = [fault for file in listed if (fault := _fault(archive.folder(site, collection) / file.name, file))]
    for stretch in pruned.stretches:
        files = [file for file in listed if stretch.first <= file.first and file.last <= stretch.last]
        if not files or stretch_of(files, stretch.pruned_at) != stretch:
            is_there = "has other files" if files else "does not have the files"
            faults.insert(0, f"it {is_there} of batches {stretch.first} to {stretch.last}")
    if faults:
        more = f" and {len(faults) - _FAULTS_SHOWN:,} more" if len(faults) > _FAULTS_SHOWN else ""
        raise LakehouseError(
            f"The archive {archive.root} is not whole for {site}, {collection.name}: "
            f"{'; '.join(faults[:_FAULTS_SHOWN])}{more}.",
            f"Nothing was moved. The files were moved to {pruned.archive}: is its disk mounted? Give the folder where "
            "they lie now, or bring them back from a copy.",
        )
    return listed


def _fault(path: Path, file: ArchivedFile) -> str:
    if not path.is_file():
        return f"{file.name} is missing"
    is_same = path.stat().st_size == file.size_bytes and sha256_of(path) == file.sha256
    return "" if is_same else f"{file.name} has changed"


def other_files(archive: Archive, site: str, collection: Collection, moved: Sequence[ArchivedFile]) -> list[RawFile]:
    """Raw files that lie in the archive and are not among those that were moved: of a pruning that was killed."""
    names = {file.name for file in moved}
    paths = sorted(archive.folder(site, collection).glob("batch=*.parquet"))
    return [
        RawFile(path.relative_to(archive.root).as_posix(), *batches)
        for path in paths
        if path.name not in names and (batches := batches_of(path.name))
    ]


def remove_site(archive: Archive, site: str) -> int:
    """Remove all files of a site; returns how many there were, 0 where the archive has nothing of it.

    Raises:
        OSError: They cannot be removed.
    """
    removed = 0
    for collection in COLLECTIONS:
        folder = archive.folder(site, collection)
        if folder.is_dir():
            removed += sum(path.is_file() for path in folder.iterdir())
            shutil.rmtree(folder)
    return removed
