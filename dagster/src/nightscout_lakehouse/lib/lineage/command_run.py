"""The lineage of a command that writes or checks data and is no Dagster run: `lakehouse import`, `check`, `validate`.

It is a run of its own, of the job `lakehouse_<command>`, told by the recorder that Dagster runs use.
"""

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

from nightscout_lakehouse.lib.lineage.datasets import IMPORT
from nightscout_lakehouse.lib.lineage.facts import (
    COMMAND_PREFIX,
    AssetFacts,
    Catalog,
    CheckFacts,
    ErrorFacts,
    RunFacts,
    StepFacts,
    Written,
)
from nightscout_lakehouse.lib.settings import Settings

if TYPE_CHECKING:
    from nightscout_lakehouse.lib.lineage.recorder import RunRecorder
    from nightscout_lakehouse.lib.quality.conservation import Conservation
    from nightscout_lakehouse.lib.quality.stages import StageResult
    from nightscout_lakehouse.lib.sources.file_drop import FileImport

logger = logging.getLogger(__name__)

_IMPORT_SOURCE = "dagster/src/nightscout_lakehouse/lib/sources/file_drop.py"
# The steps of a Dagster run that hold the data to the same suites: what they found last is what counts.
_VALIDATIONS = {
    "raw": "validate_raw_documents",
    "enriched": "validate_enriched_readings",
    "marts": "validate_daily_figures",
}
_PROCESSED = "processed_nightscout_entries"
_CONSERVATION = f"{_PROCESSED}_batches_match_raw_files"
# The tables that the suites guard, besides the raw documents.
_GUARDED = {
    "int_glucose_enriched": "intermediate.int_glucose_enriched",
    "dim_glucose_date": "curated.dim_glucose_date",
}


class CommandRun:
    """One run of a command.

    Args:
        recorder: Writes the events; None for none.
    """

    def __init__(self, recorder: "RunRecorder | None") -> None:
        self._recorder = recorder
        self._started_at = datetime.now(UTC)
        self._validated_at = self._started_at
        self._failed: ErrorFacts | None = None

    def begin(self) -> None:
        """The command holds the lock of the lake."""
        if (recorder := self._recorder) is not None:
            self._quietly(recorder.close_killed_runs)
            self._quietly(lambda: recorder.begin(self._started_at))

    def files_were_imported(self, outcomes: "Sequence[FileImport]") -> None:
        """What became of the files. Their names may name a person, and are not told."""
        if (recorder := self._recorder) is not None:
            self._quietly(lambda: self._record_import(recorder, outcomes))

    def models_were_tested(self, error: Exception | None) -> None:
        """The tests of the models have run, and dbt's artefacts tell what they found; an error where one failed."""
        if (recorder := self._recorder) is not None:
            self._failed = ErrorFacts(str(error)) if error is not None else None
            self._quietly(lambda: recorder.models_were_tested(self._started_at))

    def stages_were_validated(self, results: "Sequence[StageResult]") -> None:
        """What the suites found."""
        if (recorder := self._recorder) is not None:
            self._quietly(lambda: self._record_validation(recorder, results))

    def history_was_compared(self, found: "Conservation") -> None:
        """Whether the batches hold what their processing accounts for."""
        if (recorder := self._recorder) is not None:
            self._quietly(lambda: self._record_conservation(recorder, found))

    def end(self, error: BaseException | None = None) -> None:
        """The command has ended.

        Args:
            error: What stopped it. Its words may name a file, and with it a person: only its kind and place are told.
        """
        failed, state = self._failed, "COMPLETE" if self._failed is None else "FAIL"
        if error is not None:
            trace = "".join(traceback.format_tb(error.__traceback__))
            failed = ErrorFacts(type(error).__name__, trace)
            state = "FAIL" if isinstance(error, Exception) else "ABORT"
        if (recorder := self._recorder) is not None:
            self._quietly(lambda: recorder.end(state, datetime.now(UTC), failed))

    def _record_import(self, recorder: "RunRecorder", outcomes: "Sequence[FileImport]") -> None:
        from nightscout_lakehouse.lib.lineage.events import checks_error

        now = datetime.now(UTC)
        reports = [each.report for each in outcomes if each.report is not None]
        files = [batch for report in reports for batch in report.batches]
        written = Written(
            IMPORT,
            now,
            rows=sum(report.landed for report in reports),
            files=len(files),
            sites=tuple(sorted({each.site for each in outcomes if each.outcome == "imported"})),
            is_unchanged=not files,
        )
        failed = sum(each.outcome in ("failed", "waiting") for each in outcomes)
        check = CheckFacts(
            IMPORT,
            "every_file_was_read",
            is_passed=not failed,
            is_error=True,
            description=f"{failed} of {len(outcomes)} files were not read." if failed else "",
        )
        recorder.step_started(IMPORT, self._started_at)
        # The files that were read are written, whatever became of the others.
        recorder.step_ended(IMPORT, now, [written], [check])
        self._failed = checks_error([check])

    def _record_validation(self, recorder: "RunRecorder", results: "Sequence[StageResult]") -> None:
        from nightscout_lakehouse.lib.lineage.events import checks_error

        for result in results:
            checks = _stage_checks(result)
            step = _VALIDATIONS[result.stage]
            recorder.step_started(step, result.validated_at - timedelta(seconds=result.seconds))
            error = checks_error(checks)
            recorder.step_ended(step, result.validated_at, [], checks, error)
            self._failed = self._failed or error
            self._validated_at = result.validated_at

    def _record_conservation(self, recorder: "RunRecorder", found: "Conservation") -> None:
        from nightscout_lakehouse.lib.lineage.events import checks_error

        now = datetime.now(UTC)
        said = " ".join(found.faults[:5]) or f"{found.documents:,} documents of {found.batches:,} batches agree."
        check = CheckFacts(
            _PROCESSED, "batches_match_raw_files", is_passed=not found.faults, is_error=True, description=said
        )
        error = checks_error([check])
        recorder.step_started(_CONSERVATION, self._validated_at)
        recorder.step_ended(_CONSERVATION, now, [], [check], error)
        self._failed = self._failed or error

    @staticmethod
    def _quietly(record: Callable[[], None]) -> None:
        try:
            record()
        except Exception:
            # Whatever it is: glucose matters more than its lineage.
            logger.warning("This command's lineage events are incomplete.", exc_info=True)


@contextmanager
def command_run(settings: Settings, command: str) -> Iterator[CommandRun]:
    """Record a command as a run; nothing that goes wrong in that stops it. To be entered with the lock of the lake.

    Args:
        settings: The lakehouse.
        command: Its name, such as `import`.
    """
    run = CommandRun(_recorder(settings, command))
    run.begin()
    try:
        yield run
    except BaseException as error:
        # Ctrl-C, too: a run that began has an end.
        run.end(error)
        raise
    run.end()


def _stage_checks(result: "StageResult") -> list[CheckFacts]:
    """What a validation found, as checks of what its suite guards; no row that it looked at is told."""
    from nightscout_lakehouse.lib.quality.stages import stage_suite

    guards = stage_suite(result.stage).guards
    return [
        CheckFacts(
            asset=guards,
            name=outcome.expectation.name,
            is_passed=outcome.is_met,
            kind=outcome.expectation.type,
            is_error=outcome.severity == "critical",
            description=f"Met by {outcome.evaluated:,} rows." if outcome.is_met else outcome.expectation.why,
            evaluated=outcome.evaluated,
            failed=outcome.failed,
        )
        for outcome in result.outcomes
    ]


def _recorder(settings: Settings, command: str) -> "RunRecorder | None":
    if settings.openlineage_disabled:
        return None
    try:
        from nightscout_lakehouse.lib.lineage.emitter import Emitter
        from nightscout_lakehouse.lib.lineage.recorder import RunRecorder
        from nightscout_lakehouse.lib.redaction import known_sites, redactor

        imported = AssetFacts(IMPORT, IMPORT, description="Exported files that somebody named to `lakehouse import`.")
        guarded = {name: AssetFacts(name, "", table=table, is_model=True) for name, table in _GUARDED.items()}
        catalog = Catalog({IMPORT: imported, **guarded}, {IMPORT: StepFacts(IMPORT, source=_IMPORT_SOURCE)})
        sites = known_sites(settings)
        run = RunFacts(str(uuid4()), f"{COMMAND_PREFIX}{command}")
        return RunRecorder(settings, run, catalog, Emitter(settings, lambda: redactor(settings, sites)))
    except Exception:
        # Whatever it is: the command works without its lineage.
        logger.warning("This command has no lineage events.", exc_info=True)
        return None
