"""What is still to be sent to a lineage server: kept on disk until it has taken it, in order.

A thread sends while the run goes on. A server that does not answer, or not in time, counts as down and is left alone
for a while; the next run begins where this one stopped. So a server can be away for days: nothing is lost, nothing
overtakes, and no run waits for it longer than `CLOSE_SECONDS`. An event may come twice (a process that ends between the
sending and its note of it), and is the same event then: run ids follow from the run.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nightscout_lakehouse.lib.lineage.journal import append_line

logger = logging.getLogger(__name__)

Send = Callable[[dict[str, Any]], None]

CLOSE_SECONDS = 1.5
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
_LOCK_TIMEOUT_SECONDS = 10
_AT_ONCE = 200
# The server looked at the event and will never take it. What else goes wrong can be mended: address, key, limits.
_REFUSED = {400, 405, 406, 409, 410, 411, 413, 414, 415, 422}


class Outbox:
    """Events on their way to a server.

    Args:
        folder: `LAKEHOUSE_HOME/lineage`.
        name: Name of the server, where there are several.
        send: Sends one event; raises if it was not taken.
        first_pause_seconds: How long a server that was found down is left alone at first; doubled each time.
    """

    def __init__(self, folder: Path, name: str, send: Send, first_pause_seconds: float = FIRST_PAUSE_SECONDS) -> None:
        self._pending = folder / f"{name}.ndjson"
        self._position = folder / f"{name}.position"
        self._refused = folder / f"{name}-refused.ndjson"
        self._writing = FileLock(folder / f".{name}.lock", timeout=_LOCK_TIMEOUT_SECONDS)
        self._sending = FileLock(folder / f".{name}-sending.lock", timeout=0)
        self._send = send
        self._first_pause = self._pause = first_pause_seconds
        self._changed = threading.Condition()
        self._is_closing = self._is_idle = self._is_down = False
        self._put = 0
        self._thread: threading.Thread | None = None

    def put(self, line: str) -> None:
        """Keep an event to be sent, after all that were put before."""
        with self._writing:
            append_line(self._pending, line)
        with self._changed:
            self._put += 1
            self._is_idle = False
            self._start()
            self._changed.notify_all()

    def close(self, seconds: float = CLOSE_SECONDS) -> bool:
        """Wait for the rest to be sent, but not long, and not for a server that is down; whether all was sent."""
        deadline = time.monotonic() + seconds
        with self._changed:
            if self._thread is None:
                return True
            while not (self._is_idle or self._is_down) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            self._is_closing = True
            self._changed.notify_all()
            return self._is_idle

    def count(self) -> int:
        """Events that wait."""
        if not self._pending.is_file():
            return 0
        with self._writing, self._pending.open("rb") as file:
            file.seek(self._read_position())
            return sum(1 for _ in file)

    def _start(self) -> None:
        if self._thread is None:
            # It must not keep the process from ending.
            self._thread = threading.Thread(target=self._work, name="lineage", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            put_before = self._put
            try:
                with self._sending:
                    is_done = self._send_all()
            except Timeout:
                # Another process sends.
                is_done = False
            except OSError as error:
                logger.warning("Lineage events could not be read from %s: %s", self._pending, error)
                is_done = False
            with self._changed:
                self._is_idle = is_done and put_before == self._put
                self._is_down = not is_done
                self._changed.notify_all()
                if self._is_closing:
                    return
                if is_done:
                    self._pause = self._first_pause
                    while self._is_idle and not self._is_closing:
                        self._changed.wait()
                else:
                    deadline = time.monotonic() + self._pause
                    while not self._is_closing and (left := deadline - time.monotonic()) > 0:
                        self._changed.wait(left)
                    self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)
                if self._is_closing:
                    return
                self._is_down = False

    def _send_all(self) -> bool:
        """Send what waits, in order; whether all of it is sent."""
        while not self._is_closing:
            with self._writing:
                position = self._read_position()
                batch = self._read_from(position)
                if not batch:
                    # Nobody can add to it now.
                    self._position.unlink(missing_ok=True)
                    self._pending.unlink(missing_ok=True)
                    return True
            for line in batch:
                if self._is_closing or not self._sent(line):
                    return False
                position += len(line)
                self._position.write_text(str(position), encoding="ascii")
        return False

    def _sent(self, line: bytes) -> bool:
        try:
            event = json.loads(line)
        except ValueError:
            # A process was killed in the middle of writing it.
            return True
        try:
            self._send(event)
        except Exception as error:
            # Each transport has errors of its own; all mean that the event was not taken.
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in _REFUSED:
                logger.warning("The lineage server refuses an event (%s); it is kept in %s.", status, self._refused)
                append_line(self._refused, line.decode().strip())
                return True
            what = f"answers {status}" if status else f"does not answer ({type(error).__name__})"
            logger.warning("The lineage server %s; its events are kept and sent later.", what)
            return False
        return True

    def _read_position(self) -> int:
        """Up to where the file was sent."""
        try:
            position = int(self._position.read_text(encoding="ascii"))
            return position if position <= self._pending.stat().st_size else 0
        except (FileNotFoundError, ValueError):
            return 0

    def _read_from(self, position: int) -> list[bytes]:
        if not self._pending.is_file():
            return []
        with self._pending.open("rb") as file:
            file.seek(position)
            return list(islice(file, _AT_ONCE))
