"""Abbott LibreView's CSV export (LibreView, Download glucose data).

A line or two with the person's name stand above the header and are never read beyond the search for it, but
for the date of the export. Times are those of the clock on the wall, to the minute, day or month first by the
account's settings; a file whose dates leave that open is refused until a setting says it.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime

from nightscout_lakehouse.lib.sources.base import LeftOut, SourceError, short_hash
from nightscout_lakehouse.lib.sources.csv_file import CsvTable, Row
from nightscout_lakehouse.lib.sources.file_format import DateOrder, Measurement, ReadOptions, Unit, glucose_value

_RECORDS = {"0": ("Historic Glucose", "sgv"), "1": ("Scan Glucose", "sgv"), "2": ("Strip Glucose", "mbg")}
_TREATMENTS = frozenset({"4", "5", "6"})
_DATE = re.compile(
    r"(\d{1,4})[-/.](\d{1,2})[-/.](\d{1,4})[ T](\d{1,2}):(\d\d)(?::(\d\d))?(?:\s*([AaPp])\.?\s*[Mm]\.?)?"
)


class LibreViewFormat:
    """LibreView: record types 0 (every 15 minutes, or 5), 1 (scan) and 2 (strip)."""

    name = "libreview"
    title = "LibreView export"
    summary = "historic readings, scans and strips; names, insulin, food and notes are left out"
    version = 1

    def header_row(self, rows: Sequence[Sequence[str]], options: ReadOptions) -> int | None:  # noqa: ARG002
        """The row with `Device Timestamp`, `Record Type` and a column of historic glucose."""
        for number, row in enumerate(rows):
            if {"Device Timestamp", "Record Type"} <= set(row) and _column(row, "Historic Glucose"):
                return number
        return None

    def measurements(self, table: CsvTable, options: ReadOptions) -> Iterator[Measurement | LeftOut]:
        """Historic readings, scans and strips; scans are a stream of their own, since they fall between."""
        order = _date_order(table, options.date_order)
        columns = {record: _column(table.header, beginning) for record, (beginning, _) in _RECORDS.items()}
        for row in table.rows():
            yield self._measurement(table, row, columns, order)

    def _measurement(
        self, table: CsvTable, row: Row, columns: dict[str, str], order: DateOrder
    ) -> Measurement | LeftOut:
        record = row.values["Record Type"]
        if record in _TREATMENTS:
            return LeftOut("treatment", row.line, is_refused=False)
        if record not in columns or not columns[record]:
            return LeftOut("other_event", row.line, is_refused=False)
        column = columns[record]
        others = [name for name in columns.values() if name and name != column]
        # A decimal comma without quotation marks displaces the fields: 5,4 is then 5 and, one column on, 4.
        if row.is_shifted or any(row.values[name] for name in others):
            return LeftOut("fields_displaced", row.line)
        if table.is_cut(row, column):
            return LeftOut("cut_off", row.line)
        time = _time(row.values["Device Timestamp"], order)
        if time is None:
            return LeftOut("unreadable_time", row.line)
        value = glucose_value(row.values[column])
        if value is None:
            return LeftOut("unreadable_glucose" if row.values[column] else "no_glucose", row.line)
        unit: Unit = "mmol/L" if "mmol" in column.lower() else "mg/dL"
        serial = row.values.get("Serial Number", "")
        device = " ".join(filter(None, (row.values.get("Device", ""), short_hash(serial) if serial else "")))
        return Measurement(
            line=row.line,
            time=time,
            kind=_RECORDS[record][1],
            glucose=value,
            unit=unit,
            device=f"{device} scan" if record == "1" else device,
            clock=device,
        )


def _date_order(table: CsvTable, configured: DateOrder | None) -> DateOrder:
    """Whether day or month comes first, from the dates themselves, else from the setting.

    Raises:
        SourceError: The dates leave it open and nothing is set, or they contradict the setting or each other.
    """
    shown: dict[DateOrder, int] = {}
    dated = 0
    for line, text in _dates(table):
        found = _DATE.match(text)
        if found is None or len(found[1]) == 4:
            continue
        dated += 1
        first, second = int(found[1]), int(found[2])
        if first > 12 >= second:
            shown.setdefault("day_first", line)
        elif second > 12 >= first:
            shown.setdefault("month_first", line)
    if len(shown) == 2:
        lines = " and ".join(str(line) for line in shown.values())
        raise SourceError(
            f"{table.path.name}, lines {lines}: one date has the day first, the other the month.",
            "Were two exports joined? Drop each as a file of its own.",
        )
    if shown:
        ((order, line),) = shown.items()
        if configured is not None and configured != order:
            raise SourceError(
                f"{table.path.name}, line {line}: the date is written {order}, the setting says {configured}.",
                "Mend date_order of the site in sites.toml, or LAKEHOUSE_DROP_DATE_ORDER.",
            )
        return order
    if configured is None and dated:
        raise SourceError(
            f"{table.path.name}: its dates do not show whether the day or the month comes first.",
            "Set date_order of the site in sites.toml, or LAKEHOUSE_DROP_DATE_ORDER, to day_first or month_first "
            "(lakehouse import: --date-order).",
        )
    return configured or "day_first"


def _dates(table: CsvTable) -> Iterator[tuple[int, str]]:
    """The dates of the file with their lines, that of the export above the header first."""
    for number, fields in enumerate(table.preamble, start=1):
        for text in fields:
            yield number, text
    for row in table.rows():
        yield row.line, row.values["Device Timestamp"]


def _time(text: str, order: DateOrder) -> datetime | None:
    found = _DATE.fullmatch(text)
    if found is None:
        return None
    first, second, third = int(found[1]), int(found[2]), int(found[3])
    if len(found[1]) == 4:
        year, month, day = first, second, third
    else:
        year, month, day = (third, second, first) if order == "day_first" else (third, first, second)
    hour = int(found[4])
    if found[7]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if found[7] in "Pp" else 0)
    try:
        return datetime(year, month, day, hour, int(found[5]), int(found[6] or 0))  # noqa: DTZ001
    except ValueError:
        return None


def _column(header: Sequence[str], beginning: str) -> str:
    return next((name for name in header if name.startswith(beginning)), "")
