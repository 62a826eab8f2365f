"""The documents behind the demo server, kept in the order of their time."""

import hashlib
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from nightscout_lakehouse.demo.person import Person
from nightscout_lakehouse.demo.query import Query

Document = dict[str, Any]

HISTORY_DAYS = 220


class DemoStore:
    """Entries and the other collections of one server; documents stay exactly as they were put in.

    Args:
        entries: Documents to begin with.
        treatments: Treatments to begin with.
        profiles: Profiles, newest first.
        now: The server's clock; tests pass their own.
    """

    def __init__(
        self,
        entries: Iterable[Document] = (),
        treatments: Iterable[Document] = (),
        profiles: Iterable[Document] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.now = now
        self.profiles = list(profiles)
        self.device_status: list[Document] = []
        self._treatments = list(treatments)
        self._dates: list[float] = []
        self._entries: list[Document] = []
        self._undated: list[Document] = []
        self._grow: Callable[[datetime, datetime], None] | None = None
        self._grown_to: datetime | None = None
        self._lock = threading.RLock()
        for document in sorted(entries, key=lambda d: d["date"] if _is_number(d.get("date")) else 0):
            self.put(document)

    @classmethod
    def of(cls, person: Person, days: int = HISTORY_DAYS, now: Callable[[], datetime] | None = None) -> "DemoStore":
        """The history of a person up to now; it grows with the clock."""
        store = cls(profiles=[person.profile()], now=now or (lambda: datetime.now(UTC)))
        midnight = store.now().replace(hour=0, minute=0, second=0, microsecond=0)

        def grow(start: datetime, end: datetime) -> None:
            for document in person.entries(start, end):
                store.put(document)
            store._treatments.extend(person.treatments(start, end))

        store._grow, store._grown_to = grow, midnight - timedelta(days=days)
        return store

    def put(self, document: Document) -> None:
        """Add an entry as it is."""
        with self._lock:
            date = document.get("date")
            if not isinstance(date, int | float) or isinstance(date, bool):
                self._undated.append(document)
                return
            position = bisect_right(self._dates, date)
            self._dates.insert(position, date)
            self._entries.insert(position, document)

    def upsert(self, document: Document) -> Document:
        """Add an entry as a POST does: one with the same `sysTime` and `type` is overwritten and keeps its id."""
        with self._lock:
            for held in [*self._entries, *self._undated]:
                if held.get("sysTime") == document.get("sysTime") and held.get("type") == document.get("type"):
                    updated = {**held, **document, "_id": held["_id"]}
                    self.remove(held["_id"])
                    self.put(updated)
                    return updated
            created = {"_id": new_identifier(document, self.now()), **document}
            self.put(created)
            return created

    def remove(self, identifier: str) -> bool:
        """Delete an entry for good."""
        with self._lock:
            for position, held in enumerate(self._entries):
                if identifier in (held.get("_id"), held.get("identifier")):
                    del self._entries[position], self._dates[position]
                    return True
            before = len(self._undated)
            self._undated = [held for held in self._undated if held.get("_id") != identifier]
            return len(self._undated) < before

    def get(self, identifier: str) -> Document | None:
        """An entry by `_id` or `identifier`."""
        with self._lock:
            self._catch_up()
            found = (d for d in [*self._entries, *self._undated] if identifier in (d.get("_id"), d.get("identifier")))
            return next(found, None)

    def entries(self, query: Query) -> list[Document]:
        """The entries that a query matches, oldest first."""
        with self._lock:
            self._catch_up()
            low = 0 if query.low is None else bisect_left(self._dates, query.low)
            high = len(self._dates) if query.high is None else bisect_right(self._dates, query.high)
            dated = [document for document in self._entries[low:high] if query.matches(document)]
            undated = [document for document in self._undated if query.matches(document)]
        if not undated:
            return dated
        return sorted([*dated, *undated], key=lambda d: str(d.get("dateString", "")))

    def all_entries(self) -> list[Document]:
        """Every entry, oldest first."""
        with self._lock:
            self._catch_up()
            return [*self._undated, *self._entries]

    def treatments(self, query: Query) -> list[Document]:
        """The treatments that a query matches, oldest first."""
        with self._lock:
            self._catch_up()
            found = [document for document in self._treatments if query.matches(document)]
        return sorted(found, key=lambda d: str(d.get("created_at", "")))

    def _catch_up(self) -> None:
        """Let time pass: what the person did since the last request is there now."""
        now = self.now()
        if self._grow is not None and self._grown_to is not None and now > self._grown_to:
            start, self._grown_to = self._grown_to, now
            self._grow(start, now)


def new_identifier(document: Document, now: datetime) -> str:
    """An id that looks and sorts as MongoDB's."""
    text = repr(sorted(document.items(), key=lambda item: item[0]))
    return f"{int(now.timestamp()):08x}{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
