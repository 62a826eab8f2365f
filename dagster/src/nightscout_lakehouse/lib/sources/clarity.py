"""Dexcom Clarity's CSV export (Clarity, Export).

Its first rows hold the person's name, date of birth and alarm settings; they have no time and are left out by
rule, and so is every row with something in the column `Patient Info`. Times are those of the clock on the wall.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime

from nightscout_lakehouse.lib.sources.base import LeftOut, short_hash
from nightscout_lakehouse.lib.sources.csv_file import CsvTable, Row
from nightscout_lakehouse.lib.sources.file_format import Measurement, ReadOptions, Unit, glucose_value

_KINDS = {"EGV": "sgv", "Calibration": "mbg"}
_TREATMENTS = frozenset({"Insulin", "Carbs", "Exercise", "Health", "Notes"})
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d{1,2}):(\d\d:\d\d)")


class ClarityFormat:
    """Dexcom Clarity: `EGV` rows are sensor readings, `Calibration` rows finger-sticks."""

    name = "clarity"
    title = "Dexcom Clarity export"
    summary = "sensor readings and calibrations; names, alarms and treatments are left out"
    version = 1

    def header_row(self, rows: Sequence[Sequence[str]], options: ReadOptions) -> int | None:  # noqa: ARG002
        """The row with `Event Type` and a timestamp and glucose column, whatever their unit."""
        for number, row in enumerate(rows):
            if "Event Type" in row and _column(row, "Timestamp (") and _column(row, "Glucose Value ("):
                return number
        return None

    def measurements(self, table: CsvTable, options: ReadOptions) -> Iterator[Measurement | LeftOut]:  # noqa: ARG002
        """Sensor readings and calibrations."""
        timestamp, glucose = _column(table.header, "Timestamp ("), _column(table.header, "Glucose Value (")
        unit: Unit = "mmol/L" if "mmol" in glucose.lower() else "mg/dL"
        transmitter_time = _column(table.header, "Transmitter Time")
        for row in table.rows():
            yield self._measurement(table, row, timestamp, glucose, unit, transmitter_time)

    def _measurement(
        self, table: CsvTable, row: Row, timestamp: str, glucose: str, unit: Unit, transmitter_time: str
    ) -> Measurement | LeftOut:
        event = row.values["Event Type"]
        # A name or date of birth, a device or an alarm setting; these have no time.
        if row.values.get("Patient Info") or (event not in _KINDS and not row.values[timestamp]):
            return LeftOut("personal_or_setting", row.line, is_refused=False)
        if event not in _KINDS:
            return LeftOut("treatment" if event in _TREATMENTS else "other_event", row.line, is_refused=False)
        if row.is_shifted or any(row.values[name] for name in table.header if name.startswith(("Insulin V", "Carb V"))):
            return LeftOut("fields_displaced", row.line)
        if table.is_cut(row, glucose):
            return LeftOut("cut_off", row.line)
        found = _TIMESTAMP.fullmatch(row.values[timestamp])
        try:
            time = datetime.fromisoformat(f"{found[1]} {found[2]:0>2}:{found[3]}") if found else None
        except ValueError:
            time = None
        if time is None:
            return LeftOut("unreadable_time", row.line)
        value = glucose_value(row.values[glucose])
        if value is None:
            return LeftOut("unreadable_glucose" if row.values[glucose] else "no_glucose", row.line)
        seconds = row.values.get(transmitter_time, "")
        source_device = row.values.get("Source Device ID", "")
        return Measurement(
            line=row.line,
            time=time,
            kind=_KINDS[event],
            glucose=value,
            unit=unit,
            device=_device(source_device),
            clock=source_device,
            device_seconds=float(seconds) if re.fullmatch(r"\d+(\.0*)?", seconds) else None,
        )


def _device(source_device: str) -> str:
    # Phones come as their model ("iPhone G6"), receivers as their serial number.
    if re.search(r"\d{4}", source_device):
        return f"Dexcom receiver {short_hash(source_device)}"
    return f"Dexcom {source_device}".strip()


def _column(header: Sequence[str], beginning: str) -> str:
    return next((name for name in header if name.startswith(beginning)), "")
