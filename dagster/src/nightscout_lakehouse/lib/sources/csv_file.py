"""Read a CSV file of unknown encoding and separator, row by row, however long it is."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from nightscout_lakehouse.lib.sources.base import SourceError

_DELIMITERS = (",", ";", "\t")
_HEAD_BYTES = 65_536
_HEAD_ROWS = 30
# What people drop by mistake, by the first bytes.
_NOT_CSV = {
    b"PK\x03\x04": "is a ZIP archive or a spreadsheet: unpack it, or save the table as CSV",
    b"\xd0\xcf\x11\xe0": "is an Excel file: save the table as CSV",
    b"%PDF": "is a PDF report: choose the export as CSV",
    b"\x1f\x8b": "is compressed: unpack it",
}


@dataclass(frozen=True)
class Row:
    """One row below the header.

    Attributes:
        line: Line of the file that it ends on.
        values: Its fields by the header's names, stripped; a field that is not there is empty.
        is_long: It has more fields than the header, all of them empty.
        is_shifted: It has more fields than the header and they hold something: columns may be displaced.
        is_complete: It has at least as many fields as the header.
        is_open: It is the last and the file has no line end after it, so that a value may be cut off.
    """

    line: int
    values: dict[str, str]
    is_long: bool = False
    is_shifted: bool = False
    is_complete: bool = True
    is_open: bool = False


@dataclass(frozen=True)
class CsvHead:
    """The beginning of a file as one separator divides it."""

    encoding: str
    delimiter: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class CsvTable:
    """A CSV file whose header has been found; it can be iterated more than once.

    Attributes:
        path: The file.
        encoding: Its encoding.
        delimiter: Its separator.
        preamble: Rows above the header.
        header: Names of the columns, stripped.
    """

    path: Path
    encoding: str
    delimiter: str
    preamble: tuple[tuple[str, ...], ...]
    header: tuple[str, ...]

    def rows(self) -> Iterator[Row]:
        """The rows below the header; empty lines are none.

        Raises:
            SourceError: A quote is never closed, or a field is longer than any field can be.
        """
        ends_open = _ends_without_line_end(self.path, self.encoding)
        with self.path.open(encoding=self.encoding, errors="replace", newline="") as text:
            reader = csv.reader(text, delimiter=self.delimiter, strict=True)
            pending: Row | None = None
            try:
                for fields in islice(reader, len(self.preamble) + 1, None):
                    if not any(field.strip() for field in fields):
                        continue
                    if pending is not None:
                        yield pending
                    pending = self._row(reader.line_num, fields)
            except csv.Error as error:
                raise SourceError(
                    f"{self.path.name}, line {reader.line_num}: the CSV is malformed ({error}).",
                    "Most often a quotation mark is not closed, or the file is cut off: export it again.",
                ) from None
            if pending is not None:
                yield replace(pending, is_open=ends_open and pending.line == reader.line_num)

    def is_cut(self, row: Row, last_needed: str) -> bool:
        """Whether what is needed of a row may be cut off: nothing follows it, not even a line end."""
        return row.is_open and not (row.is_complete and self.header.index(last_needed) < len(self.header) - 1)

    def _row(self, line: int, fields: Sequence[str]) -> Row:
        width = len(self.header)
        stripped = [field.strip() for field in fields]
        extra = stripped[width:]
        values = dict(zip(self.header, stripped + [""] * (width - len(stripped)), strict=False))
        return Row(
            line,
            values,
            is_long=bool(extra) and not any(extra),
            is_shifted=any(extra),
            is_complete=len(fields) >= width,
        )


def read_heads(path: Path) -> list[CsvHead]:
    """The beginning of a file, once for each separator it may have.

    Raises:
        SourceError: It cannot be read, is empty, or is no text.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise SourceError(f"{path.name} cannot be read ({error.strerror}).", "Check its permissions.") from None
    if not head.strip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"):
        raise SourceError(f"{path.name} is empty.", "Export it again, or remove it.")
    for magic, what in _NOT_CSV.items():
        if head.startswith(magic):
            raise SourceError(f"{path.name} {what}.")
    encoding = _encoding(head)
    text = head.decode(encoding, errors="replace")
    return [CsvHead(encoding, delimiter, _head_rows(text, delimiter)) for delimiter in _DELIMITERS]


def _head_rows(text: str, delimiter: str) -> tuple[tuple[str, ...], ...]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[tuple[str, ...]] = []
    try:
        rows.extend(tuple(field.strip() for field in fields) for fields in islice(reader, _HEAD_ROWS))
    except csv.Error:
        # What is read so far may hold the header; the rest fails with its line when it is read.
        return tuple(rows)
    return tuple(rows)


def _encoding(head: bytes) -> str:
    if head.startswith(b"\xef\xbb\xbf"):
        return "utf-8-sig"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    # ASCII in UTF-16 has a zero in every other byte.
    sample = head[:200]
    if sample.count(0) > len(sample) // 4:
        return "utf-16-le" if sample[1::2].count(0) > sample[::2].count(0) else "utf-16-be"
    return "utf-8"


def _ends_without_line_end(path: Path, encoding: str) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 4))
        tail = file.read()
    # In UTF-16 a line end is the byte and a zero, on either side.
    return not tail.rstrip(b"\x00" if encoding.startswith("utf-16") else b"").endswith((b"\n", b"\r"))
