"""The three stages at which data is validated, and what a stage leaves behind: a result file and a page to read."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import duckdb

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.quality import frames
from nightscout_lakehouse.lib.quality.frames import FRAME_COLUMNS, Frame
from nightscout_lakehouse.lib.quality.suites import SUITES_DIR, Suite, SuiteError, load_suite
from nightscout_lakehouse.lib.quality.validation import Outcome, Validator, by_site, check_suite
from nightscout_lakehouse.lib.redaction import Redactor, redactor
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect, open_warehouse

Stage = Literal["raw", "enriched", "marts"]

SUITE_FILES: Mapping[Stage, str] = {
    "raw": "nightscout_raw_suite.json",
    "enriched": "nightscout_suite.json",
    "marts": "nightscout_marts_suite.json",
}
_FRAMES: Mapping[Stage, str] = {"raw": "raw_documents", "enriched": "enriched_readings", "marts": "daily_figures"}
_CONSUMERS: Mapping[Stage, str] = {"enriched": "validate_glucose_enriched", "marts": "validate_glucose_marts"}
# What each stage looks at: it has validated no more than these have taken in.
_MODELS: Mapping[Stage, Sequence[str]] = {
    "enriched": ("int_glucose_enriched",),
    "marts": ("int_glucose_enriched", "fact_glucose_readings", "dim_glucose_date", "fact_sensor_gaps"),
}


@dataclass(frozen=True)
class StageResult:
    """What a validation found.

    Attributes:
        stage: Which of the three.
        suite: Name of the suite.
        suite_file: Its file.
        is_full: Whether everything was looked at, not only what changed.
        outcomes: One for each expectation, in the order of the suite.
        rows: Rows looked at.
        validated_at: When, UTC.
        seconds: How long it took.
    """

    stage: Stage
    suite: str
    suite_file: str
    is_full: bool
    outcomes: tuple[Outcome, ...]
    rows: int
    validated_at: datetime
    seconds: float

    @property
    def blocking(self) -> tuple[Outcome, ...]:
        """The outcomes that stop what is downstream."""
        return tuple(outcome for outcome in self.outcomes if outcome.is_blocking)

    @property
    def success_pct(self) -> float:
        """Share of the expectations that are met."""
        return 100.0 * sum(outcome.is_met for outcome in self.outcomes) / len(self.outcomes)


@dataclass(frozen=True)
class ShownOutcome:
    """An outcome as the report shows it; what `results_file` holds."""

    name: str
    type: str
    kwargs: dict[str, Any]
    severity: str
    why: str
    source: str
    is_met: bool
    is_blocking: bool
    evaluated: int
    failed: int | None
    observed: str
    failing_sites: list[str]
    samples: list[dict[str, Any]] = field(default_factory=list)


def stage_suite(stage: Stage) -> Suite:
    """The suite of a stage, read from its file.

    Raises:
        SuiteError: The file is malformed, or is about another frame than the stage shows.
    """
    suite = load_suite(SUITES_DIR / SUITE_FILES[stage])
    if suite.frame != _FRAMES[stage]:
        raise SuiteError(
            f"The suite {suite.path}, key meta.frame: it has to be {_FRAMES[stage]}, not {suite.frame}.",
        )
    return suite


def validate_stage(
    stage: Stage,
    settings: Settings,
    lake: Lake,
    sites: Sequence[Site],
    *,
    everything: bool = False,
    suite: Suite | None = None,
) -> StageResult:
    """Validate what has changed since the last validation that passed.

    Args:
        stage: Which stage.
        settings: Whose lake and warehouse.
        lake: The lake.
        sites: Whose pending batches belong to the stage `raw`.
        everything: Validate the whole history instead.
        suite: Another suite than that of the stage.

    Raises:
        SuiteError: The suite does not fit the frame, or Great Expectations refuses it.
    """
    started = time.monotonic()
    suite = suite or stage_suite(stage)
    if stage == "raw":
        with connect(settings) as engine:
            frame = frames.raw_frame(engine, lake, [site.name for site in sites], everything=everything)
            outcomes = _outcomes(engine, suite, frame)
    else:
        frame = frames.enriched_frame() if stage == "enriched" else frames.daily_frame()
        consumer = _CONSUMERS[stage]
        with open_warehouse(settings) as warehouse:
            change_seq = frames.choose_days(warehouse, consumer, _MODELS[stage], everything=everything)
            outcomes = _outcomes(warehouse, suite, frame)
            if not any(outcome.is_blocking for outcome in outcomes):
                frames.days_passed(warehouse, consumer, change_seq)
    return StageResult(
        stage=stage,
        suite=suite.name,
        suite_file=suite.path.name,
        is_full=everything,
        outcomes=tuple(outcomes),
        rows=max((outcome.evaluated for outcome in outcomes), default=0),
        validated_at=datetime.now(UTC),
        seconds=time.monotonic() - started,
    )


def _outcomes(connection: duckdb.DuckDBPyConnection, suite: Suite, frame: Frame | None) -> list[Outcome]:
    """Nothing to look at meets every expectation, and costs no import of Great Expectations."""
    if frame is None or not _has_rows(connection, frame):
        return [Outcome(expectation) for expectation in suite.expectations]
    columns = sorted({column for expectation in suite.expectations for column in expectation.columns})
    unknown = set(columns) - set(frame.columns)
    if unknown:
        raise SuiteError(
            f"The suite {suite.path} names the column {', '.join(sorted(unknown))}, which {frame.name} does not have.",
            f"It has: {', '.join(frame.columns)}.",
        )
    validator = Validator(suite, frame.key)
    kinds = dict.fromkeys((item.scope, item.is_by_site) for item in suite.expectations)
    for scope, each_site in kinds:
        group = [item for item in suite.expectations if (item.scope, item.is_by_site) == (scope, each_site)]
        needed = [column for item in group for column in item.columns]
        found = frames.pieces(connection, frame, needed, scope)
        validator.validate(group, by_site(found) if each_site else found)
    return validator.outcomes


def _has_rows(connection: duckdb.DuckDBPyConnection, frame: Frame) -> bool:
    if frame.name == "raw_documents":
        return True
    row = connection.execute("select count(*) from quality_days").fetchone()
    return bool(row and row[0])


def validate_stages(
    settings: Settings, lake: Lake, sites: Sequence[Site], run_id: str, *, everything: bool
) -> list[StageResult]:
    """Validate all stages, one after the other, also where one of them fails; the results are kept for the report.

    Raises:
        SuiteError: A suite is malformed.
        LakehouseError: The models are not built yet.
    """
    # What is malformed is said before anything is looked at.
    suites = {stage: stage_suite(stage) for stage in SUITE_FILES}
    results = []
    for stage, suite in suites.items():
        try:
            result = validate_stage(stage, settings, lake, sites, everything=everything, suite=suite)
        except duckdb.CatalogException:
            raise LakehouseError("The models are not built yet.", "Run `make run` first.") from None
        keep_result(settings, result, run_id, redactor(settings, sites))
        results.append(result)
    return results


def check_suites(paths: Sequence[Path] = ()) -> list[Suite]:
    """Read suites, and have Great Expectations read them; takes seconds to import it.

    Args:
        paths: Their files; those of the three stages if there are none.

    Raises:
        SuiteError: One is malformed; the message names the file and the key.
    """
    found = [load_suite(path) for path in paths] if paths else [stage_suite(stage) for stage in SUITE_FILES]
    for suite in found:
        columns = FRAME_COLUMNS.get(suite.frame)
        if columns is None:
            raise SuiteError(
                f"The suite {suite.path}, key meta.frame: there is no frame {suite.frame}.",
                f"There are: {', '.join(FRAME_COLUMNS)}.",
            )
        for number, expectation in enumerate(suite.expectations):
            unknown = sorted(set(expectation.columns) - set(columns))
            if unknown:
                raise SuiteError(
                    f"The suite {suite.path}, key expectations[{number}].kwargs: {suite.frame} has no column "
                    f"{', '.join(unknown)}.",
                    f"It has: {', '.join(columns)}.",
                )
        check_suite(suite)
    return found


def shown(outcome: Outcome, known: Redactor) -> ShownOutcome:
    """An outcome with every secret blacked out, whatever column it got into."""
    item = outcome.expectation
    return ShownOutcome(
        name=item.name,
        type=item.type,
        kwargs=dict(item.kwargs),
        severity=outcome.severity,
        why=item.why,
        source=item.source,
        is_met=outcome.is_met,
        is_blocking=outcome.is_blocking,
        evaluated=outcome.evaluated,
        failed=outcome.failed,
        observed=_clean(outcome.observed, known),
        failing_sites=list(outcome.failing_sites),
        samples=[{name: _clean(value, known) for name, value in row.items()} for row in outcome.samples],
    )


def _clean(value: Any, known: Redactor) -> Any:
    return known.clean(value)[:200] if isinstance(value, str) else value


def keep_result(settings: Settings, result: StageResult, run_id: str, known: Redactor) -> None:
    """Keep the result of a stage for the report: the three stages of a run stand on one page."""
    folder = settings.quality_dir / "results"
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "run_id": run_id,
        "stage": result.stage,
        "suite": result.suite,
        "suite_file": result.suite_file,
        "is_full": result.is_full,
        "rows": result.rows,
        "seconds": round(result.seconds, 3),
        "validated_at": result.validated_at.isoformat(),
        "outcomes": [asdict(shown(outcome, known)) for outcome in result.outcomes],
    }
    path = folder / f"{result.stage}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(path)


def kept_results(settings: Settings) -> list[dict[str, Any]]:
    """The last result of each stage, in the order of the stages."""
    found = []
    for stage in SUITE_FILES:
        path = settings.quality_dir / "results" / f"{stage}.json"
        if path.is_file():
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return found
