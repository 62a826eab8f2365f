"""The events on disk: one line of JSON each, in the order in which they were emitted.

`events.ndjson` is what the `lakehouse lineage` commands read. When a run begins and the file is larger than
`ROTATE_BYTES`, it becomes `events-<time>.ndjson.gz`; a run is never split. The new file begins with the newest event of
each job that says what its columns are made of: each file alone has the whole graph.
"""

import gzip
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

EVENTS_FILE = "events.ndjson"
ROTATE_BYTES = 20_000_000
# A tick with new data writes 2 MB, so some weeks of them; compressed, less than 100 MB.
KEEP_FILES = 60
_OLD_FILES = "events-*.ndjson.gz"
_LOCK_TIMEOUT_SECONDS = 10


class Journal:
    """The event files of one lakehouse; several processes may write them.

    Args:
        folder: `LAKEHOUSE_HOME/lineage`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / ".events.lock", timeout=_LOCK_TIMEOUT_SECONDS)

    @property
    def path(self) -> Path:
        """The current file."""
        return self._folder / EVENTS_FILE

    def append(self, line: str) -> None:
        """Add an event, whole or not at all."""
        with self._lock:
            append_line(self.path, line)

    def rotate(self, largest_bytes: int = ROTATE_BYTES, keep: int = KEEP_FILES) -> None:
        """Begin a new file if the current one is too large, and remove the oldest."""
        with self._lock:
            if not self.path.is_file() or self.path.stat().st_size <= largest_bytes:
                return
            carried = _newest_with_columns(self.path)
            # Killed in between, it is done again: the current file goes last.
            old = self._folder / f"events-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.ndjson.gz"
            unfinished = self._folder / ".rotating"
            with self.path.open("rb") as source, gzip.open(unfinished, "wb", compresslevel=6) as target:
                shutil.copyfileobj(source, target)
            unfinished.replace(old)
            unfinished.write_text("".join(f"{line}\n" for line in carried), encoding="utf-8")
            unfinished.replace(self.path)
            for older in sorted(self._folder.glob(_OLD_FILES))[:-keep]:
                older.unlink()


def event_files(folder: Path) -> list[Path]:
    """All event files, the oldest first; some events stand in two, since each file begins with the graph so far."""
    current = folder / EVENTS_FILE
    return [*sorted(folder.glob(_OLD_FILES)), *([current] if current.is_file() else [])]


def append_line(path: Path, line: str) -> None:
    """Add a line to a file. A line that a killed process left unfinished stays one of its own."""
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")


def read_lines(path: Path) -> Iterator[str]:
    """The whole lines of an event file; what a killed process left unfinished is skipped."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for raw in file:
            line = raw.strip()
            if line.startswith(b"{") and line.endswith(b"}") and raw.endswith(b"\n"):
                yield line.decode()


def _newest_with_columns(path: Path) -> list[str]:
    newest: dict[tuple[str, str], str] = {}
    for line in read_lines(path):
        if '"columnLineage"' not in line:
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("eventType") == "COMPLETE":
            newest[event["job"]["namespace"], event["job"]["name"]] = line
    return list(newest.values())
