"""The graph of datasets, steps and columns that the newest events draw, and walks through it."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from nightscout_lakehouse.lib.lineage.event_log import (
    ColumnLineage,
    Event,
    EventDataset,
    InputField,
    JobFacets,
    LineageError,
    Transformation,
    event_key,
)

_COMPLETE = "COMPLETE"
_MOST_SUGGESTIONS = 8
_HOW = {"IDENTITY": "copied", "TRANSFORMATION": "computed", "AGGREGATION": "aggregated"}


@dataclass(frozen=True, order=True)
class DatasetKey:
    """A dataset as the standard names it: `postgres://host:5432`, `lakehouse.marts.mart_glucose_overview`."""

    namespace: str
    name: str


@dataclass(frozen=True, order=True)
class ColumnKey:
    """A column of a dataset, or a field of a document."""

    dataset: DatasetKey
    column: str


@dataclass(frozen=True, order=True)
class StepKey:
    """A job as the standard names it."""

    namespace: str
    name: str


Node = DatasetKey | ColumnKey


class Bond(StrEnum):
    """What a column has of another one."""

    VALUE = "value"
    # Its own condition, window or order: a share of rows is made of nothing else.
    CONDITION = "condition"
    # What decides for the whole table which rows there are.
    ROWS = "rows"


class Direction(StrEnum):
    """Which way a walk goes: to what something comes from, or to what comes from it."""

    UPSTREAM = "upstream"
    DOWNSTREAM = "downstream"


@dataclass(frozen=True)
class Column:
    """A column as the newest schema has it."""

    name: str
    type: str = ""
    description: str = ""


@dataclass(frozen=True)
class Check:
    """A test of a dataset, with its newest outcome."""

    name: str
    column: str | None
    is_passed: bool


@dataclass(frozen=True)
class Dataset:
    """What the newest events say of a dataset; None where they say nothing.

    Attributes:
        label: The shortest name that tells it from all others.
        row_count: Rows that it holds.
        byte_count: Bytes that it holds.
        rows_written: Rows that the newest run of each step which writes it has written.
    """

    key: DatasetKey
    label: str
    platform: str
    columns: tuple[Column, ...] = ()
    description: str = ""
    row_count: int | None = None
    byte_count: int | None = None
    rows_written: int | None = None
    written_at: datetime | None = None
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Step:
    """A job, as its newest complete run was; where none was complete, as its newest run was.

    Attributes:
        state: Of its newest run: COMPLETE, FAIL, …
    """

    key: StepKey
    inputs: tuple[DatasetKey, ...]
    outputs: tuple[DatasetKey, ...]
    run_id: str
    at: datetime
    state: str
    error: str = ""
    sql: str = ""
    description: str = ""
    integration: str = ""
    commit: str = ""

    @property
    def label(self) -> str:
        """Its name without what goes before it in a dotted name."""
        return self.key.name.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Link:
    """One step of a walk.

    Attributes:
        node: Where it leads.
        how: What the step does with the values: copied, computed, aggregated, filter, … ; empty if the event is silent.
        bond: What the one has of the other; a value between whole datasets.
        step: The job between the two.
    """

    node: Node
    how: str
    bond: Bond
    step: StepKey


@dataclass(frozen=True)
class Branch:
    """A node of the tree that a walk gives.

    Attributes:
        link: How the walk came here; None at the root.
        is_repeated: What follows stands elsewhere in the tree already.
        is_cut: More follows than the depth allows.
    """

    node: Node
    link: Link | None = None
    branches: tuple["Branch", ...] = ()
    is_repeated: bool = False
    is_cut: bool = False


@dataclass(frozen=True)
class Graph:
    """Datasets, steps, and from which columns each column comes.

    Attributes:
        sources: By column, the links to what it comes from; a dataset's every column is there that has any.
        targets: The same the other way around.
        traced: Datasets whose producer says where the columns come from; of the others only the tables are known.
    """

    datasets: Mapping[DatasetKey, Dataset]
    steps: Mapping[StepKey, Step]
    sources: Mapping[ColumnKey, tuple[Link, ...]]
    targets: Mapping[ColumnKey, tuple[Link, ...]]
    traced: frozenset[DatasetKey]
    producers: Mapping[DatasetKey, tuple[Step, ...]]
    consumers: Mapping[DatasetKey, tuple[Step, ...]]

    def columns_of(self, key: DatasetKey) -> list[Column]:
        """The columns of the schema, and those that only the lineage of other columns names."""
        known = {column.name: column for column in self.datasets[key].columns}
        for node in (*self.sources, *self.targets):
            if node.dataset == key and node.column not in known:
                known[node.column] = Column(node.column)
        return list(known.values())

    def label(self, node: Node) -> str:
        """The shortest name that tells a node from all others."""
        if isinstance(node, ColumnKey):
            return f"{self.datasets[node.dataset].label}.{node.column}"
        return self.datasets[node].label

    def links(self, node: Node, direction: Direction, *, with_conditions: bool = True) -> list[Link]:
        """The nodes beside a node.

        A column whose dataset's producer says nothing of columns leads to whole datasets. Without conditions, the own
        ones of a column are followed all the same if it has no values of others: a share or a flag is made of nothing
        else.
        """
        if isinstance(node, DatasetKey):
            return self._dataset_links(node, direction)
        if direction is Direction.UPSTREAM:
            found = [link for link in self.sources.get(node, ()) if with_conditions or self._is_followed(link, node)]
            if node.dataset not in self.traced:
                found += self._dataset_links(node.dataset, direction)
            return found
        found = [link for link in self.targets.get(node, ()) if with_conditions or self._is_followed(link, link.node)]
        return found + [link for link in self._dataset_links(node.dataset, direction) if link.node not in self.traced]

    def _is_followed(self, link: Link, target: Node) -> bool:
        if link.bond is not Bond.CONDITION or not isinstance(target, ColumnKey):
            return link.bond is Bond.VALUE
        return not any(source.bond is Bond.VALUE for source in self.sources.get(target, ()))

    def is_made_of_none(self, column: ColumnKey) -> bool:
        """Whether a column is known to be made of no other: a count of rows, or what the query itself says."""
        return column.dataset in self.traced and not self.links(column, Direction.UPSTREAM, with_conditions=False)

    def _dataset_links(self, key: DatasetKey, direction: Direction) -> list[Link]:
        links = []
        if direction is Direction.UPSTREAM:
            for step in self.producers.get(key, ()):
                links += [Link(each, "", Bond.VALUE, step.key) for each in step.inputs if each != key]
        else:
            for step in self.consumers.get(key, ()):
                links += [Link(each, "", Bond.VALUE, step.key) for each in step.outputs if each != key]
        return list({link.node: link for link in links}.values())

    def walk(self, node: Node, direction: Direction, depth: int, *, with_conditions: bool = False) -> Branch:
        """All that a node comes from, or that comes from it, as a tree; each node is followed once."""
        return self._branch(node, None, direction, depth, with_conditions, set())

    def _branch(
        self, node: Node, link: Link | None, direction: Direction, depth: int, with_conditions: bool, seen: set[Node]
    ) -> Branch:
        links = self.links(node, direction, with_conditions=with_conditions)
        if node in seen:
            return Branch(node, link, is_repeated=bool(links))
        if depth == 0:
            return Branch(node, link, is_cut=bool(links))
        seen.add(node)
        below = tuple(self._branch(each.node, each, direction, depth - 1, with_conditions, seen) for each in links)
        return Branch(node, link, below)

    def find(self, text: str) -> Node:
        """The dataset or column that a person means.

        Args:
            text: A name or the end of one: `mart_glucose_overview`, `marts.mart_glucose_overview.time_in_range_pct`.

        Raises:
            LineageError: Nothing or more than one thing has that name; names what is near.
        """
        wanted = text.strip().casefold()
        found: list[Node] = list(self._named(wanted))
        for position in _dots(wanted):
            for key in self._named(wanted[:position]):
                names = [column.name for column in self.columns_of(key)]
                found += [ColumnKey(key, name) for name in names if name.casefold() == wanted[position + 1 :]]
        if not found:
            raise LineageError(f"The lineage knows no {text}.", self._suggestion(wanted))
        if len(found) > 1:
            labels = ", ".join(sorted(self.label(node) for node in found))
            raise LineageError(f"{text} can be each of: {labels}.", "Name one of them.")
        return found[0]

    def _named(self, wanted: str) -> Iterator[DatasetKey]:
        exact = [key for key, dataset in self.datasets.items() if wanted in _whole_names(key, dataset.label)]
        if exact:
            yield from exact
            return
        for key in self.datasets:
            if wanted and re.search(rf"(^|[./]){re.escape(wanted)}$", _full(key).casefold()):
                yield key

    def _suggestion(self, wanted: str) -> str:
        tables = {self.label(key).casefold(): key for key in self.datasets}
        for position in _dots(wanted):
            for key in self._named(wanted[:position]):
                names = [column.name for column in self.columns_of(key)]
                near = difflib.get_close_matches(wanted[position + 1 :], names, _MOST_SUGGESTIONS, 0.5)
                columns = ", ".join(near or names[: 3 * _MOST_SUGGESTIONS])
                return f"{self.label(key)} has {'no such column; near' if near else 'the columns'}: {columns}."
        columns_named = [
            f"{self.label(key)}.{column.name}"
            for key in self.datasets
            for column in self.columns_of(key)
            if column.name.casefold() == wanted
        ]
        if columns_named:
            return f"A column is named so in: {', '.join(sorted(columns_named)[: 2 * _MOST_SUGGESTIONS])}."
        table, _, column = wanted.rpartition(".")
        candidates = [
            f"{near}.{column}"
            for near in difflib.get_close_matches(table, tables, _MOST_SUGGESTIONS, 0.6)
            if column in {each.name.casefold() for each in self.columns_of(tables[near])}
        ]
        candidates += difflib.get_close_matches(wanted, tables, _MOST_SUGGESTIONS, 0.6)
        candidates += [label for label in tables if wanted and wanted in label and label not in candidates]
        if candidates:
            return f"Near: {', '.join(dict.fromkeys(candidates[: 2 * _MOST_SUGGESTIONS]))}."
        return f"It has {len(tables)} tables; lakehouse lineage open shows them."


def build_graph(events: Iterable[Event]) -> Graph:
    """The graph as it is now.

    Args:
        events: The newest first. Of each job its newest complete run that wrote something counts, of each
            dataset the newest of each facet.
    """
    jobs: dict[StepKey, _Job] = {}
    tables: dict[DatasetKey, _Table] = {}
    for event in events:
        job = jobs.setdefault(StepKey(event.job.namespace, event.job.name), _Job())
        job.add(event)
        for dataset in event.inputs:
            tables.setdefault(DatasetKey(*event_key(dataset)), _Table()).add(event, dataset, is_output=False)
        for dataset in event.outputs:
            tables.setdefault(DatasetKey(*event_key(dataset)), _Table()).add(event, dataset, is_output=True)
    steps = {key: step for key, job in jobs.items() if (step := job.step(key)) is not None}
    sources = _column_sources(steps, jobs, tables)
    # A column may come from a dataset that no job names as an input.
    for node in {link.node for links in sources.values() for link in links}:
        tables.setdefault(node.dataset if isinstance(node, ColumnKey) else node, _Table())
    labels = short_names(tables)
    datasets = {key: table.dataset(key, labels[key]) for key, table in tables.items()}
    targets: dict[ColumnKey, list[Link]] = defaultdict(list)
    for column, links in sources.items():
        for link in links:
            if isinstance(link.node, ColumnKey):
                targets[link.node].append(replace(link, node=column))
    producers: dict[DatasetKey, list[Step]] = defaultdict(list)
    consumers: dict[DatasetKey, list[Step]] = defaultdict(list)
    for step in steps.values():
        for key in step.outputs:
            producers[key].append(step)
        for key in step.inputs:
            consumers[key].append(step)
    return Graph(
        dict(sorted(datasets.items())),
        dict(sorted(steps.items())),
        {key: tuple(links) for key, links in sources.items()},
        {key: tuple(links) for key, links in targets.items()},
        frozenset(key for job in jobs.values() for key in job.lineage),
        {key: tuple(found) for key, found in producers.items()},
        {key: tuple(found) for key, found in consumers.items()},
    )


def short_names(keys: Iterable[DatasetKey]) -> dict[DatasetKey, str]:
    """Of each dataset the shortest name that no other has.

    The end of its name is enough, as `mart_glucose_overview`; where two places hold a table of that name, the place
    goes before it, as `duckdb:dim_site`. An API's path stays whole.
    """
    ends = {key: _ends(key) for key in keys}
    uses: dict[str, int] = defaultdict(int)
    uses_of_place: dict[tuple[str, str], int] = defaultdict(int)
    for key, found in ends.items():
        for end in found:
            uses[end] += 1
            uses_of_place[platform(key), end] += 1
    names = {}
    for key, found in ends.items():
        place = platform(key)
        end = next((end for end in found if uses_of_place[place, end] == 1), _full(key))
        names[key] = end if uses[end] <= 1 else f"{place.lower()}:{end}"
    return names


def platform(key: DatasetKey) -> str:
    """Where a dataset lives, in a word."""
    scheme = key.namespace.partition(":")[0]
    known = {"file": "Files", "s3": "Bucket", "duckdb": "DuckDB", "postgres": "Postgres"}
    return known.get(scheme, "Nightscout" if key.name.startswith("api/") else scheme)


def how(transformations: Sequence[Transformation]) -> tuple[str, bool]:
    """What a step does with a value, in words, and whether the value itself goes over."""
    direct = [each for each in transformations if each.type != "INDIRECT"]
    words = [_HOW.get(each.subtype or "", (each.subtype or "").replace("_", " ").lower()) for each in direct]
    if not transformations or direct:
        return ", ".join(dict.fromkeys(word for word in words if word)), True
    words = [(each.subtype or "condition").replace("_", " ").lower() for each in transformations]
    return ", ".join(dict.fromkeys(words)), False


def _full(key: DatasetKey) -> str:
    return f"{key.namespace}/{key.name}"


def _whole_names(key: DatasetKey, label: str) -> tuple[str, ...]:
    return label.casefold(), key.name.casefold(), _full(key).casefold()


def _dots(text: str) -> list[int]:
    return [position for position, letter in enumerate(text) if letter == "."]


def _ends(key: DatasetKey) -> list[str]:
    """The ends of a name that may stand for it, the shortest first."""
    if platform(key) == "Nightscout":
        return [key.name]
    separator = "/" if "/" in key.name else "."
    pieces = [piece for piece in key.name.split(separator) if piece]
    return [separator.join(pieces[start:]) for start in range(len(pieces) - 1, -1, -1)]


@dataclass
class _Job:
    """What is found of a job while its events are read from the newest to the oldest.

    Attributes:
        complete: The events of its newest complete run that wrote something; a run that had nothing to do says nothing.
        fallback: The events of its newest run that names a dataset.
        lineage: By dataset, the newest word on where its columns come from.
        facets: The newest of each; a run that had nothing to do says none of them.
    """

    newest: Event | None = None
    complete_id: str | None = None
    complete: list[Event] = field(default_factory=list)
    fallback: list[Event] = field(default_factory=list)
    lineage: dict[DatasetKey, ColumnLineage] = field(default_factory=dict)
    facets: JobFacets = field(default_factory=JobFacets)

    def add(self, event: Event) -> None:
        self.newest = self.newest or event
        older = event.job.facets
        self.facets = JobFacets(
            self.facets.sql or older.sql,
            self.facets.source_code or older.source_code,
            self.facets.job_type or older.job_type,
            self.facets.source_code_location or older.source_code_location,
            self.facets.documentation or older.documentation,
        )
        is_complete = event.event_type == _COMPLETE
        if self.complete_id is None and is_complete and event.outputs:
            self.complete_id, self.fallback = event.run.run_id, []
        if event.run.run_id == self.complete_id:
            self.complete.append(event)
        elif self.complete_id is None and self._is_of_the_newest(event):
            self.fallback.append(event)
        for output in event.outputs if is_complete else ():
            if output.facets.column_lineage is not None:
                self.lineage.setdefault(DatasetKey(*event_key(output)), output.facets.column_lineage)

    def _is_of_the_newest(self, event: Event) -> bool:
        if not self.fallback:
            return bool(event.inputs or event.outputs)
        return event.run.run_id == self.fallback[0].run.run_id

    def events(self) -> list[Event]:
        return self.complete or self.fallback

    def step(self, key: StepKey) -> Step | None:
        """None of a job that reads and writes nothing, such as the run that the others are parts of."""
        events = self.events()
        inputs = dict.fromkeys(DatasetKey(*event_key(each)) for event in events for each in event.inputs)
        outputs = dict.fromkeys(DatasetKey(*event_key(each)) for event in events for each in event.outputs)
        if self.newest is None or not (inputs or outputs):
            return None
        facets = self.facets
        error = self.newest.run.facets.error_message
        return Step(
            key,
            tuple(inputs),
            tuple(outputs),
            events[0].run.run_id,
            events[0].event_time,
            self.newest.event_type,
            error.message if error else "",
            facets.sql.query if facets.sql else "",
            facets.documentation.description if facets.documentation else "",
            facets.job_type.integration or "" if facets.job_type else "",
            facets.source_code_location.version or "" if facets.source_code_location else "",
        )


@dataclass
class _Table:
    """What is found of a dataset while the events are read from the newest to the oldest."""

    columns: dict[str, Column] = field(default_factory=dict)
    description: str = ""
    row_count: int | None = None
    byte_count: int | None = None
    written_at: datetime | None = None
    named_at: datetime | None = None
    rows_written: dict[str, int] = field(default_factory=dict)
    checks: dict[tuple[str, str | None], Check] = field(default_factory=dict)

    def add(self, event: Event, dataset: EventDataset, *, is_output: bool) -> None:
        facets = dataset.facets
        if facets.schema:
            told = {
                each.name: Column(each.name, each.type or "", each.description or "") for each in facets.schema.fields
            }
            # A model that was left alone says its columns, and not always of what type and what for.
            self.columns = {
                name: Column(
                    name,
                    known.type or told.get(name, known).type,
                    known.description or told.get(name, known).description,
                )
                for name, known in (self.columns or told).items()
            }
        if not self.description and facets.documentation:
            self.description = facets.documentation.description
        if self.row_count is None:
            self.row_count = dataset.held.row_count
        if self.byte_count is None:
            self.byte_count = dataset.held.size
        if is_output and event.event_type == _COMPLETE:
            self.named_at = self.named_at or event.event_time
            # A run that left it alone names it all the same, and says nothing of rows.
            if dataset.used.row_count is not None:
                self.written_at = self.written_at or event.event_time
                self.rows_written.setdefault(event.job.name, dataset.used.row_count)
        for each in dataset.assertions:
            self.checks.setdefault((each.assertion, each.column), Check(each.assertion, each.column, each.success))

    def dataset(self, key: DatasetKey, label: str) -> Dataset:
        return Dataset(
            key,
            label,
            platform(key),
            tuple(self.columns.values()),
            self.description,
            self.row_count,
            self.byte_count,
            sum(self.rows_written.values()) if self.rows_written else None,
            self.written_at or self.named_at,
            tuple(sorted(self.checks.values(), key=lambda check: (check.is_passed, check.name, check.column or ""))),
        )


def _column_sources(
    steps: Mapping[StepKey, Step], jobs: Mapping[StepKey, _Job], tables: Mapping[DatasetKey, _Table]
) -> dict[ColumnKey, list[Link]]:
    """Of each column what it comes from: its own sources first, then what decides for the whole dataset."""
    sources: dict[ColumnKey, dict[Node, Link]] = defaultdict(dict)
    for key, step in steps.items():
        for dataset, lineage in jobs[key].lineage.items():
            if dataset not in step.outputs:
                continue
            for name, column in lineage.fields.items():
                for source in column.input_fields:
                    words, is_direct = how(source.transformations or _of_the_column(column.transformation_type))
                    bond = Bond.VALUE if is_direct else Bond.CONDITION
                    _add(sources[ColumnKey(dataset, name)], source, words, bond, key)
            for name in dict.fromkeys([*lineage.fields, *tables[dataset].columns]):
                for source in lineage.dataset:
                    _add(sources[ColumnKey(dataset, name)], source, how(source.transformations)[0], Bond.ROWS, key)
    # An upsert reads its own table; that says nothing of where its values come from.
    return {key: [link for node, link in links.items() if node != key] for key, links in sources.items()}


def _add(links: dict[Node, Link], source: InputField, words: str, bond: Bond, step: StepKey) -> None:
    node = ColumnKey(DatasetKey(source.namespace, source.name), source.field)
    links.setdefault(node, Link(node, words, bond, step))


def _of_the_column(transformation_type: str | None) -> list[Transformation]:
    return [Transformation("DIRECT", transformation_type)] if transformation_type else []
