"""Files that are copied, hashed and put in place whole."""

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Final

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lake import sync_to_disk

_BLOCK_BYTES: Final = 1 << 20
_SQLITE_HEADER: Final = b"SQLite format 3\0"
# What SQLite keeps beside a database; a copy by its own means has it inside.
SQLITE_COMPANIONS: Final = ("-wal", "-shm", "-journal")


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_stream(source: IO[bytes], target: Path) -> tuple[int, str]:
    """Copy a stream into a new file that only its owner can read.

    Returns:
        Size in bytes and SHA-256 of what was copied.
    """
    digest, size = hashlib.sha256(), 0
    with private_file(target) as file:
        while block := source.read(_BLOCK_BYTES):
            file.write(block)
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def copy_file(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file; a SQLite database by its own means, so that it is whole even while a program writes it.

    Returns:
        Size in bytes and SHA-256 of the copy.
    """
    if is_sqlite(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        with private_file(target):
            pass
        with (
            closing(sqlite3.connect(f"file:{_uri_path(source)}?mode=ro", uri=True, timeout=60)) as reader,
            closing(sqlite3.connect(target)) as writer,
        ):
            reader.backup(writer)
            # A database in WAL mode would leave companions beside the copy.
            writer.execute("pragma journal_mode = delete")
        return target.stat().st_size, sha256_of(target)
    with source.open("rb") as stream:
        return copy_stream(stream, target)


def is_sqlite(path: Path) -> bool:
    """Whether a file is a SQLite database."""
    with path.open("rb") as file:
        return file.read(len(_SQLITE_HEADER)) == _SQLITE_HEADER


@contextmanager
def private_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file for writing that only its owner can read (mode 600), its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        yield file


@contextmanager
def whole_folder(target: Path, what: str) -> Iterator[Path]:
    """Fill a folder that appears under its name when it is whole, or not at all.

    Args:
        target: The folder to make; its parent exists.
        what: What it will hold, for the message.

    Yields:
        Where to put its content: beside it, for its owner's eyes only.

    Raises:
        LakehouseError: There is something in the place already, or it cannot be written.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise LakehouseError(f"{target} is there already.", f"Give the name of a folder that the {what} will make.")
    partial = target.with_name(f".{target.name}.partial")
    try:
        # What is left of one that was killed.
        shutil.rmtree(partial, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(mode=0o700)
    except OSError as error:
        raise LakehouseError(f"{target} cannot be written ({error.strerror}).", "Choose another place.") from None
    try:
        yield partial
        sync_to_disk(partial)
        # Replaces an empty folder, and nothing else.
        partial.rename(target)
        sync_to_disk(target.parent)
    except BaseException:
        # Ctrl-C, too: half a backup is none.
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _uri_path(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
