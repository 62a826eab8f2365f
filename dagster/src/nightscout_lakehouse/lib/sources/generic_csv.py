"""Any CSV with a time and a glucose value, under these names or those that a file `columns.toml` gives."""

import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from nightscout_lakehouse.lib.sources.base import LeftOut, SourceError, mg_dl
from nightscout_lakehouse.lib.sources.csv_file import CsvTable, Row
from nightscout_lakehouse.lib.sources.file_format import Columns, Measurement, ReadOptions, Unit, glucose_value

_ISO = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?\s*([Zz]|[+-]\d\d(:?\d\d)?)?")
_KINDS = {"": "sgv", "sgv": "sgv", "mbg": "mbg"}
# Two columns may round differently, no more.
_MOST_DIFFERENCE_MG_DL = 1


class GenericFormat:
    """Columns `timestamp`, `glucose_mg_dl` or `glucose_mmol_l`, and where there are any `device` and `type`."""

    name = "csv"
    title = "generic CSV"
    summary = "columns timestamp and glucose_mg_dl or glucose_mmol_l, or those of columns.toml"
    version = 1

    def header_row(self, rows: Sequence[Sequence[str]], options: ReadOptions) -> int | None:
        """The row that names the time and at least one of the two glucose columns."""
        columns = options.columns
        for number, row in enumerate(rows):
            if columns.timestamp in row and (columns.glucose_mg_dl in row or columns.glucose_mmol_l in row):
                return number
        return None

    def measurements(self, table: CsvTable, options: ReadOptions) -> Iterator[Measurement | LeftOut]:
        """Every row."""
        columns = options.columns
        used = (columns.timestamp, columns.glucose_mg_dl, columns.glucose_mmol_l, columns.device, columns.type)
        last_needed = max((name for name in used if name in table.header), key=table.header.index)
        for row in table.rows():
            yield _measurement(table, row, columns, last_needed)


def load_columns(path: Path) -> Columns:
    """The names in a `columns.toml`; the usual ones where there is no such file.

    Raises:
        SourceError: The file is malformed or has a key that it does not take.
    """
    if not path.is_file():
        return Columns()
    try:
        return TypeAdapter(_StrictColumns).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path.parent.name}/{path.name} is not valid TOML: {error}.") from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise SourceError(
            f"{path.parent.name}/{path.name}, key {key}: {problem['msg']}.",
            f"It takes {', '.join(Columns.__dataclass_fields__)}.",
        ) from None


@validated(frozen=True, config={"extra": "forbid"})
class _StrictColumns(Columns):
    pass


def _measurement(table: CsvTable, row: Row, columns: Columns, last_needed: str) -> Measurement | LeftOut:
    if row.is_shifted or row.is_long:
        return LeftOut("fields_displaced", row.line)
    if table.is_cut(row, last_needed):
        return LeftOut("cut_off", row.line)
    time = _time(row.values[columns.timestamp], columns.timestamp_format)
    if time is None:
        return LeftOut("unreadable_time", row.line)
    kind = _KINDS.get(row.values.get(columns.type, "").lower())
    if kind is None:
        return LeftOut("unknown_type", row.line)
    in_mg_dl, in_mmol_l = row.values.get(columns.glucose_mg_dl, ""), row.values.get(columns.glucose_mmol_l, "")
    value = glucose_value(in_mg_dl or in_mmol_l)
    if value is None:
        return LeftOut("unreadable_glucose" if in_mg_dl or in_mmol_l else "no_glucose", row.line)
    other = glucose_value(in_mmol_l) if in_mg_dl else None
    if isinstance(value, float) and isinstance(other, float) and abs(value - mg_dl(other)) > _MOST_DIFFERENCE_MG_DL:
        return LeftOut("units_disagree", row.line)
    device = row.values.get(columns.device, "") or "CSV"
    unit: Unit = "mg/dL" if in_mg_dl else "mmol/L"
    return Measurement(row.line, time, kind, value, unit, device=device, clock=device)


def _time(text: str, timestamp_format: str | None) -> datetime | None:
    try:
        if timestamp_format is not None:
            return datetime.strptime(text, timestamp_format)  # noqa: DTZ007
        return datetime.fromisoformat(re.sub(r"\s+(?=[Zz+-])", "", text).upper()) if _ISO.fullmatch(text) else None
    except ValueError:
        return None
