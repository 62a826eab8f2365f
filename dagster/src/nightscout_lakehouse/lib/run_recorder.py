"""One run as it goes on record: begun, what it read and processed, how it ended; then told to Postgres."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from logging import getLogger
from typing import TYPE_CHECKING

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.redaction import Redactor
from nightscout_lakehouse.lib.run_delivery import deliver_runs
from nightscout_lakehouse.lib.run_journal import Run, RunEnd, RunJournal
from nightscout_lakehouse.lib.run_log import log_event
from nightscout_lakehouse.lib.run_metrics import write_metrics
from nightscout_lakehouse.lib.settings import Settings

if TYPE_CHECKING:
    from nightscout_lakehouse.lib.ingestion import SiteIngestion
    from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
    from nightscout_lakehouse.lib.processing import SiteProcessing
    from nightscout_lakehouse.lib.sources.file_drop import FileImport

logger = getLogger(__name__)


class RunRecorder:
    """Keeps one run on record. What cannot be recorded is a warning: no reading waits for bookkeeping.

    Args:
        settings: Whose journal.
        run_id: Dagster's id of the run.
        job: Name of its job.
        launched_by: Who started it.
        redactor: Takes secrets out of what is kept.
    """

    def __init__(self, settings: Settings, run_id: str, job: str, launched_by: str, redactor: Redactor) -> None:
        self._settings = settings
        self._journal = RunJournal(settings.journal_path)
        self._run_id = run_id
        self._job = job
        self._launched_by = launched_by
        self.redactor = redactor
        self._created_at = _now()

    @property
    def run_id(self) -> str:
        """Dagster's id of the run."""
        return self._run_id

    @contextmanager
    def refusal_recorded(self) -> Iterator[None]:
        """Put the run on record as failed if what is done here, getting the lake's lock, fails."""
        try:
            yield
        except LakehouseError as error:
            with _warned():
                self._journal.refuse(
                    *(self._run_id, self._job, self._launched_by, self.redactor.clean(str(error))),
                    stale_minutes=self._settings.stale_minutes,
                    started_at=self._created_at,
                    now=_now(),
                )
                log_event("run_refused", job=self._job, launched_by=self._launched_by, reason=str(error))
                write_metrics(self._settings, self._journal)
            raise

    def begin(self) -> None:
        """The run has the lake's lock: whatever else is said to run was killed."""
        with _warned():
            killed = self._journal.begin(
                *(self._run_id, self._job, self._launched_by), stale_minutes=self._settings.stale_minutes, now=_now()
            )
            log_event("run_started", job=self._job, launched_by=self._launched_by)
            for run_id in killed:
                log_event("run_found_killed", killed_run_id=run_id)
                logger.warning("Run %s was killed, or its machine went down: this run makes good for it.", run_id[:8])

    def add_missed(self, find: Callable[[set[str]], list[Run]]) -> None:
        """Put runs on record that failed before they came here, as `find` tells from the ids that are known."""
        with _warned():
            known = {row["run_id"] for row in self._journal.query("select run_id from runs")}
            self._journal.add_missed(find(known), now=_now())

    def was_read(self, reports: "Sequence[SiteIngestion]") -> None:
        """A collection of the sites was read."""
        with _warned():
            self._journal.was_read(self._run_id, reports, redactor=self.redactor, now=_now())
            for report in reports:
                log_event("site_read", **asdict(report) | {"batches": len(report.batches)})

    def files_were_imported(self, imports: "Sequence[FileImport]") -> None:
        """Dropped files were imported."""
        with _warned():
            self._journal.files_were_imported(self._run_id, imports, now=_now())

    def was_processed(self, reports: "Sequence[SiteProcessing]") -> None:
        """A collection of the sites was processed."""
        with _warned():
            self._journal.was_processed(self._run_id, reports, now=_now())
            for report in reports:
                if report.documents:
                    log_event(
                        "site_processed",
                        site=report.site,
                        collection=report.batches[0].collection,
                        documents=report.documents,
                        stored=report.stored,
                        duplicates=report.duplicates,
                        quarantined=report.quarantined,
                        seconds=report.seconds,
                    )

    def end(self, find: Callable[[], RunEnd]) -> RunEnd | None:
        """The run's steps are over.

        Args:
            find: Finds out how they ended.

        Returns:
            How the run ended; None if that cannot be told.
        """
        end = None
        with _warned():
            end = find()
            run = self._journal.end(self._run_id, end, now=_now())
            for step in end.steps:
                log_event("step_ended", step=step.step, is_success=step.is_success, seconds=round(step.seconds, 3))
            log_event(
                "run_ended",
                job=run.job,
                status=run.status,
                seconds=run.duration_seconds,
                failed_step=run.failed_step,
                reason=run.failure_reason,
            )
            write_metrics(self._settings, self._journal)
        return end

    def deliver(self, connection: "PostgresConnection") -> None:
        """Tell Postgres of this run as it stands, and of those before that it does not know."""
        with _warned():
            deliver_runs(self._journal, connection, now=_now())


@contextmanager
def _warned() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # No run fails for its record.
        logger.warning("This run is not on record, or not completely: %s", error)


def _now() -> datetime:
    return datetime.now(UTC)
