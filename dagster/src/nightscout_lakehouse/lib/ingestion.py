"""From a Nightscout server to immutable batch files: what is new, what changed, what is gone.

A site is read by windows of time. A window is read *whole*, so a document that the lake knows there and
that the server no longer shows has been deleted. What is read at a tick:

* the recent window: from `overlap_hours` before the newest document known, with no upper end;
* the history, backwards from there, until the server has nothing older (first runs only; it resumes);
* some older days in rotation, so that late edits, backfill and deletions are found wherever they are;
* where the server compares the time as text: all text that sorts below the dates, such as epoch numbers;
* the days that API v3 names as changed, where it is offered.

A collection without a time, such as the profiles, is one list that is read whole.

People prune old documents on the server to save space. So when most of a window's documents are gone at
once, or many from the oldest on, they stay in the lake and a warning says so; single deletions are followed.

Only documents that are new or changed land in a batch file; those that the lake holds unchanged are
counted as duplicates. So a tick with nothing new writes nothing.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import duckdb
import pyarrow as pa

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lake import (
    IMPORTED_ID_PREFIX,
    RAW_SCHEMA,
    Lake,
    batch_file,
    ingestion_state_file,
    last_batch,
    partition_files,
    processing_state_file,
    sql_list,
)
from nightscout_lakehouse.lib.nightscout_client import (
    EARLIEST_TEXT_MS,
    FAR_FUTURE_MS,
    Document,
    FetchPolicy,
    NightscoutClient,
    NightscoutError,
)
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES, Collection
from nightscout_lakehouse.lib.run_log import log_context
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site, canonical_timezone
from nightscout_lakehouse.lib.warehouse import connect

logger = logging.getLogger(__name__)

FUTURE_TOLERANCE = timedelta(minutes=15)
# Processing refuses what is before the year 2000 as the work of a wrong clock.
_EARLIEST_PLAUSIBLE_MS = 946_684_800_000
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
# The server compares the text of dateString, so a time zone in it can shift a document by this much.
_TEXT_DATE_MARGIN_MS = 15 * HOUR_MS
_TIMEZONE_REFRESH = timedelta(hours=24)
# From this many documents on, a window that loses more than this share of them has been pruned.
_PRUNED_DOCUMENTS = 24
_PRUNED_SHARE = 0.5


@dataclass(frozen=True)
class IngestionOptions:
    """How much to read; see `.env.example` for the meaning of each."""

    first_fetch: int | None = None
    window_days: int = 30
    overlap_hours: int = 48
    reread_days_per_tick: int = 3
    max_count: int = 50_000
    use_api_v3: bool = True
    accept_mass_deletions: bool = False


@dataclass(frozen=True)
class IngestionState:
    """How far a site has been read.

    Attributes:
        next_batch: Number of the next batch file.
        newest_ms: Newest plausible date seen: the cursor.
        history_below_ms: All that is not older than this has been read; None before the first window.
        history_complete: Whether the server had nothing older at the last read.
        reread_below_ms: Where the rotation through older days stands.
        api_v3_since_ms: Where the change history of API v3 stands.
        has_other_text: Whether documents were seen whose time is text that is no date, and so sorts apart from them.
        fetched: Documents fetched over the life of the lake.
        timezone: Time zone of the server's profile, if it has one.
        timezone_read_at: When the profile was read last.
        read_at: Time of the last complete read.
    """

    next_batch: int = 1
    newest_ms: float | None = None
    history_below_ms: int | None = None
    history_complete: bool = False
    reread_below_ms: int | None = None
    api_v3_since_ms: int | None = None
    has_other_text: bool = False
    fetched: int = 0
    timezone: str | None = None
    timezone_read_at: str | None = None
    read_at: str | None = None


@dataclass(frozen=True)
class SiteIngestion:
    """What one read of a site brought. `fetched == landed + unchanged` holds for every read.

    Attributes:
        site: Name of the site.
        collection: Name of the collection.
        fetched: Documents that the server sent, each counted once per window.
        landed: Of them, those that are new or changed and were written to a batch file.
        unchanged: Of them, those that the lake already holds as they are.
        deletions: Documents that the lake held and the server no longer shows.
        retained: Documents that are gone from the server in such numbers that the lake keeps them.
        oldest_ms: Least plausible date fetched, in epoch milliseconds.
        newest_ms: Greatest plausible date fetched.
        batches: Numbers of the batch files written.
        bytes_written: Size of these files.
        requests: HTTP requests sent, retries included.
        windows: Time windows read whole.
        history_complete: Whether the server has nothing older than what has been read.
        seconds: Duration.
        error: What went wrong, or None. What landed before stays.
        error_may_pass: Whether the next attempt may go better.
    """

    site: str
    collection: str = ENTRIES.name
    fetched: int = 0
    landed: int = 0
    unchanged: int = 0
    deletions: int = 0
    retained: int = 0
    oldest_ms: float | None = None
    newest_ms: float | None = None
    batches: tuple[int, ...] = ()
    bytes_written: int = 0
    requests: int = 0
    windows: int = 0
    history_complete: bool = False
    seconds: float = 0.0
    error: str | None = None
    error_may_pass: bool = False


@dataclass(frozen=True)
class _Known:
    """A document that the lake holds: its hash, its partition, its numeric `date` and its reading's time."""

    hash: str
    month: str
    date_ms: float | None
    time_ms: float | None


# How the client reads a window: collection, from, to, count.
_Read = Callable[[Collection, int, int, int], list[Document]]


@dataclass
class _Changes:
    """Changes of one batch in the making."""

    upserts: list[Document] = field(default_factory=list)
    deletions: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)


def ingestion_options(settings: Settings) -> IngestionOptions:
    """The options that the settings ask for."""
    return IngestionOptions(
        first_fetch=settings.first_fetch,
        window_days=settings.window_days,
        overlap_hours=settings.overlap_hours,
        reread_days_per_tick=settings.reread_days_per_tick,
        max_count=settings.max_count,
        use_api_v3=settings.api_v3 == "auto",
        accept_mass_deletions=settings.accept_mass_deletions,
    )


def fetch_policy(settings: Settings) -> FetchPolicy:
    """The time-outs and retries that the settings ask for."""
    return FetchPolicy(
        timeout_seconds=settings.timeout_seconds,
        max_attempts=settings.max_attempts,
        max_retry_wait_seconds=settings.max_retry_wait_seconds,
    )


def ingest_sites(
    sites: Sequence[Site],
    settings: Settings,
    lake: Lake,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    collection: Collection = ENTRIES,
) -> list[SiteIngestion]:
    """Read one collection of all sites, some at a time; a site that fails does not stop the others.

    Args:
        sites: The sites to read.
        settings: Options, time-outs and the bound on concurrent sites.
        lake: Where batches land.
        since: Read everything from here again, besides what a tick reads.
        until: End of that stretch; now if None.
        collection: What to read.

    Returns:
        One report a site, in the order of `sites`; a failed one carries its error.
    """

    def ingest(site: Site) -> SiteIngestion:
        with log_context(site=site.name), NightscoutClient(site, fetch_policy(settings)) as client:
            reader = SiteReader(site, client, lake, settings, ingestion_options(settings), collection)
            try:
                return reader.read(since=since, until=until)
            except LakehouseError as error:
                logger.error("%s", error)
                return replace(reader.report, error=str(error), error_may_pass=error.is_transient)
            except Exception as error:
                # A fault of ours with one person's data must not keep the others' data away.
                logger.exception("site %s: reading failed", site.name)
                return replace(reader.report, error=f"Site {site.name}: {type(error).__name__} while reading.")

    with ThreadPoolExecutor(max_workers=settings.max_concurrent_sites, thread_name_prefix="site") as pool:
        # With what the log says of this thread: run and step.
        return [future.result() for future in [pool.submit(copy_context().run, ingest, site) for site in sites]]


def load_state(lake: Lake, site: str, collection: Collection = ENTRIES) -> IngestionState:
    """How far a site's collection has been read; the initial state where it never was."""
    stored = lake.read_json(ingestion_state_file(site, collection)) or {}
    known = {name: stored[name] for name in IngestionState.__dataclass_fields__ if name in stored}
    return IngestionState(**known)


class SiteReader:
    """Reads one collection of a site: plans the windows, lands what is new, keeps the state after each batch.

    `read` is called once: a reader knows what it has landed, and closes what it has opened.
    """

    def __init__(
        self,
        site: Site,
        client: NightscoutClient,
        lake: Lake,
        settings: Settings,
        options: IngestionOptions,
        collection: Collection = ENTRIES,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._site = site
        self._client = client
        self._lake = lake
        self._settings = settings
        self._options = options
        self._collection = collection
        self._now = now
        self._state = load_state(lake, site.name, collection)
        self._report = SiteIngestion(site=site.name, collection=collection.name)
        self._started = time.monotonic()
        self._landed_ids: set[str] = set()
        self._opened = ExitStack()
        processing = lake.read_json(processing_state_file(site.name, collection))
        processed = (processing or {}).get("processed_batch", 0)
        # Processed batches may lie in a file together (`lakehouse compact`): their numbers are taken.
        self._free_batch = 1 + (
            max(processed, processing.get("rebuilt_until", 0))
            if processing is not None
            else last_batch(lake, site.name, collection)
        )
        # What an unprocessed batch says is newer than what the lake shows: then nothing counts as unchanged.
        self._lake_is_current = processed >= self._state.next_batch - 1

    @property
    def report(self) -> SiteIngestion:
        """What has been read so far."""
        return replace(
            self._report,
            requests=self._client.requests,
            history_complete=self._state.history_complete,
            seconds=time.monotonic() - self._started,
        )

    def read(self, *, since: datetime | None = None, until: datetime | None = None) -> SiteIngestion:
        """Read what a tick reads, and with `since` everything from there to `until` again."""
        with self._opened:
            if self._collection.time_field is None:
                self._read_list()
            else:
                self._read_windows(since, until)
        self._state = replace(self._state, read_at=self._now().isoformat())
        self._save_state()
        return self.report

    def _read_list(self) -> None:
        """Read the whole list, and land what differs from the lake.

        Nightscout can drop its oldest profiles, and the insulin of their time is counted by them. So what is older than
        all that the server still shows has been pruned and stays, however few it is.
        """
        batch = _Changes()
        documents = self._whole(self._client.documents, 0, 1)
        known = self._known(0, FAR_FUTURE_MS)
        shown_ms = [known[d.id].time_ms for d in documents if d.id in known]
        oldest_ms = min((time_ms for time_ms in shown_ms if time_ms is not None), default=None)

        def would_be_shown(held: _Known) -> bool:
            is_within = oldest_ms is not None and held.time_ms is not None and held.time_ms >= oldest_ms
            return is_within or self._options.accept_mass_deletions

        self._compare(batch, documents, known, would_be_shown, "its first document")
        self._state = replace(self._state, history_complete=True)
        self._land(batch)

    def _read_windows(self, since: datetime | None, until: datetime | None) -> None:
        now_ms = int(self._now().timestamp() * 1000)
        recent_ms = self._recent_from_ms(now_ms)
        batch = _Changes()
        self._read_window(batch, recent_ms, FAR_FUTURE_MS)
        if self._collection.time_format == "iso_text":
            self._read_window(batch, -1, EARLIEST_TEXT_MS)
        self._refresh_timezone()
        if self._state.history_below_ms is None:
            self._state = replace(self._state, history_below_ms=recent_ms)
        for from_ms, to_ms in (*self._older_window(recent_ms), *self._hinted_windows(recent_ms)):
            self._read_window(batch, from_ms, to_ms)
        self._land(batch)
        self._read_history()
        if since is not None:
            end_ms = int(until.timestamp() * 1000) if until else recent_ms
            self._read_stretch(int(since.timestamp() * 1000), end_ms)

    @property
    def _window_ms(self) -> int:
        return min(self._options.window_days, self._collection.widest_window_days) * DAY_MS

    def _recent_from_ms(self, now_ms: int) -> int:
        if self._state.newest_ms is None:
            return now_ms - self._window_ms
        return int(min(self._state.newest_ms, now_ms)) - self._options.overlap_hours * HOUR_MS

    def _older_window(self, recent_ms: int) -> list[tuple[int, int]]:
        """The next older days of the rotation, newest first; years without documents are skipped."""
        span_ms = self._options.reread_days_per_tick * DAY_MS
        floor_ms = self._state.history_below_ms
        if not span_ms or floor_ms is None or floor_ms >= recent_ms or self._state.read_at is None:
            return []
        below_ms = self._state.reread_below_ms
        if below_ms is None or not floor_ms < below_ms <= recent_ms:
            below_ms = recent_ms
        to_ms = self._newest_before(below_ms)
        if to_ms is None or to_ms <= floor_ms:
            self._state = replace(self._state, reread_below_ms=recent_ms)
            return []
        self._state = replace(self._state, reread_below_ms=to_ms - span_ms)
        return [(to_ms - span_ms, to_ms)]

    def _newest_before(self, below_ms: int) -> int | None:
        """An upper bound of the newest document before a time, on the server or in the lake; None for neither."""
        on_server = self._client.newest_before(self._collection, below_ms)
        bounds = [] if on_server is None else [on_server]
        months = {month for month, _ in self._partitions() if month != "undated"}
        in_lake = max((month for month in months if month <= _month(below_ms - 1)), default=None)
        if in_lake is not None:
            bounds.append(min(below_ms, _end_of_month_ms(in_lake)))
        return max(bounds, default=None)

    def _hinted_windows(self, recent_ms: int) -> list[tuple[int, int]]:
        """The days before the recent window that API v3 names as changed."""
        if not self._options.use_api_v3 or not self._collection.has_change_hints:
            return []
        hints = self._client.change_hints(self._collection, self._state.api_v3_since_ms)
        if hints is None:
            return []
        self._state = replace(self._state, api_v3_since_ms=hints.next_ms)
        days = sorted({int(date // DAY_MS) for date in hints.dates_ms if 0 <= date < recent_ms})
        return [(day * DAY_MS, (day + 1) * DAY_MS) for day in days]

    def _read_history(self) -> None:
        """Page backwards until the server has nothing older, landing and remembering each window."""
        while not self._first_fetch_reached():
            below_ms = self._state.history_below_ms
            # What lies between is empty: years without documents cost one request.
            to_ms = None if below_ms is None else self._client.newest_before(self._collection, below_ms)
            if below_ms is None or to_ms is None:
                self._state = replace(self._state, history_complete=True)
                return
            from_ms = to_ms - self._window_ms
            window = _Changes()
            self._read_window(window, from_ms, to_ms, text_dates_to_ms=below_ms)
            self._state = replace(self._state, history_below_ms=from_ms, history_complete=False)
            self._land(window)
            self._log_progress(from_ms)

    def _read_stretch(self, from_ms: int, to_ms: int) -> None:
        """Read a stretch again, newest first; what neither the server nor the lake has anything of is skipped."""
        below_ms = to_ms
        while below_ms > from_ms:
            newest_ms = self._newest_before(below_ms) or from_ms
            start_ms = max(from_ms, newest_ms - self._window_ms)
            stretch = _Changes()
            if newest_ms > from_ms:
                self._read_window(stretch, start_ms, newest_ms, text_dates_to_ms=below_ms)
            else:
                # Only documents whose date is a text can be left.
                start_ms = from_ms
                self._read_window(stretch, from_ms, below_ms)
            self._land(stretch)
            self._log_progress(start_ms)
            below_ms = start_ms

    def _log_progress(self, from_ms: int) -> None:
        logger.info(
            "site %s: %s documents of %s fetched, read back to %s",
            self._site.name,
            f"{self._report.fetched:,}",
            self._collection.api_v3_name,
            _date_text(from_ms),
        )

    def _first_fetch_reached(self) -> bool:
        return self._options.first_fetch is not None and self._state.fetched >= self._options.first_fetch

    def _read_window(self, batch: _Changes, from_ms: int, to_ms: int, text_dates_to_ms: int | None = None) -> None:
        """Read a window whole and add to `batch` what differs from the lake."""
        documents = self._whole(self._client.documents, from_ms, to_ms)
        text_to_ms = text_dates_to_ms or to_ms
        if self._collection.text_time_field is not None:
            by_text = self._whole(self._client.documents_by_text, from_ms, text_to_ms)
            present = {document.id for document in documents}
            # A numeric date outside the window with a dateString inside belongs to another window.
            documents += [d for d in by_text if d.id not in present and d.date_ms is None]

        def would_be_shown(known: _Known) -> bool:
            return _in_window(known, from_ms, to_ms, text_to_ms)

        self._compare(batch, documents, self._known(from_ms, text_to_ms), would_be_shown, _date_text(from_ms))

    def _compare(
        self,
        batch: _Changes,
        documents: Sequence[Document],
        known: Mapping[str, _Known],
        would_be_shown: Callable[[_Known], bool],
        start: str,
    ) -> None:
        """Add to `batch` what is new, changed or gone, of documents that were read whole.

        Args:
            batch: Takes the changes.
            documents: What the server shows.
            known: What the lake holds around there, by id.
            would_be_shown: Whether the read would have shown a held document, had the server still had it.
            start: Where the read begins, for the message on pruning.
        """
        landed = 0
        for document in documents:
            held = known.get(document.id)
            is_held = self._lake_is_current and held is not None and held.hash == document.hash
            if is_held or document.id in batch.seen:
                continue
            landed += 1
            batch.upserts.append(document)
            batch.seen.add(document.id)
        if known:
            self._landed_ids |= {document.id for document in documents}
        shown = {identity: held for identity, held in known.items() if would_be_shown(held)}
        gone = {identity: held.month for identity, held in shown.items() if identity not in self._landed_ids}
        still_ms = [held.time_ms for identity, held in shown.items() if identity not in gone]
        gone_ms = [held.time_ms for identity, held in shown.items() if identity in gone]
        retained = self._retained(len(gone), len(shown), start, self._is_oldest_end(gone_ms, still_ms))
        if not retained:
            batch.deletions.update(gone)
        self._note(documents)
        self._report = replace(
            self._report,
            fetched=self._report.fetched + len(documents),
            landed=self._report.landed + landed,
            unchanged=self._report.unchanged + len(documents) - landed,
            deletions=self._report.deletions + (0 if retained else len(gone)),
            retained=self._report.retained + retained,
            windows=self._report.windows + 1,
        )

    def _is_oldest_end(self, gone_ms: Sequence[float | None], still_ms: Sequence[float | None]) -> bool:
        """Whether what is gone is older than all that the server has: then its history was cut, at whatever share."""
        gone = [time_ms for time_ms in gone_ms if time_ms is not None]
        still = [time_ms for time_ms in still_ms if time_ms is not None]
        if len(gone) < _PRUNED_DOCUMENTS or self._collection.time_field is None:
            return False
        if still and min(still) <= max(gone):
            return False
        return self._client.newest_before(self._collection, int(min(gone))) is None

    def _retained(self, gone: int, held: int, start: str, is_oldest_end: bool) -> int:
        """How many missing documents the lake keeps, since so many at once mean pruning, not correction."""
        is_most = gone > held * _PRUNED_SHARE or is_oldest_end
        if self._options.accept_mass_deletions or gone < _PRUNED_DOCUMENTS or not is_most:
            return 0
        logger.warning(
            "site %s: %d of %d documents of %s from %s on are gone from the server; the lake keeps them. "
            "Set NIGHTSCOUT_ACCEPT_MASS_DELETIONS=true for one run if they were meant to be deleted.",
            self._site.name,
            gone,
            held,
            self._collection.api_v3_name,
            start,
        )
        return gone

    def _note(self, documents: Sequence[Document]) -> None:
        """Move the cursor to the newest plausible date; a wrong clock must not carry it into the future."""
        latest_ms = (self._now() + FUTURE_TOLERANCE).timestamp() * 1000
        dates = [d.date_ms for d in documents if d.date_ms is not None and d.date_ms <= latest_ms]
        held = [] if self._state.newest_ms is None else [self._state.newest_ms]
        other_text = self._collection.time_format == "iso_text" and any(d.date_ms is None for d in documents)
        self._state = replace(
            self._state,
            newest_ms=max([*dates, *held], default=None),
            has_other_text=self._state.has_other_text or other_text,
            fetched=self._state.fetched + len(documents),
        )
        plausible = [date for date in dates if date >= _EARLIEST_PLAUSIBLE_MS]
        seen = [date for date in (self._report.oldest_ms, self._report.newest_ms) if date is not None]
        self._report = replace(
            self._report,
            oldest_ms=min([*plausible, *seen], default=None),
            newest_ms=max([*plausible, *seen], default=None),
        )

    def _whole(self, read: _Read, from_ms: int, to_ms: int) -> list[Document]:
        """All documents of a window: one that fills its count may be cut, so it is halved and read again."""
        count = self._options.max_count
        documents = read(self._collection, from_ms, to_ms, count)
        # What cannot be halved, such as the text below all dates, is read with a larger count.
        while len(documents) >= count and (to_ms - from_ms <= 1 or from_ms < 0):
            count *= 2
            documents = read(self._collection, from_ms, to_ms, count)
        if len(documents) < count:
            return documents
        middle_ms = (from_ms + min(to_ms, int(self._now().timestamp() * 1000) + DAY_MS)) // 2
        if not from_ms < middle_ms < to_ms:
            middle_ms = (from_ms + to_ms) // 2
        return self._whole(read, middle_ms, to_ms) + self._whole(read, from_ms, middle_ms)

    def _partitions(self) -> list[tuple[str, str]]:
        """Month and file of every partition of the collection, quarantine included."""
        return [
            item
            for kind in self._collection.all_kinds
            for item in partition_files(self._lake, kind, self._site.name, self._collection).items()
        ]

    def _known(self, from_ms: int, to_ms: int) -> dict[str, _Known]:
        """The documents that the lake holds around a window, by id; soft-deleted and quarantined ones included."""
        first, last = _month(from_ms - _TEXT_DATE_MARGIN_MS), _month(to_ms + _TEXT_DATE_MARGIN_MS)
        partitions = self._partitions()
        near = [file for month, file in partitions if month == "undated" or first <= month <= last]
        known = self._held(near, "true")
        if self._state.has_other_text:
            # Text that is no date stands at another place in the server's order than its time in ours.
            far = [file for _, file in partitions if file not in near]
            known |= self._held(far, f"date_ms < 0 or date_ms >= {FAR_FUTURE_MS - 1}")
        return known

    @cached_property
    def _engine(self) -> duckdb.DuckDBPyConnection:
        """One DuckDB for all windows: to open one takes longer than most of what it is asked."""
        return self._opened.enter_context(connect(self._settings))

    def _held(self, files: Sequence[str], condition: str) -> dict[str, _Known]:
        if not files:
            return {}
        rows = self._engine.execute(
            f"""
            select
                nightscout_id,
                -- What was in the future is not any more: the clock of this machine was wrong. It lands again.
                case when is_past then '' else document_hash end,
                month,
                date_ms,
                epoch_ms({self._collection.time_column})
            from read_parquet({sql_list(self._lake.duckdb_path(f) for f in files)},
                              hive_partitioning = true, hive_types = {{'month': 'varchar', 'site': 'varchar'}}),
            lateral (
                select
                    quarantine_reason = 'timestamp_in_future'
                    and {self._collection.time_column} <= ?::timestamptz as is_past
            )
            where document_hash is not null and ({condition})
                -- What came from files is not the server's to show: its absence there is no deletion.
                and not starts_with(nightscout_id, '{IMPORTED_ID_PREFIX}')
            """,
            [self._now() + FUTURE_TOLERANCE],
        ).fetchall()
        return {row[0]: _Known(hash=row[1], month=row[2], date_ms=row[3], time_ms=row[4]) for row in rows}

    def _land(self, batch: _Changes) -> None:
        """Write the changes as the next batch file, then the state; nothing to write writes only the state."""
        for moved in batch.seen & batch.deletions.keys():
            del batch.deletions[moved]
        if batch.upserts or batch.deletions:
            number = max(self._state.next_batch, self._free_batch)
            while self._lake.exists(batch_file(self._site.name, number, self._collection)):
                number += 1
            table = _batch_table(number, batch, self._now(), self._site.name)
            size = self._lake.write_parquet(batch_file(self._site.name, number, self._collection), table)
            self._state = replace(self._state, next_batch=number + 1)
            self._report = replace(
                self._report,
                batches=(*self._report.batches, number),
                bytes_written=self._report.bytes_written + size,
            )
        self._save_state()

    def _save_state(self) -> None:
        self._lake.write_json(ingestion_state_file(self._site.name, self._collection), asdict(self._state))

    def _refresh_timezone(self) -> None:
        """Take the time zone from the server's profile, once a day, where the configuration names none."""
        read_at = self._state.timezone_read_at
        age = None if read_at is None else self._now() - datetime.fromisoformat(read_at)
        # A negative age is that of a clock which was ahead.
        fresh = age is not None and timedelta(0) <= age < _TIMEZONE_REFRESH
        if self._collection is not ENTRIES or self._site.timezone is not None or fresh:
            return
        self._state = replace(self._state, timezone_read_at=self._now().isoformat())
        try:
            named = self._client.profile_timezone()
        except NightscoutError as error:
            logger.warning("site %s: the profile with its time zone cannot be read: %s", self._site.name, error)
            return
        zone = canonical_timezone(named) if named else None
        if named and zone is None:
            logger.warning("site %s: the profile's time zone %r is not known; it is ignored", self._site.name, named)
        if zone is not None:
            self._state = replace(self._state, timezone=zone)


def site_timezone(lake: Lake, site: Site) -> tuple[str, str]:
    """The time zone that a site's days are counted in, and where it comes from.

    Returns:
        The IANA name, and `configuration`, `profile` or `default` (UTC, since nothing names one).
    """
    if site.timezone:
        return site.timezone, "configuration"
    if zone := load_state(lake, site.name).timezone:
        return zone, "profile"
    return "UTC", "default"


def write_batch(
    lake: Lake,
    site: str,
    number: int,
    documents: Sequence[Document],
    fetched_at: datetime,
    collection: Collection = ENTRIES,
) -> None:
    """Write documents as one batch file of a site, for sources other than a server's windows."""
    batch = _Changes(upserts=list(documents))
    lake.write_parquet(batch_file(site, number, collection), _batch_table(number, batch, fetched_at, site))


def newest_documents(
    lake: Lake,
    settings: Settings,
    batches: Sequence[tuple[str, int]],
    limit: int,
    collection: Collection = ENTRIES,
) -> list[tuple[str, int, str, datetime, str | None]]:
    """The last documents of some batch files: site, batch, operation, time of fetching and text."""
    files = [lake.duckdb_path(batch_file(site, number, collection)) for site, number in batches]
    if not files:
        return []
    with connect(settings) as connection:
        return connection.execute(
            f"""
            select site, batch, operation, fetched_at, document
            from read_parquet({sql_list(files)}, hive_partitioning = true, hive_types = {{'site': 'varchar'}})
            order by fetched_at desc, site, batch desc, document_number desc
            limit ?
            """,
            [limit],
        ).fetchall()


def _batch_table(number: int, batch: _Changes, fetched_at: datetime, site: str) -> pa.Table:
    upserts, deletions = batch.upserts, list(batch.deletions.items())
    # The server sends newest first; in the file the oldest stands first, so that versions stand in order.
    upserts = upserts[::-1]
    total = len(upserts) + len(deletions)
    columns: Mapping[str, Iterable[Any]] = {
        "batch": [number] * total,
        "document_number": range(1, total + 1),
        "operation": ["upsert"] * len(upserts) + ["delete"] * len(deletions),
        "document_id": [d.id for d in upserts] + [identity for identity, _ in deletions],
        "document_hash": [d.hash for d in upserts] + [None] * len(deletions),
        "known_month": [None] * len(upserts) + [month for _, month in deletions],
        "fetched_at": [fetched_at] * total,
        "document": [d.text for d in upserts] + [None] * len(deletions),
    }
    arrays = [pa.array(list(columns[column.name]), type=column.type) for column in RAW_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=RAW_SCHEMA.with_metadata({"site": site, "batch": str(number)}))


def _in_window(known: _Known, from_ms: int, to_ms: int, text_to_ms: int) -> bool:
    """Whether a read of the window would have shown the document, had the server still had it."""
    if known.date_ms is not None:
        return from_ms <= known.date_ms < to_ms
    if known.time_ms is not None:
        return from_ms + _TEXT_DATE_MARGIN_MS <= known.time_ms < text_to_ms - _TEXT_DATE_MARGIN_MS
    return False


def _month(epoch_ms: float) -> str:
    clamped = min(max(epoch_ms, 0), FAR_FUTURE_MS)
    return datetime.fromtimestamp(clamped / 1000, UTC).strftime("%Y-%m")


def _end_of_month_ms(month: str) -> int:
    year, number = int(month[:4]), int(month[5:])
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(following.timestamp() * 1000)


def _date_text(epoch_ms: int) -> str:
    return datetime.fromtimestamp(max(epoch_ms, 0) / 1000, UTC).date().isoformat()
