"""The newest readings of a site, straight from its server: few, bounded, and without touching the lake.

They are judged by the very SQL that judges the documents of the lake, so that nothing is alerted on that would not
count there.
"""

import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from nightscout_lakehouse.lib.alerts.rules import FUTURE_TOLERANCE, Look, Reading
from nightscout_lakehouse.lib.lake import RAW_SCHEMA
from nightscout_lakehouse.lib.nightscout_client import FAR_FUTURE_MS, Document, FetchPolicy, NightscoutClient
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES
from nightscout_lakehouse.lib.parse_entries import entries_sql
from nightscout_lakehouse.lib.sites import Site

# One attempt: the next look is the next attempt. A dripping answer ends after five times this.
POLICY = FetchPolicy(timeout_seconds=5, max_attempts=1)
# An hour of a sensor that sends every minute, through four uploaders.
MOST_DOCUMENTS = 250
LEAST_SPAN = timedelta(hours=1)
_NOMINAL_INTERVAL_MINUTES = 5.0


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
    found = client.documents(ENTRIES, from_ms, FAR_FUTURE_MS, MOST_DOCUMENTS)
    # Some uploaders store `date` as text, which the filter on numbers does not find.
    return found or client.documents_by_text(ENTRIES, from_ms, FAR_FUTURE_MS, MOST_DOCUMENTS)


def judge(documents: Sequence[Document], site: Site, timezone: str, now: datetime, folder: Path) -> Look:
    """The readings among documents, in the order of time, and why newer documents are none.

    Args:
        documents: As the server sent them.
        site: Whose they are.
        timezone: Zone of times that come without one.
        now: The time that decides what is of the future.
        folder: Where a file may lie for a moment.
    """
    if not documents:
        return Look()
    with tempfile.NamedTemporaryFile(dir=folder, prefix="look-", suffix=".parquet") as file:
        pq.write_table(_as_batch(documents, now), file.name)
        with duckdb.connect() as connection:
            connection.execute("set TimeZone = 'UTC'")
            rows = connection.execute(
                "select epoch_ms(reading_timestamp), glucose_mg_dl, coalesce(device, ''), kind, quarantine_reason"
                f" from ({entries_sql([file.name], site.name, timezone)})"
                " where kind in ('sgv', 'quarantined') and not is_deleted"
                " order by reading_timestamp, entry_id"
            ).fetchall()
    latest_ms = (now + FUTURE_TOLERANCE).timestamp() * 1000
    readings = _one_stream(
        (
            Reading(datetime.fromtimestamp(time_ms / 1000, UTC), value, device)
            for time_ms, value, device, kind, _ in rows
            if kind == "sgv" and time_ms <= latest_ms
        ),
        site.sensor_interval_minutes or _NOMINAL_INTERVAL_MINUTES,
    )
    newest_ms = readings[-1].timestamp.timestamp() * 1000 if readings else 0.0
    refused = {reason for time_ms, _, _, _, reason in rows if reason and (time_ms is None or time_ms > newest_ms)}
    return Look(tuple(readings), refused=tuple(sorted(refused)))


def _as_batch(documents: Sequence[Document], now: datetime) -> pa.Table:
    rows = [
        {
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
