"""Dagster's event log in SQLite, with its files kept open.

A run of the pipeline writes some 850 events, most of them into two files. Dagster opens, syncs and closes a file for
each: more than half of what a tick costs that finds little new. See docs/decisions/0019-event-log.md.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClassData
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.event import listen
from sqlalchemy.pool import StaticPool

# The index of all runs, and the runs that are under way or looked at.
_OPEN_FILES: Final = 4


class OpenSqliteEventLogStorage(SqliteEventLogStorage):
    """The same files as Dagster's own, in `$DAGSTER_HOME/history/runs`; each is opened once in a process.

    With the write-ahead log, `synchronous = normal` keeps the files whole when the power fails; the last events may be
    missing then, as the run is.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        # From the one used longest ago to the last one.
        self._engines: dict[str, Engine] = {}
        self._tables: set[str] = set()
        super().__init__(base_dir, inst_data)

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Nothing to configure: it lies where Dagster's own would."""
        return {}

    @classmethod
    def from_config_value(
        cls,
        inst_data: ConfigurableClassData | None,
        config_value: Mapping[str, Any],  # noqa: ARG003 - Dagster's interface
    ) -> "OpenSqliteEventLogStorage":
        """What `dagster.yaml` asks for."""
        return cls(str(Path(os.environ["DAGSTER_HOME"], "history", "runs")), inst_data)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock:
            if not Path(self.path_for_shard(shard)).exists():
                # New, or its run was deleted, maybe by another process.
                self._close(shard)
                self._initialized_dbs.discard(shard)
            engine = self._engine(shard)
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
            with engine.connect() as connection, connection.begin():
                yield connection

    def has_table(self, table_name: str) -> bool:
        """Whether a table is there, which is asked at every event of a check; each file is made with all of them."""
        # Whoever asks may hold the lock of the open files; Dagster's own looks by a connection of its own.
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def store_event(self, event: EventLogEntry) -> None:
        """Store an event, and have those see it who watch the file: what is written goes to the log beside it first."""
        super().store_event(event)
        # A run that is deleted in the UI while it runs goes on, and its next event makes the file anew.
        with suppress(FileNotFoundError):
            os.utime(self.path_for_shard(event.run_id))

    def delete_events(self, run_id: str) -> None:
        """Delete the events of a run, and the file that held them."""
        super().delete_events(run_id)
        with self._db_lock:
            self._close(run_id)
            self._initialized_dbs.discard(run_id)
            for suffix in ("", "-wal", "-shm"):
                Path(self.path_for_shard(run_id) + suffix).unlink(missing_ok=True)

    def wipe(self) -> None:
        """Delete all events."""
        with self._db_lock:
            self._close_all()
        super().wipe()

    def dispose(self) -> None:
        """Close the files."""
        super().dispose()
        with self._db_lock:
            self._close_all()

    def _engine(self, shard: str) -> Engine:
        engine = self._engines.pop(shard, None) or self._open(shard)
        self._engines[shard] = engine
        oldest = (name for name in list(self._engines) if name != INDEX_SHARD_NAME)
        while len(self._engines) > _OPEN_FILES:
            self._close(next(oldest))
        return engine

    def _open(self, shard: str) -> Engine:
        engine = create_engine(
            self.conn_string_for_shard(shard),
            # One connection, which the threads of the process use one after the other.
            poolclass=StaticPool,
            connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        )
        listen(engine, "connect", lambda opened, _: opened.execute("pragma synchronous = normal"))
        return engine

    def _close_all(self) -> None:
        for shard in list(self._engines):
            self._close(shard)

    def _close(self, shard: str) -> None:
        if engine := self._engines.pop(shard, None):
            engine.dispose()
