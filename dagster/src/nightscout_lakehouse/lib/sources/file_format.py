"""What a kind of file is: how its header is known, and how its rows become measurements."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from nightscout_lakehouse.lib.sources.base import LeftOut
from nightscout_lakehouse.lib.sources.csv_file import CsvTable

DateOrder = Literal["day_first", "month_first"]
Unit = Literal["mg/dL", "mmol/L"]


@dataclass(frozen=True)
class Columns:
    """The names that a generic CSV uses for its columns, and how it writes times.

    Attributes:
        timestamp: Column with the time.
        glucose_mg_dl: Column with glucose in mg/dL.
        glucose_mmol_l: Column with glucose in mmol/L.
        device: Column with the device.
        type: Column with `sgv` or `mbg`.
        timestamp_format: As Python's `strptime` takes it; None for ISO 8601.
    """

    timestamp: str = "timestamp"
    glucose_mg_dl: str = "glucose_mg_dl"
    glucose_mmol_l: str = "glucose_mmol_l"
    device: str = "device"
    type: str = "type"
    timestamp_format: str | None = None


@dataclass(frozen=True)
class ReadOptions:
    """What a file does not say itself.

    Attributes:
        timezone: IANA name of the zone that its times without zone are in.
        date_order: Order of day and month where the dates do not show it.
        columns: Names of a generic CSV's columns.
    """

    timezone: str = "UTC"
    date_order: DateOrder | None = None
    columns: Columns = Columns()


@dataclass(frozen=True)
class Measurement:
    """One glucose value as a file has it.

    Attributes:
        line: Line of the file.
        time: By the clock on the wall (no zone), or with its offset.
        kind: `sgv` or `mbg`.
        glucose: The value, or `HIGH` or `LOW`.
        unit: Its unit.
        device: Name of the stream as tables show it; no serial number.
        clock: Which device's clock gave the time.
        device_seconds: Seconds of a clock that is never set, or None.
    """

    line: int
    time: datetime
    kind: str
    glucose: float | str
    unit: Unit
    device: str
    clock: str
    device_seconds: float | None = None


class FileFormat(Protocol):
    """One kind of file.

    Attributes:
        name: Short name; it is part of every id, so it never changes.
        title: How people call it.
        summary: What becomes of its rows, in a line.
        version: Raise it when the same file is now read otherwise: files are then read again.
    """

    name: str
    title: str
    summary: str
    version: int

    def header_row(self, rows: Sequence[Sequence[str]], options: ReadOptions) -> int | None:
        """Which of a file's first rows is the header of this format; None if none is."""
        ...

    def measurements(self, table: CsvTable, options: ReadOptions) -> Iterator[Measurement | LeftOut]:
        """Every row of the file, in its order, as a measurement or with the reason why it is none.

        Raises:
            SourceError: The file as a whole cannot be read; says where and how to mend it.
        """
        ...


_SENTINELS = {"high": "HIGH", "hi": "HIGH", "low": "LOW", "lo": "LOW"}


def glucose_value(text: str) -> float | str | None:
    """A number with point or comma, or `HIGH` or `LOW`; None for what is neither."""
    sentinel = _SENTINELS.get(text.lower())
    if sentinel is not None:
        return sentinel
    number = text.replace(",", ".")
    # Not what float() takes besides: nan, 1e3, 1_000.
    if not number.replace(".", "", 1).isdecimal() or not number.isascii():
        return None
    return float(number)
