"""The file of OpenLineage events, read from its end: what is newest is found without reading what is old.

The events are those of the standard (https://openlineage.io/docs/spec); of each, the fields that are shown are kept.
"""

import gzip
import logging
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import msgspec

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lineage.journal import event_files

_log = logging.getLogger(__name__)

# Some days of runs every half hour; read in seconds.
MOST_BYTES = 512 * 1024 * 1024
# Each file begins with the graph so far; what lies further back adds rows and checks of steps that have long not run.
GRAPH_BYTES = 64 * 1024 * 1024
_MOST_LINE_BYTES = 64 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024
_SMALLEST_GZIP_BYTES = 18

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
T = TypeVar("T")


class LineageError(LakehouseError):
    """The lineage cannot be read, or what was asked for is not in it."""


class _Part(msgspec.Struct, frozen=True, rename="camel"):
    """A part of an event; the fields that it does not name are skipped while reading."""


class SchemaField(_Part, frozen=True):
    """A column as a dataset's schema names it."""

    name: str
    type: str | None = None
    description: str | None = None


class Schema(_Part, frozen=True):
    """Facet `schema`."""

    fields: list[SchemaField] = []


class Transformation(_Part, frozen=True):
    """How an output column depends on an input column: DIRECT (its value) or INDIRECT (a filter, a join, …)."""

    type: str | None = None
    subtype: str | None = None
    description: str | None = None


class InputField(_Part, frozen=True):
    """A column that an output column comes from."""

    namespace: str
    name: str
    field: str
    transformations: list[Transformation] = []


class FieldSources(_Part, frozen=True):
    """Where one output column comes from."""

    input_fields: list[InputField]
    transformation_description: str | None = None
    transformation_type: str | None = None


class ColumnLineage(_Part, frozen=True):
    """Facet `columnLineage`: by output column, and what the whole dataset depends on."""

    fields: dict[str, FieldSources] = {}
    dataset: list[InputField] = []


class Described(_Part, frozen=True):
    """Facet `documentation`."""

    description: str = ""


class DatasetVersion(_Part, frozen=True):
    """Facet `version`."""

    dataset_version: str


class Assertion(_Part, frozen=True):
    """A test of a dataset and whether it passed."""

    assertion: str
    success: bool
    column: str | None = None
    severity: str | None = None


class Assertions(_Part, frozen=True):
    """Facet `dataQualityAssertions`."""

    assertions: list[Assertion] = []


class Statistics(_Part, frozen=True):
    """Facets `inputStatistics` and `outputStatistics`."""

    row_count: int | None = None
    size: int | None = None


class QualityMetrics(_Part, frozen=True):
    """Facet `dataQualityMetrics`: what the whole dataset holds."""

    row_count: int | None = None
    bytes: int | None = None


class DatasetFacets(_Part, frozen=True):
    """The facets of a dataset wherever it is named."""

    schema: Schema | None = None
    column_lineage: ColumnLineage | None = None
    documentation: Described | None = None
    version: DatasetVersion | None = None
    data_quality_assertions: Assertions | None = None
    data_quality_metrics: QualityMetrics | None = None


class UseFacets(_Part, frozen=True):
    """The facets of a dataset as the input or the output of a run."""

    data_quality_assertions: Assertions | None = None
    data_quality_metrics: QualityMetrics | None = None
    input_statistics: Statistics | None = None
    output_statistics: Statistics | None = None


class EventDataset(_Part, frozen=True):
    """A dataset that a run reads or writes."""

    namespace: str
    name: str
    facets: DatasetFacets = DatasetFacets()
    input_facets: UseFacets = UseFacets()
    output_facets: UseFacets = UseFacets()

    @property
    def held(self) -> Statistics:
        """Rows and bytes that the whole dataset holds, where the event says."""
        found = self.facets.data_quality_metrics or self.input_facets.data_quality_metrics or QualityMetrics()
        return Statistics(found.row_count, found.bytes)

    @property
    def used(self) -> Statistics:
        """Rows and bytes that the run wrote or read, where the event says."""
        return self.output_facets.output_statistics or self.input_facets.input_statistics or Statistics()

    @property
    def assertions(self) -> list[Assertion]:
        """The tests of the dataset in this event."""
        facets = (
            self.input_facets.data_quality_assertions,
            self.output_facets.data_quality_assertions,
            self.facets.data_quality_assertions,
        )
        return [each for facet in facets if facet is not None for each in facet.assertions]


class Sql(_Part, frozen=True):
    """Facet `sql`."""

    query: str


class SourceCode(_Part, frozen=True):
    """Facet `sourceCode`: of a dbt model its SQL as it is written, which changes with the code alone."""

    source_code: str


class JobType(_Part, frozen=True):
    """Facet `jobType`."""

    processing_type: str | None = None
    integration: str | None = None
    job_type: str | None = None


class SourceCodeLocation(_Part, frozen=True):
    """Facet `sourceCodeLocation`; `version` is the commit."""

    version: str | None = None
    path: str | None = None


class JobFacets(_Part, frozen=True):
    """The facets of a job."""

    sql: Sql | None = None
    source_code: SourceCode | None = None
    job_type: JobType | None = None
    source_code_location: SourceCodeLocation | None = None
    documentation: Described | None = None


class Job(_Part, frozen=True):
    """A step that is run again and again."""

    namespace: str
    name: str
    facets: JobFacets = JobFacets()


class RunReference(_Part, frozen=True):
    """The id of a run."""

    run_id: str


class Root(_Part, frozen=True):
    """The outermost run that a run belongs to."""

    run: RunReference


class Parent(_Part, frozen=True):
    """Facet `parent`: the run that started this one."""

    run: RunReference
    root: Root | None = None


class ErrorMessage(_Part, frozen=True):
    """Facet `errorMessage`."""

    message: str


class RunFacets(_Part, frozen=True):
    """The facets of a run."""

    parent: Parent | None = None
    error_message: ErrorMessage | None = None


class Run(_Part, frozen=True):
    """One run of a job."""

    run_id: str
    facets: RunFacets = RunFacets()


class Event(_Part, frozen=True):
    """What happened to a run: START, RUNNING, COMPLETE, FAIL, ABORT or OTHER."""

    event_time: Moment
    run: Run
    job: Job
    event_type: str = "OTHER"
    inputs: list[EventDataset] = []
    outputs: list[EventDataset] = []


class _JobName(_Part, frozen=True):
    namespace: str
    name: str


class EventHead(_Part, frozen=True):
    """An event without its datasets: enough to tell which run of what it belongs to."""

    event_time: Moment
    run: Run
    job: _JobName
    event_type: str = "OTHER"


@dataclass(frozen=True)
class EventLog:
    """The folder that events are written to: `events.ndjson` and, older and compressed, `events-<time>.ndjson.gz`.

    Attributes:
        folder: `LAKEHOUSE_HOME/lineage`.
        most_bytes: Not more than so many of the newest bytes are read.
    """

    folder: Path
    most_bytes: int = MOST_BYTES

    def files(self) -> list[Path]:
        """The files of events, the newest first."""
        return event_files(self.folder)[::-1]

    @property
    def is_cut(self) -> bool:
        """Whether there is more than is read."""
        return sum(map(_size, self.files())) > self.most_bytes

    def events(self) -> Iterator[Event]:
        """All events, the newest first.

        Raises:
            LineageError: There is no file of events, or a file holds something else.
        """
        return self._decoded(Event)

    def heads(self) -> Iterator[EventHead]:
        """All events without their datasets, the newest first; raises as `events`."""
        return self._decoded(EventHead)

    def _decoded(self, kind: type[T]) -> Iterator[T]:
        files = self.files()
        if not any(map(_size, files)):
            raise LineageError("There is no lineage yet.", "Run the pipeline first: make run.")
        decoder = msgspec.json.Decoder(kind)
        damaged, left = 0, self.most_bytes
        for path in files:
            try:
                for line in _lines(path, left):
                    try:
                        yield decoder.decode(line)
                    except msgspec.MsgspecError:
                        damaged += 1
            except (OSError, EOFError, zlib.error) as error:
                raise LineageError(
                    f"{path} cannot be read ({error}).", "Mend its permissions, or move it away."
                ) from None
            left -= _size(path)
            if left <= 0:
                break
        # A run that was killed while it wrote leaves such a line; it loses that event and no other.
        if damaged:
            _log.warning("Lineage: %d damaged lines in %s were skipped.", damaged, self.folder)


def _size(path: Path) -> int:
    """Bytes of the events in a file, uncompressed."""
    if path.suffix != ".gz":
        return path.stat().st_size
    with path.open("rb") as file:
        if file.seek(0, 2) < _SMALLEST_GZIP_BYTES:
            return 0
        # The format keeps the length at its end.
        file.seek(-4, 2)
        return int.from_bytes(file.read(4), "little")


def _lines(path: Path, most_bytes: int) -> Iterator[bytes]:
    """The non-empty lines of a file from the last to the first, of at most so many bytes at its end."""
    if path.suffix != ".gz":
        with path.open("rb") as file:
            yield from _lines_backwards(file, path, most_bytes)
        return
    # A compressed file can only be read forwards: its text goes to the disk, not into memory.
    with gzip.open(path, "rb") as compressed, tempfile.TemporaryFile() as text:
        shutil.copyfileobj(compressed, text)
        yield from _lines_backwards(text, path, most_bytes)


def _lines_backwards(file: BinaryIO, path: Path, most_bytes: int) -> Iterator[bytes]:
    position = file.seek(0, 2)
    end = max(0, position - most_bytes)
    rest = b""
    while position > end:
        size = min(_BLOCK_BYTES, position - end)
        position -= size
        file.seek(position)
        first, *lines = (file.read(size) + rest).split(b"\n")
        # What came before belongs to the last of them; `first` may go on in the block before this one.
        yield from (line for line in reversed(lines) if line)
        rest = first
        if len(rest) > _MOST_LINE_BYTES:
            message = f"{path} has a line of more than {_MOST_LINE_BYTES >> 20} MB."
            raise LineageError(message, "It holds something else than events: move it away.")
    # What was cut off at the limit is no whole line.
    if rest and position == 0:
        yield rest


def event_key(dataset: EventDataset | InputField) -> tuple[str, str]:
    """What a dataset is known by everywhere."""
    return dataset.namespace, dataset.name


def as_json(value: Any) -> str:
    """JSON for people and programs: indented, with times in ISO 8601."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1).decode()
