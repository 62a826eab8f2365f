"""What is known of a run, free of Dagster's types: what lineage events are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

# The job of a command that is no Dagster run: this, and its name.
COMMAND_PREFIX = "lakehouse_"


@dataclass(frozen=True)
class RunFacts:
    """One run of a Dagster job.

    Attributes:
        run_id: Dagster's id of the run, a UUID; it is the OpenLineage run id, too.
        job: Name of the job.
        scheduled_for: The tick of the schedule that started it; None for a run that somebody started.
    """

    run_id: str
    job: str
    scheduled_for: datetime | None = None


@dataclass(frozen=True)
class AssetFacts:
    """What the definitions say of an asset.

    Attributes:
        name: Its name.
        step: The step that makes it.
        upstream: The assets it is made from.
        description: What it is.
        owners: Who answers for it.
        table: Its table or view with schema, where the definitions know it.
        columns: Its columns, where the definitions know them.
        is_in_postgres: Whether it is a table of Postgres; else one of DuckDB or files.
        is_model: Whether dbt builds it.
    """

    name: str
    step: str
    upstream: tuple[str, ...] = ()
    description: str = ""
    owners: tuple[str, ...] = ()
    table: str = ""
    columns: tuple["ColumnFacts", ...] = ()
    is_in_postgres: bool = False
    is_model: bool = False


@dataclass(frozen=True)
class StepFacts:
    """What the definitions say of a step.

    Attributes:
        name: Its name.
        description: What it does.
        source: File of its code, relative to the repository; empty if it is not there.
        also_reads: Assets that its checks read beside those that they check.
    """

    name: str
    description: str = ""
    source: str = ""
    also_reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalog:
    """What the definitions say.

    Attributes:
        assets: All assets, by name.
        steps: All steps, by name.
        check_kinds: What a check checks, by asset and check, as the expectation's type; of those that have such a name.
    """

    assets: Mapping[str, AssetFacts] = field(default_factory=dict)
    steps: Mapping[str, StepFacts] = field(default_factory=dict)
    check_kinds: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def of_step(self, step: str) -> tuple[str, ...]:
        """Names of the assets that a step makes."""
        return tuple(name for name, asset in self.assets.items() if asset.step == step)


@dataclass(frozen=True)
class ColumnFacts:
    """A column as it stands in a table."""

    name: str
    type: str
    description: str = ""


@dataclass(frozen=True)
class Written:
    """What a run wrote of an asset.

    Attributes:
        asset: Its name.
        at: When.
        table: Table or view, with schema; empty for files.
        rows: Rows that it wrote, or of a table that it may have written in part, all it holds; None if not known.
        rows_held: Rows it holds now; None if not known.
        bytes: Size of what `rows` counts; None if not known, as of a view.
        files: Files that it wrote; None for a table.
        columns: Its columns in order.
        sites: Sites that were read.
        is_unchanged: Nothing was written, since nothing has changed.
    """

    asset: str
    at: datetime
    table: str = ""
    rows: int | None = None
    rows_held: int | None = None
    bytes: int | None = None
    files: int | None = None
    columns: tuple[ColumnFacts, ...] = ()
    sites: tuple[str, ...] = ()
    is_unchanged: bool = False


@dataclass(frozen=True)
class CheckFacts:
    """What a check found.

    Attributes:
        asset: What it looked at.
        name: Its name.
        is_passed: Whether it found nothing.
        is_error: Whether it is of severity error; else it warns.
        kind: What it checks, as the expectation's type; empty if it has no such name.
        description: What it found, in words.
        evaluated: Rows that it looked at; None if it does not count.
        failed: Rows that do not hold; None if it does not count.
        is_unchanged: It did not run, since what it looks at has not changed since it passed.
    """

    asset: str
    name: str
    is_passed: bool
    is_error: bool
    kind: str = ""
    description: str = ""
    evaluated: int | None = None
    failed: int | None = None
    is_unchanged: bool = False


@dataclass(frozen=True)
class ErrorFacts:
    """Why something failed."""

    message: str
    stack_trace: str = ""
