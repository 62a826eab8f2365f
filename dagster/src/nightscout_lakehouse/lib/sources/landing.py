"""From any source's documents to batch files of the raw layer: only what the lake does not hold lands."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import (
    Lake,
    last_batch,
    partition_files,
    sql_list,
)
from nightscout_lakehouse.lib.nightscout_client import Document
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES
from nightscout_lakehouse.lib.processing import pending_files
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sources.base import LeftOut, Source, SourceDocument
from nightscout_lakehouse.lib.warehouse import connect

logger = logging.getLogger(__name__)

# Bound of memory: documents held at once, and in one batch file.
DOCUMENTS_PER_BATCH = 20_000
# A zone that was wrong and is mended moves a document by no more than this.
_MOST_MOVED = timedelta(days=2)
_LINES_SHOWN = 5


@dataclass
class SourceReport:
    """What a source had.

    `rows == documents + refused + left out by rule`, and once landed `documents == landed + unchanged`.

    Attributes:
        source: Name of the source.
        documents: Measurements.
        landed: Of them, those that are new or changed.
        unchanged: Of them, those that the lake holds already, and those that the source has twice.
        refused: Rows that cannot be read as the measurements they should be, by reason.
        left_out: Rows that are none by rule, by reason.
        refused_lines: The first lines refused for each reason.
        first_time: Time of the oldest measurement, UTC.
        last_time: Time of the newest.
        batches: Numbers of the batch files written.
    """

    source: str
    documents: int = 0
    landed: int = 0
    unchanged: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    refused_lines: dict[str, list[int]] = field(default_factory=dict)
    first_time: datetime | None = None
    last_time: datetime | None = None
    batches: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """All rows."""
        return self.documents + sum(self.refused.values()) + sum(self.left_out.values())

    def note(self, item: SourceDocument | LeftOut) -> None:
        """Count one item."""
        if isinstance(item, SourceDocument):
            self.documents += 1
            self.first_time = min(self.first_time or item.time, item.time)
            self.last_time = max(self.last_time or item.time, item.time)
        elif item.is_refused:
            self.refused[item.reason] = self.refused.get(item.reason, 0) + 1
            lines = self.refused_lines.setdefault(item.reason, [])
            if len(lines) < _LINES_SHOWN:
                lines.append(item.line)
        else:
            self.left_out[item.reason] = self.left_out.get(item.reason, 0) + 1


def examine(source: Source) -> SourceReport:
    """Read a source whole and say what it has; nothing lands.

    Raises:
        SourceError: The source cannot be read.
    """
    report = SourceReport(source.name)
    for item in source.documents():
        report.note(item)
    return report


def land(source: Source, site: str, settings: Settings, lake: Lake, now: datetime | None = None) -> SourceReport:
    """Write what a source has and the lake does not as batch files of a site.

    Raises:
        SourceError: The source cannot be read. What landed before stays: a file is examined first.
        LakeError: The lake cannot be read or written.
    """
    report = SourceReport(source.name)
    for documents in _chunks(source, report):
        known = _known(site, documents, settings, lake)
        changed: dict[str, Document] = {}
        for each in documents:
            document = each.document
            held = changed[document.id].hash if document.id in changed else known.get(document.id)
            if held == document.hash:
                report.unchanged += 1
                continue
            if document.id in changed:
                # The earlier version of the same chunk gives way: it says nothing any more.
                report.unchanged += 1
                report.landed -= 1
                del changed[document.id]
            report.landed += 1
            changed[document.id] = document
        if changed:
            number = last_batch(lake, site) + 1
            # A batch is written oldest last, as a server sends it.
            write_batch(lake, site, number, list(changed.values())[::-1], now or datetime.now(UTC))
            report.batches.append(number)
    return report


def _chunks(source: Source, report: SourceReport) -> Iterator[list[SourceDocument]]:
    chunk: list[SourceDocument] = []
    for item in source.documents():
        report.note(item)
        if isinstance(item, SourceDocument):
            chunk.append(item)
        if len(chunk) >= DOCUMENTS_PER_BATCH:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _known(site: str, documents: list[SourceDocument], settings: Settings, lake: Lake) -> dict[str, str | None]:
    """Hashes of these documents as the lake holds them, by id; batches not processed yet go before."""
    first = f"{min(each.time for each in documents) - _MOST_MOVED:%Y-%m}"
    last = f"{max(each.time for each in documents) + _MOST_MOVED:%Y-%m}"
    files = [
        file
        for kind in ENTRIES.all_kinds
        for month, file in partition_files(lake, kind, site).items()
        if month == "undated" or first <= month <= last
    ]
    pending = [file.path for file in pending_files(lake, site)]
    ids = [each.document.id for each in documents]
    known: dict[str, str | None] = {}
    with connect(settings) as connection:
        connection.register("wanted", pa.table({"id": ids}))
        if files:
            paths = sql_list(lake.duckdb_path(file) for file in files)
            query = (
                f"select nightscout_id, document_hash from read_parquet({paths}) where nightscout_id in (from wanted)"
            )
            known.update(connection.execute(query).fetchall())
        if pending:
            paths = sql_list(lake.duckdb_path(file) for file in pending)
            query = (
                f"select document_id, document_hash from read_parquet({paths}) where document_id in (from wanted)"
                " order by batch, document_number"
            )
            known.update(connection.execute(query).fetchall())
    return known
