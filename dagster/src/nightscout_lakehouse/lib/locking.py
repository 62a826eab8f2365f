"""The lock that lets one run at a time write a lake."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from filelock import FileLock, Timeout

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.settings import Settings


@contextmanager
def lake_lock(settings: Settings, holder: str, *, wait_seconds: float | None = None) -> Iterator[None]:
    """Hold the lock that lets one run write the lake; a process that holds it may take it again.

    Args:
        settings: Which lake.
        holder: Who holds it, for the message that another run shows.
        wait_seconds: How long to wait for it; the setting if None.

    Raises:
        LakehouseError: Another run holds it and did not finish in time.
    """
    lock = FileLock(settings.lock_path, is_singleton=True, thread_local=False)
    note = settings.lock_path.with_suffix(".holder")
    try:
        lock.acquire(timeout=settings.lock_timeout_seconds if wait_seconds is None else wait_seconds)
    except Timeout:
        who = note.read_text(encoding="utf-8") if note.is_file() else "another process"
        raise LakehouseError(
            f"Another run is writing this lake ({who}).", "Wait until it has finished, then try again."
        ) from None
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        note.write_text(f"{holder}, process {os.getpid()}, since {since}", encoding="utf-8")
        yield
    finally:
        if lock.lock_counter == 1:
            note.unlink(missing_ok=True)
        lock.release()
