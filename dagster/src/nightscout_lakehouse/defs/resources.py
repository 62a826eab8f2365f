"""The one resource of the pipeline: this lakehouse, with its settings, lake, sites and serving database.

Holding it is holding the lock of the lake: two runs never write at once, whoever started them.
"""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from logging import getLogger

import dagster as dg
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG
from pydantic import PrivateAttr

from nightscout_lakehouse.defs.lineage import RunLineage
from nightscout_lakehouse.defs.run_history import forget_old_runs
from nightscout_lakehouse.defs.run_recording import current_step, launched_by, missed_runs, run_end
from nightscout_lakehouse.demo import DemoServer
from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.locking import lake_lock
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.redaction import redactor
from nightscout_lakehouse.lib.run_log import log_context, log_file, rotate_log
from nightscout_lakehouse.lib.run_recorder import RunRecorder
from nightscout_lakehouse.lib.serving import is_serving_database_known, serving_database
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site, load_sites
from nightscout_lakehouse.lib.sources.file_drop import sites_of_files

logger = getLogger("nightscout_lakehouse.run")

DEMO_SITE = "demo"


class LakehouseResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """This lakehouse, opened for one run."""

    _settings: Settings = PrivateAttr()
    _stack: ExitStack = PrivateAttr()
    _postgres: PostgresConnection | None = PrivateAttr(default=None)
    _sites: list[Site] | None = PrivateAttr(default=None)
    _sites_of_files: list[Site] | None = PrivateAttr(default=None)
    _unreadable_sites: set[str] = PrivateAttr(default_factory=set)
    _recorder: RunRecorder = PrivateAttr()
    _is_postgres_down: bool = PrivateAttr(default=False)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["LakehouseResource"]:
        """Take the lake's lock for the run, keep the run on record, and close all that it opened."""
        self._settings = load_settings()
        self._settings.home.mkdir(parents=True, exist_ok=True)
        run = context.run
        run_id = run.run_id if run else uuid.uuid4().hex
        job, by = (run.job_name, launched_by(run)) if run else ("", "")
        self._recorder = RunRecorder(self._settings, run_id, job, by, redactor(self._settings))
        with ExitStack() as stack:
            self._stack = stack
            lineage = RunLineage.of(context, self._settings)
            stack.enter_context(log_file(self._settings, lambda: self._recorder.redactor, current_step))
            stack.enter_context(log_context(run_id=run_id))
            with self._recorder.refusal_recorded():
                stack.enter_context(lake_lock(self._settings, f"run {run_id}"))
            lineage.begin()
            if run is None or context.instance is None:
                yield self
                return
            rotate_log(self._settings)
            self._recorder.begin()
            try:
                self._record_missed(context.instance)
                yield self
            finally:
                # Before the stack stops Postgres and lets go of the lock.
                self._record_end(context.instance, run_id)
                self._forget_old_runs(context.instance, run.tags.get(REPOSITORY_LABEL_TAG, ""))

    def _record_missed(self, instance: dg.DagsterInstance) -> None:
        stale_minutes, now = self._settings.stale_minutes, datetime.now(UTC)
        self._recorder.add_missed(
            lambda known: missed_runs(instance, known, self._recorder.redactor, stale_minutes, now)
        )

    def _record_end(self, instance: dg.DagsterInstance, run_id: str) -> None:
        end = self._recorder.end(lambda: run_end(instance, run_id, self._recorder.redactor))
        try:
            # A run that failed before it came to Postgres is on record there all the same, if dashboards read it.
            is_failure = end is not None and end.status != "success" and not self._is_postgres_down
            if self._postgres is None and is_failure and is_serving_database_known(self._settings):
                self._postgres = self._stack.enter_context(serving_database(self._settings))
        except LakehouseError as error:
            logger.warning("Postgres learns of this run from the next one: %s", error)
        if self._postgres is not None:
            self._recorder.deliver(self._postgres)

    def _forget_old_runs(self, instance: dg.DagsterInstance, repository: str) -> None:
        try:
            forget_old_runs(instance, self._settings.run_history_days, datetime.now(UTC), repository)
        except Exception as error:
            # Of a database, a disk, a driver: what this run did is done, and the next one tries again.
            logger.warning("Old runs could not be deleted from Dagster's history: %s", type(error).__name__)

    @property
    def settings(self) -> Settings:
        """The settings of this run."""
        return self._settings

    @property
    def recorder(self) -> RunRecorder:
        """Where the steps tell what they read and processed."""
        return self._recorder

    @property
    def lake(self) -> Lake:
        """The lake."""
        return Lake.open(self._settings)

    @property
    def sites(self) -> list[Site]:
        """The sites with a server; the bundled demo server where there is no site at all, started for this run."""
        if self._sites is None:
            self._sites = load_sites(self._settings)
            self._recorder.redactor = redactor(self._settings, self._sites)
            if not self._sites and not self.sites_of_files:
                server = self._stack.enter_context(DemoServer())
                self._sites = [Site(name=DEMO_SITE, url=server.url)]
        return self._sites

    @property
    def sites_of_files(self) -> list[Site]:
        """The sites that have no server: what is known of them came from files."""
        if self._sites_of_files is None:
            self._sites_of_files = sites_of_files(self._settings, self.lake)
        return self._sites_of_files

    @property
    def all_sites(self) -> list[Site]:
        """Every site, with a server or without."""
        return [*self.sites, *self.sites_of_files]

    @property
    def unreadable_sites(self) -> set[str]:
        """Names of the sites that could not be read in this run: a server that refuses is not asked again."""
        return self._unreadable_sites

    @property
    def postgres(self) -> PostgresConnection:
        """The serving database, started and prepared on first use."""
        if self._postgres is None:
            try:
                self._postgres = self._stack.enter_context(serving_database(self._settings))
            except LakehouseError:
                self._is_postgres_down = True
                raise
            # A new one has just got its passwords.
            self._recorder.redactor = redactor(self._settings, self._sites or ())
            self._recorder.deliver(self._postgres)
        return self._postgres

    def dbt(self, *, with_postgres: bool = False) -> DbtProject:
        """The dbt project, with the serving database where a model is built there."""
        return DbtProject(self._settings, self.postgres if with_postgres else None)
