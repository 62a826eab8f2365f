"""What changed between two runs, by their events."""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from nightscout_lakehouse.lib.lineage.event_log import Event, EventDataset, EventHead, EventLog, LineageError, event_key
from nightscout_lakehouse.lib.lineage.facts import COMMAND_PREFIX
from nightscout_lakehouse.lib.lineage.graph import DatasetKey, how, short_names

_ENDS = {"COMPLETE", "FAIL", "ABORT"}
_MOST_RUNS_NAMED = 10


@dataclass(frozen=True)
class PipelineRun:
    """A run that no other run started, with all that it started.

    Attributes:
        run_id: Of the run itself.
        job: What was run.
        state: COMPLETE, FAIL, ABORT, or RUNNING if its end is not in the file.
        run_ids: Its own id and those of all its steps.
    """

    run_id: str
    job: str
    started_at: datetime
    ended_at: datetime
    state: str
    step_count: int
    failed_steps: tuple[str, ...]
    run_ids: frozenset[str]

    @property
    def is_command(self) -> bool:
        """Whether it is a `lakehouse import`, `check` or `validate`, and no run of the pipeline."""
        return self.job.startswith(COMMAND_PREFIX)


@dataclass(frozen=True)
class TableState:
    """A dataset as one run left it, or read it.

    Attributes:
        row_count: Rows that it holds.
        rows_used: Rows that each step of the run wrote into it, or read from it.
        version: As the event names it.
        columns: Their types.
        sources: Of each column, those that its values come from.
    """

    row_count: int | None = None
    rows_used: Mapping[str, int] = field(default_factory=dict)
    version: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, order=True)
class AssertionKey:
    """A test of a dataset, or of one of its columns."""

    dataset: DatasetKey
    assertion: str
    column: str = ""


@dataclass(frozen=True)
class RunFacts:
    """What the events of one run say, by name; None where they are silent."""

    run: PipelineRun
    reads: Mapping[DatasetKey, TableState]
    writes: Mapping[DatasetKey, TableState]
    commits: frozenset[str]
    code: Mapping[str, str]
    steps: frozenset[str]
    errors: Mapping[str, str]
    assertions: Mapping[AssertionKey, bool]


@dataclass(frozen=True)
class Change:
    """One thing that is not as it was.

    Attributes:
        kind: inputs, rows, code, schema, lineage, checks or steps.
        subject: The table, column, model or check.
        before: None if it was not there.
        after: None if it is gone.
        detail: Lines that say more, such as the difference of the code.
    """

    kind: str
    subject: str
    before: str | None
    after: str | None
    detail: tuple[str, ...] = ()


def pipeline_runs(
    heads: Iterable[EventHead], *, most: int | None = None, with_commands: bool = True
) -> list[PipelineRun]:
    """The runs, the newest first; those of which the file holds no beginning are left out.

    Args:
        heads: The newest first.
        most: Not more than so many; what is older is not read.
        with_commands: Those of commands, too.
    """
    runs: dict[str, _Seen] = {}
    begun = 0
    for head in heads:
        runs.setdefault(head.run.run_id, _Seen(head)).add(head)
        is_counted = with_commands or not head.job.name.startswith(COMMAND_PREFIX)
        begun += head.event_type == "START" and head.run.facets.parent is None and is_counted
        # Where the beginning of a run is read, all of it has been.
        if begun == most:
            break
    members: dict[str, list[str]] = defaultdict(list)
    for run_id in runs:
        members[_root_of(run_id, runs)].append(run_id)
    # A rotated file begins with the last word of older runs; of those no beginning is there, and they are not whole.
    whole = {root: ids for root, ids in members.items() if any(runs[run_id].has_begun for run_id in ids)}
    found = [_pipeline_run(root, ids, runs) for root, ids in whole.items()]
    told = [run for run in found if with_commands or not run.is_command]
    return sorted(told, key=lambda run: run.started_at, reverse=True)[:most]


def choose_run(runs: Sequence[PipelineRun], text: str) -> PipelineRun:
    """The run that a person means.

    Args:
        runs: The newest first.
        text: `latest` or `previous`, which are runs of the pipeline and no commands, or the beginning of a run's id.

    Raises:
        LineageError: There is no such run, or there are several.
    """
    position = {"latest": 0, "previous": 1}.get(text.casefold())
    if position is not None:
        pipeline = [run for run in runs if not run.is_command]
        if len(pipeline) <= position:
            raise LineageError(
                f"There are not two runs to compare, only {len(pipeline)}.", "Run the pipeline once more."
            )
        return pipeline[position]
    found = [run for run in runs if text and run.run_id.startswith(text.casefold())]
    if len(found) == 1:
        return found[0]
    if found:
        raise LineageError(f"{len(found)} runs begin with {text}.", "Give more of the id.")
    known = ", ".join(run.run_id[:8] for run in runs[:_MOST_RUNS_NAMED])
    raise LineageError(f"No run begins with {text}.", f"The newest are {known}; lakehouse lineage runs lists them.")


def run_facts(log: EventLog, runs: Sequence[PipelineRun]) -> list[RunFacts]:
    """What the events say of each of the runs; reads back to where they begin, and keeps only what is compared."""
    gathered = [_Gathered() for _ in runs]
    beginnings = {run.run_id for run in runs}
    for event in log.events():
        for run, facts in zip(runs, gathered, strict=True):
            if event.run.run_id in run.run_ids:
                facts.add(event)
        if event.event_type == "START":
            beginnings.discard(event.run.run_id)
        if not beginnings:
            break
    return [facts.facts(run) for run, facts in zip(runs, gathered, strict=True)]


def compare(before: RunFacts, after: RunFacts) -> list[Change]:
    """What is not the same in two runs; steps that only one of them had are told, their tables are not compared."""
    names = _names(before, after)
    return [
        *_changed_steps(before, after),
        *_changed_code(before, after),
        *_changed_inputs(before, after, names),
        *_changed_rows(before, after, names),
        *_changed_schema(before, after, names),
        *_changed_sources(before, after, names),
        *_changed_checks(before, after, names),
    ]


def _changed_steps(before: RunFacts, after: RunFacts) -> list[Change]:
    changes = [Change("steps", step, "ran", None) for step in sorted(before.steps - after.steps)]
    changes += [Change("steps", step, None, "ran") for step in sorted(after.steps - before.steps)]
    for step in sorted({*before.errors, *after.errors}):
        was, now = before.errors.get(step), after.errors.get(step)
        if was != now:
            changes.append(Change("steps", step, _failure(was), _failure(now)))
    return changes


def _failure(message: str | None) -> str:
    return "no failure" if message is None else f"failed: {message.splitlines()[0] if message else 'no message'}"


def _changed_code(before: RunFacts, after: RunFacts) -> list[Change]:
    changes = []
    if before.commits != after.commits:
        changes.append(Change("code", "git commit", _listed(before.commits), _listed(after.commits)))
    for model in sorted(before.code.keys() & after.code.keys()):
        was, now = before.code[model].strip(), after.code[model].strip()
        if was != now:
            lines = list(difflib.unified_diff(was.splitlines(), now.splitlines(), "before", "after", lineterm="", n=1))
            lines = [line for line in lines[2:] if not line.startswith("@@")]
            removed = sum(line.startswith("-") for line in lines)
            added = sum(line.startswith("+") for line in lines)
            changes.append(Change("code", model, _counted(removed, "removed"), _counted(added, "added"), tuple(lines)))
    return changes


def _counted(lines: int, word: str) -> str:
    return f"{lines} line {word}" if lines == 1 else f"{lines} lines {word}"


def _changed_inputs(before: RunFacts, after: RunFacts, names: Mapping[DatasetKey, str]) -> list[Change]:
    """Only what comes from outside the run: what one of its steps wrote is told as its output."""
    changes = []
    outside_before = {key: state for key, state in before.reads.items() if key not in before.writes}
    outside_after = {key: state for key, state in after.reads.items() if key not in after.writes}
    for key in sorted(outside_before.keys() | outside_after.keys()):
        was, now = outside_before.get(key), outside_after.get(key)
        if was is None or now is None:
            changes.append(Change("inputs", names[key], "read" if was else None, "read" if now else None))
            continue
        if was.version != now.version:
            changes.append(Change("inputs", names[key], f"version {was.version}", f"version {now.version}"))
        (rows_before, word), (rows_now, _) = _rows(was), _rows(now)
        if rows_before is not None and rows_now is not None and rows_before != rows_now:
            changes.append(Change("inputs", names[key], f"{rows_before:,} {word}", f"{rows_now:,} {word}"))
    return changes


def _changed_rows(before: RunFacts, after: RunFacts, names: Mapping[DatasetKey, str]) -> list[Change]:
    changes = []
    for key in sorted(before.writes.keys() & after.writes.keys()):
        (was, word), (now, word_now) = _rows(before.writes[key]), _rows(after.writes[key])
        # Rows held and rows written are not the same thing, and what is not counted has not changed.
        if was is not None and now is not None and word == word_now and was != now:
            change = Change("rows", names[key], f"{was:,} {word}", f"{now:,} {word}", (f"{now - was:+,}",))
            changes.append(change)
    return changes


def _changed_schema(before: RunFacts, after: RunFacts, names: Mapping[DatasetKey, str]) -> list[Change]:
    changes = []
    for key in sorted(before.writes.keys() & after.writes.keys()):
        was, now = before.writes[key].columns, after.writes[key].columns
        # An event without a schema says nothing; it does not say that all columns are gone.
        if not was or not now:
            continue
        for column in sorted(was.keys() | now.keys()):
            # A type that only one of the two names has not changed.
            is_told = column not in was or column not in now or (was[column] and now[column])
            if is_told and was.get(column) != now.get(column):
                changes.append(Change("schema", f"{names[key]}.{column}", was.get(column), now.get(column)))
    return changes


def _changed_sources(before: RunFacts, after: RunFacts, names: Mapping[DatasetKey, str]) -> list[Change]:
    changes = []
    for key in sorted(before.writes.keys() & after.writes.keys()):
        was, now = before.writes[key].sources, after.writes[key].sources
        if not was or not now:
            continue
        for column in sorted(was.keys() & now.keys()):
            if was[column] != now[column]:
                subject = f"{names[key]}.{column}"
                changes.append(Change("lineage", subject, _listed(was[column]), _listed(now[column])))
    return changes


def _changed_checks(before: RunFacts, after: RunFacts, names: Mapping[DatasetKey, str]) -> list[Change]:
    changes = []
    for key in sorted(before.assertions.keys() | after.assertions.keys()):
        was, now = before.assertions.get(key), after.assertions.get(key)
        # One that fails in both runs is told too: it may be why a figure is missing.
        if now is False or (was is False and now is True):
            subject = f"{names[key.dataset]}: {key.assertion}" + (f" of {key.column}" if key.column else "")
            changes.append(Change("checks", subject, _outcome(was), _outcome(now)))
    return changes


def _outcome(is_passed: bool | None) -> str | None:
    return None if is_passed is None else "passed" if is_passed else "failed"


def _rows(state: TableState) -> tuple[int | None, str]:
    """The rows that a table holds; where nobody counted them, those written or read."""
    if state.row_count is not None:
        return state.row_count, "rows"
    return (sum(state.rows_used.values()) if state.rows_used else None), "rows in this run"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _names(*facts: RunFacts) -> dict[DatasetKey, str]:
    return short_names({key for each in facts for key in (*each.reads, *each.writes)})


@dataclass
class _Seen:
    """What is found of a run while its events are read from the newest to the oldest."""

    newest: EventHead
    started_at: datetime = field(init=False)
    state: str = "RUNNING"
    has_begun: bool = False
    parent: str | None = None
    root: str | None = None

    def __post_init__(self) -> None:
        self.started_at = self.newest.event_time

    def add(self, head: EventHead) -> None:
        self.started_at = min(self.started_at, head.event_time)
        self.has_begun = self.has_begun or head.event_type == "START"
        if self.state == "RUNNING" and head.event_type in _ENDS:
            self.state = head.event_type
        parent = head.run.facets.parent
        if parent is not None:
            self.parent = self.parent or parent.run.run_id
            self.root = self.root or (parent.root.run.run_id if parent.root else None)


def _root_of(run_id: str, runs: Mapping[str, _Seen]) -> str:
    """The outermost run: as the event says, or found from parent to parent."""
    path = {run_id}
    while True:
        seen = runs.get(run_id)
        above = (seen.root or seen.parent) if seen else None
        if above is None or above in path:
            return run_id
        path.add(above)
        run_id = above


def _pipeline_run(root: str, ids: Sequence[str], runs: Mapping[str, _Seen]) -> PipelineRun:
    steps = [run_id for run_id in ids if run_id != root]
    members = [runs[run_id] for run_id in ids]
    failed = tuple(sorted(runs[each].newest.job.name for each in steps if runs[each].state in ("FAIL", "ABORT")))
    own = runs.get(root)
    # The run itself may send no events, or its own may be rotated away: its steps tell.
    states = {runs[each].state for each in steps}
    told = "FAIL" if failed else "RUNNING" if "RUNNING" in states else "COMPLETE"
    return PipelineRun(
        root,
        own.newest.job.name if own else "",
        min(each.started_at for each in members),
        max(each.newest.event_time for each in members),
        own.state if own and (own.state != "RUNNING" or not steps) else told,
        len(steps) or 1,
        failed,
        frozenset({root, *ids}),
    )


@dataclass
class _Gathered:
    """What is found of a run while its events are read from the newest to the oldest."""

    reads: dict[DatasetKey, TableState] = field(default_factory=dict)
    writes: dict[DatasetKey, TableState] = field(default_factory=dict)
    commits: set[str] = field(default_factory=set)
    code: dict[str, str] = field(default_factory=dict)
    steps: set[str] = field(default_factory=set)
    errors: dict[str, str] = field(default_factory=dict)
    assertions: dict[AssertionKey, bool] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        job, facets = event.job.name, event.job.facets
        self.steps.add(job)
        if facets.source_code_location and facets.source_code_location.version:
            self.commits.add(facets.source_code_location.version)
        if facets.source_code:
            self.code.setdefault(job, facets.source_code.source_code)
        if event.event_type == "FAIL":
            message = event.run.facets.error_message
            self.errors.setdefault(job, message.message if message else "")
        for place, datasets in ((self.reads, event.inputs), (self.writes, event.outputs)):
            for dataset in datasets:
                key = DatasetKey(*event_key(dataset))
                place[key] = _merged(place.get(key, TableState()), dataset, job)
                for each in dataset.assertions:
                    self.assertions.setdefault(AssertionKey(key, each.assertion, each.column or ""), each.success)

    def facts(self, run: PipelineRun) -> RunFacts:
        return RunFacts(
            run,
            self.reads,
            self.writes,
            frozenset(self.commits),
            self.code,
            frozenset(self.steps),
            self.errors,
            self.assertions,
        )


def _merged(known: TableState, dataset: EventDataset, job: str) -> TableState:
    """What is known of a dataset, with what an older event of the same run adds."""
    facets, used = dataset.facets, dataset.used.row_count
    columns = {each.name: each.type or "" for each in facets.schema.fields} if facets.schema else {}
    lineage = facets.column_lineage.fields if facets.column_lineage else {}
    sources = {
        name: frozenset(
            f"{source.name}.{source.field}" for source in column.input_fields if how(source.transformations)[1]
        )
        for name, column in lineage.items()
    }
    return TableState(
        dataset.held.row_count if known.row_count is None else known.row_count,
        {**({} if used is None else {job: used}), **known.rows_used},
        known.version or (facets.version.dataset_version if facets.version else None),
        known.columns or columns,
        known.sources or sources,
    )
