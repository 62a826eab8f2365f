"""One file as a source: its kind found by its header, its rows as documents."""

from collections import OrderedDict
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice, pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

from nightscout_lakehouse.lib.sources.base import (
    LeftOut,
    SourceError,
    SourceItem,
    entry,
    measurement_id,
    mg_dl,
)
from nightscout_lakehouse.lib.sources.csv_file import CsvTable, read_heads
from nightscout_lakehouse.lib.sources.file_format import FileFormat, Measurement, ReadOptions
from nightscout_lakehouse.lib.sources.registry import FORMATS
from nightscout_lakehouse.lib.sources.wall_clock import Resolved, Wall, resolve

# So many rows show whether the newest comes first.
_ROWS_FOR_ORDER = 5_000
# Rows of one device, time and kind stand this near to each other, if there are several.
_NEARBY_ROWS = 20_000
# No person's highest reading in mg/dL is this low; a person's in mmol/L nearly always is.
_HIGHEST_MMOL_L = 35.0


class FileSource:
    """A file that a person exported; use `open_file` to make one.

    Args:
        file_format: Its kind.
        table: Its rows.
        options: What it does not say itself.
    """

    def __init__(self, file_format: FileFormat, table: CsvTable, options: ReadOptions) -> None:
        self._format = file_format
        self._table = table
        self._options = options

    @property
    def name(self) -> str:
        """Name of the file's kind."""
        return self._format.name

    @property
    def title(self) -> str:
        """What people call the file's kind."""
        return self._format.title

    def documents(self) -> Iterator[SourceItem]:
        """Every row as a document or with the reason why it is none.

        Raises:
            SourceError: The file is malformed, or its unit is not what its header says.
        """
        recent: OrderedDict[str, list[object]] = OrderedDict()
        highest_mg_dl: float | None = None
        zone = ZoneInfo(self._options.timezone)
        for item in resolve(self._walls(), zone, is_descending=self._is_descending()):
            if isinstance(item, LeftOut):
                yield item
                continue
            measurement = item.wall.measurement
            if item.time is None:
                yield LeftOut(item.reason, measurement.line)
                continue
            if measurement.unit == "mg/dL" and isinstance(measurement.glucose, float):
                highest_mg_dl = max(highest_mg_dl or 0.0, measurement.glucose)
            yield self._document(item, measurement, recent)
        if highest_mg_dl is not None and highest_mg_dl <= _HIGHEST_MMOL_L:
            raise SourceError(
                f"{self._table.path.name}: its header says mg/dL, but no value is above {highest_mg_dl:g}.",
                "These look like mmol/L: name the column for its unit.",
            )

    def _walls(self) -> Iterator[Wall | LeftOut]:
        for item in self._format.measurements(self._table, self._options):
            yield item if isinstance(item, LeftOut) else Wall(item.clock, item.time, item.device_seconds, item)

    def _is_descending(self) -> bool:
        rows = islice(self._format.measurements(self._table, self._options), _ROWS_FOR_ORDER)
        times = [item.time for item in rows if isinstance(item, Measurement) and item.time.tzinfo is None]
        steps = [after - before for before, after in pairwise(times)]
        return sum(step < timedelta(0) for step in steps) > sum(step > timedelta(0) for step in steps)

    def _document(self, item: Resolved, measurement: Measurement, recent: OrderedDict[str, list[object]]) -> SourceItem:
        time = item.time
        if time is None:
            raise ValueError("a measurement without time is no document")
        is_wall = measurement.time.tzinfo is None
        moment = (measurement.time if is_wall else time.astimezone(ZoneInfo("UTC"))).isoformat()
        parts = (measurement.clock, measurement.device, measurement.kind)
        fold = time.fold if is_wall else 0
        # Two scans within a minute are two measurements, though the export gives both the same time.
        values = recent.setdefault("\x1f".join((moment, *parts, str(fold))), [])
        if measurement.glucose not in values:
            values.append(measurement.glucose)
        if len(recent) > _NEARBY_ROWS:
            recent.popitem(last=False)
        # The second pass of an hour that comes twice counts on from the first: read without its zone and later
        # with it, both passes keep their ids and only move.
        number = values.index(measurement.glucose) + fold
        glucose, as_sent = measurement.glucose, None
        if measurement.unit == "mmol/L" and isinstance(glucose, float):
            as_sent, glucose = f"{glucose:g} mmol/L", mg_dl(glucose)
        return entry(
            source=self.name,
            time=time,
            glucose=glucose,
            device=measurement.device,
            identity=measurement_id(self.name, moment, *parts, str(number)),
            kind=measurement.kind,
            as_sent=as_sent,
            line=measurement.line,
        )


def open_file(path: Path, options: ReadOptions) -> FileSource:
    """Find out what kind of file it is, by its header alone.

    Raises:
        SourceError: It is empty, no text, or of no known kind.
    """
    for head in read_heads(path):
        for file_format in FORMATS:
            number = file_format.header_row(head.rows, options)
            if number is not None:
                header = head.rows[number]
                table = CsvTable(path, head.encoding, head.delimiter, head.rows[:number], header)
                return FileSource(file_format, table, options)
    kinds = ", ".join(file_format.title for file_format in FORMATS)
    raise SourceError(
        f"{path.name}: its header is none of those known ({kinds}).",
        "Export it in English, or name its columns in columns.toml beside it (docs/guide/08-other-sources.md).",
    )
