"""What a source is: something that yields documents in the shape of Nightscout's, and says what it left out.

A document's id must be the same whenever the same measurement is read again, from whatever export: then a
second reading lands nothing, and a grown export only what it added. `measurement_id` makes such ids.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lake import IMPORTED_ID_PREFIX
from nightscout_lakehouse.lib.nightscout_client import Document, documents_from_json

# Nightscout's own factor.
MG_DL_PER_MMOL_L = 18.01559


class SourceError(LakehouseError):
    """A source cannot be read at all. The message says where and how to mend it; it names no value of a file."""


@dataclass(frozen=True)
class SourceDocument:
    """One document, ready to land.

    Attributes:
        document: Its text with `_id` and `date`, as a Nightscout server would send it.
        time: Time of the measurement, UTC.
        line: Where it stands in its file; 0 for a source that is no file.
    """

    document: Document
    time: datetime
    line: int = 0


@dataclass(frozen=True)
class LeftOut:
    """A row that becomes no document.

    Attributes:
        reason: Why, as a short name; `docs/guide/08-other-sources.md` lists them.
        line: Where it stands in its file; 0 for a source that is no file.
        is_refused: It should have been a measurement and cannot be read as one. False: it is left out by rule,
            such as a patient's name or an alarm setting.
    """

    reason: str
    line: int = 0
    is_refused: bool = True


SourceItem = SourceDocument | LeftOut


class Source(Protocol):
    """Anything that yields entries for one site; `landing.land` takes it from there.

    Attributes:
        name: Short name; it is part of every id, so it never changes.
    """

    @property
    def name(self) -> str:
        """Short name of the source."""
        ...

    def documents(self) -> Iterator[SourceItem]:
        """Yield every measurement that the source has, in any order.

        Raises:
            SourceError: The source cannot be read.
        """
        ...


def entry(
    *,
    source: str,
    time: datetime,
    glucose: float | str,
    device: str,
    identity: str,
    kind: str = "sgv",
    as_sent: str | None = None,
    line: int = 0,
) -> SourceDocument:
    """An entry in Nightscout's shape.

    Args:
        source: Name of the source.
        time: Time of the measurement, with its UTC offset.
        glucose: mg/dL, or `HIGH` or `LOW`, which processing sets aside in quarantine.
        device: What measured it; readings of one device are one stream.
        identity: What `measurement_id` returned.
        kind: `sgv` (sensor) or `mbg` (finger-stick).
        as_sent: The value as the source had it, where it was converted.
        line: Line in the file.
    """
    offset = time.utcoffset()
    moment = time.astimezone(UTC)
    fields: dict[str, object] = {
        "_id": identity,
        "type": kind,
        kind: int(glucose) if isinstance(glucose, float) and glucose.is_integer() else glucose,
        "date": int(moment.timestamp() * 1000),
        "dateString": moment.isoformat().replace("+00:00", "Z"),
        "utcOffset": 0 if offset is None else int(offset.total_seconds() // 60),
        "device": device,
        "source": source,
    }
    if as_sent is not None:
        fields["as_sent"] = as_sent
    (document,) = documents_from_json([msgspec.json.encode(fields).decode()])
    return SourceDocument(document, moment, line)


def measurement_id(source: str, moment: str, *parts: str) -> str:
    """A stable id: begins with the time, so that DuckDB finds it again by few row groups.

    Args:
        source: Name of the source.
        moment: Time as the source writes it, normalised (ISO); local or with offset.
        *parts: What else tells measurements apart: device, kind, which pass of an hour that comes twice.
    """
    digest = hashlib.blake2b("\x1f".join((source, moment, *parts)).encode(), digest_size=8).hexdigest()
    return f"{IMPORTED_ID_PREFIX}{moment}:{digest}"


def mg_dl(mmol_l: float) -> float:
    """Whole mg/dL of a value in mmol/L, as Nightscout and the meters round.

    Unrounded, 10.0 mmol/L would be 180.16 mg/dL and out of the range whose upper bound it is.
    """
    return float(int(mmol_l * MG_DL_PER_MMOL_L + 0.5))


def short_hash(text: str) -> str:
    """Four hexadecimal digits that tell a person's devices apart and give no serial number away."""
    return hashlib.blake2b(text.encode(), digest_size=2).hexdigest()
