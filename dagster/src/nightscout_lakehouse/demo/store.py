"""The documents behind the demo server, kept in the order of their time."""

import hashlib
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from nightscout_lakehouse.demo.person import Person
from nightscout_lakehouse.demo.query import Query
from nightscout_lakehouse.demo.therapy import Therapy

Document = dict[str, Any]

HISTORY_DAYS = 220
# People have their server drop old device status: it is most of the database.
DEVICE_STATUS_DAYS = 14


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
        self.treatments = list(treatments)
        self._dates: list[float] = []
        self._entries: list[Document] = []
        self._undated: list[Document] = []
        self._person: Person | None = None
        self._therapy: Therapy | None = None
        self._first_day = self.now()
        # How far each day of UTC has been lived.
        self._measured_to: dict[datetime, datetime] = {}
        self._treated_to: dict[datetime, datetime] = {}
        self._lock = threading.RLock()
        for document in sorted(entries, key=lambda d: d["date"] if _is_number(d.get("date")) else 0):
            self.put(document)

    @classmethod
    def of(cls, person: Person, days: int = HISTORY_DAYS, now: Callable[[], datetime] | None = None) -> "DemoStore":
        """The history of a person up to now; it grows with the clock."""
        therapy = Therapy(person, is_loop=person.seed % 2 == 0)
        store = cls(profiles=therapy.profiles(), now=now or (lambda: datetime.now(UTC)))
        store._person, store._therapy = person, therapy
        store._first_day = _midnight(store.now()) - timedelta(days=days)
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
        return next((d for d in self.all_entries() if identifier in (d.get("_id"), d.get("identifier"))), None)

    def entries(self, query: Query, newest: int | None = None) -> list[Document]:
        """The entries that a query matches, oldest first.

        Args:
            query: The conditions.
            newest: Only so many of the newest are needed, if the query has no lower bound.
        """
        with self._lock:
            low, high = self._span(query)
            if low is None and newest:
                return self._newest(query, high, newest)
            self._live(low or self._first_day, high)
            return self._found(query)

    def all_entries(self) -> list[Document]:
        """Every entry, oldest first."""
        with self._lock:
            self._live(self._first_day, self.now())
            return [*self._undated, *self._entries]

    def all_treatments(self) -> list[Document]:
        """Every treatment."""
        with self._lock:
            self._treat()
            return list(self.treatments)

    def found(self, collection: str, query: Query) -> list[Document]:
        """The treatments, device status or profiles that a query matches, oldest first by the text of their time."""
        with self._lock:
            if collection != "profiles":
                self._treat()
            documents: list[Document] = getattr(self, collection)
            matching = [document for document in documents if query.matches(document)]
        field = "startDate" if collection == "profiles" else "created_at"
        return sorted(matching, key=lambda d: str(d.get(field, "")))

    def upsert_by(self, collection: str, document: Document, *fields: str) -> Document:
        """Add a document; one that is equal in these fields is overwritten and keeps its id."""
        with self._lock:
            documents: list[Document] = getattr(self, collection)
            for position, held in enumerate(documents):
                if fields and all(held.get(field) == document.get(field) for field in fields):
                    documents[position] = {**document, "_id": held["_id"]}
                    return documents[position]
            created = {"_id": new_identifier(document, self.now()), **document}
            documents.append(created)
            return created

    def remove_found(self, collection: str, query: Query) -> int:
        """Delete for good what a query matches; returns how many there were."""
        with self._lock:
            gone = self.found(collection, query)
            documents: list[Document] = getattr(self, collection)
            documents[:] = [document for document in documents if document not in gone]
        return len(gone)

    def _found(self, query: Query) -> list[Document]:
        low = 0 if query.low is None else bisect_left(self._dates, query.low)
        high = len(self._dates) if query.high is None else bisect_right(self._dates, query.high)
        dated = [document for document in self._entries[low:high] if query.matches(document)]
        undated = [document for document in self._undated if query.matches(document)]
        if not undated:
            return dated
        return sorted([*dated, *undated], key=lambda d: str(d.get("dateString", "")))

    def _newest(self, query: Query, high: datetime, count: int) -> list[Document]:
        # Day by day into the past: the request that asks whether there is anything older must stay quick.
        day = high
        while True:
            day -= timedelta(days=1)
            self._live(day, high)
            found = self._found(replace(query, low=day.timestamp() * 1000))
            if len(found) >= count or day <= self._first_day:
                return found if len(found) >= count else self._found(query)

    def _span(self, query: Query) -> tuple[datetime | None, datetime]:
        """The time that a query reaches into, with a day to spare for texts."""
        low, high = _moment(query.low), _moment(query.high)
        if query.text_low is not None:
            low = (_moment_of_text(query.text_low) or self._first_day) - timedelta(days=1)
        if query.text_high is not None:
            high = (_moment_of_text(query.text_high) or self.now()) + timedelta(days=1)
        return low, min(high or self.now(), self.now())

    def _live(self, start: datetime, end: datetime) -> None:
        """Let the person's sensor run through a stretch of time, as far as it has come."""
        if self._person is not None:
            for begin, until in self._not_yet(self._measured_to, start, end):
                for document in self._person.entries(begin, until):
                    self.put(document)

    def _treat(self) -> None:
        """Let the person be treated up to now."""
        if self._therapy is not None:
            now = self.now()
            kept_from = _midnight(now) - timedelta(days=DEVICE_STATUS_DAYS)
            for begin, until in self._not_yet(self._treated_to, self._first_day, now):
                self.treatments.extend(self._therapy.treatments(begin, until))
                if until > kept_from:
                    self.device_status.extend(self._therapy.device_status(max(begin, kept_from), until))

    def _not_yet(
        self, lived_to: dict[datetime, datetime], start: datetime, end: datetime
    ) -> Iterator[tuple[datetime, datetime]]:
        """The parts of a stretch of time, by days of UTC, that are not lived yet; nothing is lived twice."""
        now = self.now()
        day = _midnight(max(start, self._first_day))
        while day <= min(end, now):
            begin, until = lived_to.get(day, day), min(day + timedelta(days=1), now)
            if begin < until:
                yield begin, until
                lived_to[day] = until
            day += timedelta(days=1)


def _midnight(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _moment(epoch_ms: float | None) -> datetime | None:
    # The year 1 to 9998: a bound beyond has the same effect.
    return None if epoch_ms is None else datetime.fromtimestamp(min(max(epoch_ms / 1000, -6e10), 2.5e11), UTC)


def _moment_of_text(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def new_identifier(document: Document, now: datetime) -> str:
    """An id that looks and sorts as MongoDB's."""
    text = repr(sorted(document.items(), key=lambda item: item[0]))
    return f"{int(now.timestamp()):08x}{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
