"""The newest readings of a site, straight from its server: few, bounded, and without touching the lake.

They are judged by the very SQL that judges the documents of the lake, so that nothing is alerted on that would not
count there.
"""

import re
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from nightscout_lakehouse.lib.alerts.rules import FUTURE_TOLERANCE, Look, Reading
from nightscout_lakehouse.lib.lake import RAW_SCHEMA
from nightscout_lakehouse.lib.nightscout_client import Document, FetchPolicy, NightscoutClient
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES
from nightscout_lakehouse.lib.parse_entries import FUTURE_TOLERANCE_MINUTES, entries_sql
from nightscout_lakehouse.lib.sites import Site

# One attempt: the next look is the next attempt. A dripping answer ends after five times this.
POLICY = FetchPolicy(timeout_seconds=5, max_attempts=1)
# An hour of a sensor that sends every minute, through four uploaders.
MOST_DOCUMENTS = 250
LEAST_SPAN = timedelta(hours=1)
_NOMINAL_INTERVAL_MINUTES = 5.0
# No figure may be made of them, so the lake refuses them; but they are the sensor's loudest words. Sensors measure from
# 40 to 400 mg/dL, and uploaders that send a number send these.
_SAID = {"LOW": ("LOW", 39.0), "LO": ("LOW", 39.0), "HIGH": ("HIGH", 401.0), "HI": ("HIGH", 401.0)}
_OBJECT_ID = re.compile(r"[0-9a-f]{24}")
_FIRST_NIGHTSCOUT_MS = 1_356_998_400_000
_DAY_MS = 86_400_000


def read_newest(client: NightscoutClient, span: timedelta, now: datetime) -> list[Document]:
    """The newest entries of a server, newest first.

    Args:
        client: Of the site.
        span: How far back to look.
        now: The time.

    Raises:
        NightscoutError: The server cannot be read; the message names the site and holds no secret.
    """
    from_ms = int((now - max(span, LEAST_SPAN)).timestamp() * 1000)
    # The server sends the newest first: what a wrong clock dated years ahead would crowd out all others.
    to_ms = int((now + FUTURE_TOLERANCE).timestamp() * 1000)
    found = client.documents(ENTRIES, from_ms, to_ms, MOST_DOCUMENTS)
    # Some uploaders store `date` as text, which the filter on numbers does not find.
    return found or client.documents_by_text(ENTRIES, from_ms, to_ms, MOST_DOCUMENTS)


def judge(documents: Sequence[Document], site: Site, timezone: str, now: datetime, folder: Path) -> Look:
    """The readings among documents, in the order of time, and why newer documents are none.

    Args:
        documents: As the server sent them.
        site: Whose they are.
        timezone: Zone of times that come without one.
        now: The time that decides what is of the future.
        folder: Where a file may lie for a moment.
    """
    documents = [document for document in documents if not _was_of_the_future(document, now)]
    if not documents:
        return Look()
    with tempfile.TemporaryDirectory(dir=folder) as private:
        file = str(Path(private, "batch.parquet"))
        pq.write_table(_as_batch(documents, now), file)
        with duckdb.connect() as connection:
            connection.execute("set TimeZone = 'UTC'")
            rows = connection.execute(
                "select epoch_ms(reading_timestamp), glucose_mg_dl, coalesce(device, ''), kind, quarantine_reason,"
                " case when quarantine_reason = 'glucose_sentinel' then upper(trim(document ->> '$.sgv')) end"
                f" from ({entries_sql([file], site.name, timezone)})"
                " where kind in ('sgv', 'quarantined') and not is_deleted"
                " order by reading_timestamp, entry_id"
            ).fetchall()
    latest_ms = (now + FUTURE_TOLERANCE).timestamp() * 1000
    readings = _one_stream(
        (
            _reading(time_ms, value, device, said)
            for time_ms, value, device, kind, _, said in rows
            if (kind == "sgv" or said in _SAID) and time_ms <= latest_ms
        ),
        site.sensor_interval_minutes or _NOMINAL_INTERVAL_MINUTES,
    )
    newest_ms = readings[-1].timestamp.timestamp() * 1000 if readings else 0.0
    refused = {reason for time_ms, _, _, _, reason, _ in rows if reason and (time_ms is None or time_ms > newest_ms)}
    return Look(tuple(readings), refused=tuple(sorted(refused)))


def _reading(time_ms: int, value: float | None, device: str, said: str | None) -> Reading:
    word, beyond = _SAID.get(said or "", ("", 0.0))
    return Reading(datetime.fromtimestamp(time_ms / 1000, UTC), beyond if value is None else value, device, word)


def _was_of_the_future(document: Document, now: datetime) -> bool:
    """Whether a document was stored before the time it is dated to: the lake refused it then, though it has come since.

    The ids that MongoDB gives begin with the second in which they were given; others say nothing.
    """
    if document.date_ms is None or not _OBJECT_ID.fullmatch(document.id):
        return False
    stored_ms = int(document.id[:8], 16) * 1000
    is_plausible = _FIRST_NIGHTSCOUT_MS <= stored_ms <= now.timestamp() * 1000 + _DAY_MS
    return is_plausible and document.date_ms > stored_ms + FUTURE_TOLERANCE_MINUTES * 60_000


def _as_batch(documents: Sequence[Document], now: datetime) -> pa.Table:
    rows = [
        {
            "batch": 0,
            "operation": "upsert",
            "document_id": document.id,
            "document_hash": document.hash,
            "document": document.text,
            "document_number": number,
            "fetched_at": now,
        }
        for number, document in enumerate(documents)
    ]
    return pa.Table.from_pylist(rows, schema=RAW_SCHEMA)


def _one_stream(readings: Iterable[Reading], interval_minutes: float) -> list[Reading]:
    """One reading per sensor interval where several uploaders send the same sensor: that of the busier one.

    As `int_glucose_enriched` does for a day, for the readings at hand.
    """
    found = list(readings)
    counts = {device: sum(each.device == device for each in found) for device in {each.device for each in found}}
    ranked = sorted(counts, key=lambda device: (-counts[device], device))
    near = timedelta(minutes=interval_minutes / 2)
    kept = list[Reading]()
    for device in ranked:
        better = [each.timestamp for each in kept]
        kept += [
            each
            for each in found
            if each.device == device and not any(abs(each.timestamp - moment) < near for moment in better)
        ]
    by_time = {each.timestamp: each for each in sorted(kept, key=lambda each: each.timestamp)}
    return list(by_time.values())
