"""Turns what happens in a run into lineage events, as it happens."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from openlineage.client.event_v2 import InputDataset, OutputDataset, RunState

from nightscout_lakehouse.lib.dbt_project import Target
from nightscout_lakehouse.lib.lineage.column_lineage import ColumnSource
from nightscout_lakehouse.lib.lineage.datasets import (
    FILE_DROP,
    IMPORT,
    PUBLISHED_PREFIX,
    DatasetName,
    DatasetNames,
    processed_collection,
    raw_collection,
)
from nightscout_lakehouse.lib.lineage.documents import (
    api_columns,
    document_fields,
    processed_lineage,
    raw_columns,
    raw_sources,
)
from nightscout_lakehouse.lib.lineage.emitter import Emitter
from nightscout_lakehouse.lib.lineage.events import (
    JobRun,
    checked_dataset,
    checks_error,
    column_lineage,
    event,
    input_dataset,
    job_facets,
    output_dataset,
    unchanged_dataset,
)
from nightscout_lakehouse.lib.lineage.facts import (
    AssetFacts,
    Catalog,
    CheckFacts,
    ColumnFacts,
    ErrorFacts,
    RunFacts,
    StepFacts,
    Written,
)
from nightscout_lakehouse.lib.lineage.models import SITES_TABLE, ModelLineage
from nightscout_lakehouse.lib.lineage.open_runs import OpenRun, OpenRuns
from nightscout_lakehouse.lib.lineage.source_code import source_code
from nightscout_lakehouse.lib.processing import parsing_sql
from nightscout_lakehouse.lib.settings import Settings

logger = logging.getLogger(__name__)

CHECKS_SUFFIX = ".checks"
_KILLED = ErrorFacts("The process ended before the run did: it was killed, or the machine stopped.")

# What the catalog of Postgres calls the types that the models' YAML names shorter.
_POSTGRES_TYPES = {"timestamp": "timestamp without time zone", "timestamptz": "timestamp with time zone"}


class RunRecorder:
    """Records one Dagster run.

    Args:
        settings: The lakehouse.
        run: The run.
        catalog: What the definitions say of assets and steps.
        emitter: Where events go.
    """

    def __init__(self, settings: Settings, run: RunFacts, catalog: Catalog, emitter: Emitter) -> None:
        self._settings = settings
        self._run = run
        self._catalog = catalog
        self._emitter = emitter
        self._open_runs = OpenRuns(settings.lineage_dir / "open")
        self._open = OpenRun(run)
        self._started: dict[str, datetime] = {}
        self._has_begun = False

    def begin(self, at: datetime) -> None:
        """The run has begun, and holds the lock of the lake."""
        self._emitter.begin_run()
        self._open_runs.keep(self._open)
        self._emit("START", at, self._run.job, "JOB", "")
        self._has_begun = True

    def close_killed_runs(self) -> None:
        """Say of the runs that were killed that they have ended; to be called with the lock of the lake."""
        for killed in self._open_runs.left_by_others(self._run):
            now = datetime.now(UTC)
            for step, kind in killed.steps.items():
                self._emit("ABORT", now, step, kind, killed.run.job, run=killed.run, error=_KILLED)
            self._emit("ABORT", now, killed.run.job, "JOB", "", run=killed.run, error=_KILLED)
            self._open_runs.forget(killed.run)

    def step_started(self, step: str, at: datetime) -> None:
        """A step has begun."""
        self._started[step] = at
        self._open.steps[step] = self._kind(step)
        self._open_runs.keep(self._open)
        self._emit("START", at, step, self._kind(step), self._run.job)

    def step_ended(
        self,
        step: str,
        at: datetime,
        written: Sequence[Written],
        checks: Sequence[CheckFacts],
        error: ErrorFacts | None = None,
        *,
        is_aborted: bool = False,
    ) -> None:
        """A step has succeeded, or failed by an error.

        Args:
            step: Its name.
            at: When.
            written: What it wrote.
            checks: What its checks found.
            error: Why it failed.
            is_aborted: Whether it was stopped from outside.
        """
        inputs: list[InputDataset] = []
        outputs: list[OutputDataset] = []
        try:
            inputs, outputs = self._emit_parts(step, at, written, checks, has_failed=error is not None)
        except Exception:
            # The step has ended all the same.
            logger.warning("The lineage of %s is incomplete.", step, exc_info=True)
        self._emit(
            "COMPLETE" if error is None else "ABORT" if is_aborted else "FAIL",
            at,
            step,
            self._kind(step),
            self._run.job,
            inputs=inputs,
            outputs=outputs,
            job_facets={} if written and all(each.is_unchanged for each in written) else self._step_facets(step),
            error=error,
        )
        self._open.steps.pop(step, None)
        self._open_runs.keep(self._open)

    def models_were_tested(self, since: datetime) -> None:
        """The tests of the models in DuckDB have run since a time, in no step of their own."""
        from nightscout_lakehouse.lib.lineage.dbt_events import build_events, read_build

        build = read_build(self._settings.dbt_dir / "duckdb", since=since)
        if build is None:
            return
        events = build_events(
            build, "duckdb", self._run, self._run.job, self._names, {}, self._lineage, self._job_facets
        )
        for each in events:
            self._emitter.emit(each)

    def end(self, state: str, at: datetime, error: ErrorFacts | None = None) -> None:
        """The run has ended.

        Args:
            state: `COMPLETE`, `FAIL` or `ABORT`.
            at: When.
            error: Why it failed.
        """
        if not self._has_begun:
            # It failed before it could: another run held the lock.
            self._emit("START", at, self._run.job, "JOB", "")
        self._emit(state, at, self._run.job, "JOB", "", error=error)
        self._open_runs.forget(self._run)
        self._emitter.close()

    def _emit_parts(
        self,
        step: str,
        at: datetime,
        written: Sequence[Written],
        checks: Sequence[CheckFacts],
        *,
        has_failed: bool,
    ) -> tuple[list[InputDataset], list[OutputDataset]]:
        """The events of what a step has made and checked, each a job of its own; what it reads and writes itself."""
        started = self._started.get(step, at)
        by_asset = {each.asset: each for each in written}
        made = self._catalog.of_step(step)
        if not made:
            inputs = self._checked(step, checks)
            self._emit_records(step, started, written, inputs)
            return inputs, []
        if made != (step,):
            self._emit_assets(step, started, at, made, by_asset, checks)
            return [], []
        self._emit_checks(step, started, at, checks)
        inputs = self._inputs(self._catalog.assets[step], by_asset.get(step))
        if has_failed or step not in by_asset:
            return inputs, []
        return inputs, self._outputs(self._catalog.assets[step], by_asset[step])

    def _emit_assets(
        self,
        step: str,
        started: datetime,
        at: datetime,
        made: Sequence[str],
        written: dict[str, Written],
        checks: Sequence[CheckFacts],
    ) -> None:
        """The assets of a step that makes several: dbt's models by its artefacts, the others by what was written."""
        models = [name for name in made if self._catalog.assets[name].is_model]
        by_artefacts = self._emit_models(step, started, written) if models else False
        for name in made:
            facts, found = self._catalog.assets[name], written.get(name)
            if found is None or (facts.is_model and by_artefacts):
                continue
            kind = "MODEL" if facts.is_model else "ASSET"
            self._emit("START", started, name, kind, step)
            self._emit(
                "COMPLETE",
                found.at,
                name,
                kind,
                step,
                inputs=self._inputs(facts, found),
                outputs=self._outputs(facts, found),
                job_facets={} if found.is_unchanged else self._job_facets(name, self._source(step)),
            )
        if not models:
            self._emit_checks(step, started, at, checks)

    def _emit_models(self, step: str, started: datetime, written: dict[str, Written]) -> bool:
        """The events of dbt's models and tests; whether dbt has run."""
        from nightscout_lakehouse.lib.lineage.dbt_events import build_events, read_build

        made = [self._catalog.assets[name] for name in self._catalog.of_step(step)]
        target: Target = "postgres" if all(asset.is_in_postgres for asset in made) else "duckdb"
        build = read_build(self._settings.dbt_dir / target, since=started)
        if build is None:
            return False
        events = build_events(build, target, self._run, step, self._names, written, self._lineage, self._job_facets)
        for each in events:
            self._emitter.emit(each)
        self._lineage.save()
        return True

    def _emit_checks(self, step: str, started: datetime, at: datetime, checks: Sequence[CheckFacts]) -> None:
        """What a step checks of what it makes, as a job of its own: assertions belong to what is read."""
        for asset in sorted({check.asset for check in checks if not check.is_unchanged}):
            found = [check for check in checks if check.asset == asset and not check.is_unchanged]
            error = checks_error(found)
            name = asset + CHECKS_SUFFIX
            self._emit("START", started, name, "CHECK", step)
            state = "COMPLETE" if error is None else "FAIL"
            self._emit(state, at, name, "CHECK", step, inputs=self._checked(step, found), error=error)

    def _emit_records(
        self, step: str, started: datetime, written: Sequence[Written], inputs: list[InputDataset]
    ) -> None:
        """What checks record of themselves as an asset: it holds no data, and has a run."""
        for record in written:
            self._emit("START", started, record.asset, "ASSET", step)
            self._emit("COMPLETE", record.at, record.asset, "ASSET", step, inputs=inputs)

    def _checked(self, step: str, checks: Sequence[CheckFacts]) -> list[InputDataset]:
        inputs = []
        for asset in sorted({check.asset for check in checks}):
            if (name := self._dataset(asset)) is not None:
                inputs.append(checked_dataset(name, [check for check in checks if check.asset == asset]))
        also = self._catalog.steps.get(step, StepFacts(step)).also_reads
        return [*inputs, *(input_dataset(name) for name in self._datasets(also))]

    def _inputs(self, asset: AssetFacts, written: Written | None) -> list[InputDataset]:
        """What an asset is made from: by the graph of the assets; where that begins, the servers or the drop folder."""
        names = self._names
        collection = raw_collection(asset.name)
        if asset.name == FILE_DROP:
            return [input_dataset(names.drop(), description="Exported files, in one folder per site.")]
        if asset.name == IMPORT:
            sites = written.sites if written else ()
            return [input_dataset(names.exports(), sites=sites, description="Exported files, from anywhere.")]
        if collection is not None:
            return [
                input_dataset(
                    names.api(collection),
                    sites=written.sites if written else (),
                    columns=api_columns(self._fields(asset.name)),
                    description=f"The documents of {collection.api_path} on every site.",
                )
            ]
        return [input_dataset(name) for name in self._datasets(asset.upstream)]

    def _outputs(self, asset: AssetFacts, written: Written) -> list[OutputDataset]:
        name = self._dataset(asset.name, written)
        if name is None:
            return []
        names = self._names
        raw, processed = raw_collection(asset.name), processed_collection(asset.name)
        columns = asset.columns or written.columns
        if asset.is_in_postgres:
            columns = tuple(replace(each, type=_POSTGRES_TYPES.get(each.type, each.type)) for each in columns)
        also: list[OutputDataset] = []
        if raw is not None:
            columns = raw_columns(self._fields(asset.name))
            # What a run landed; how many the batch files hold, nobody counts.
            written = replace(written, rows_held=None)
        if processed is not None:
            columns = tuple(ColumnFacts(column, kind) for column, kind in processed.view_columns.items())
            sites = Written(asset.name, written.at)
            also = [output_dataset(names.warehouse_name(SITES_TABLE), sites, description="One row per site.")]
        if written.is_unchanged:
            # With all that is written and all columns: who reads the newest events alone would miss them.
            return [unchanged_dataset(name, columns, written), *also]
        described: dict[str, Any] = {"description": asset.description, "owners": asset.owners}
        if raw is not None:
            described["columns"] = columns
            if asset.name not in (FILE_DROP, IMPORT):
                sources = raw_sources(raw, self._fields(asset.name))
                described["sources"] = column_lineage(sources, (), lambda _table: names.api(raw))
        if processed is not None:
            found = processed_lineage(processed, self._lineage)
            self._lineage.save()
            described["columns"] = columns
            described["sources"] = column_lineage(found.columns, found.rows, lambda _table: names.raw(processed))
            described["symlink"] = names.warehouse_name(f"lake.{processed.name}")
        if asset.name.startswith(PUBLISHED_PREFIX):
            original = names.in_warehouse(written.table)
            copied = {column.name: (ColumnSource(written.table, column.name),) for column in written.columns}
            described["sources"] = column_lineage(copied, (), lambda _table: original)
        return [output_dataset(name, written, **described), *also]

    def _datasets(self, assets: Iterable[str]) -> list[DatasetName]:
        """What assets are as datasets, each once: several write the same files."""
        return sorted({name for asset in assets if (name := self._dataset(asset)) is not None})

    def _dataset(self, asset: str, written: Written | None = None) -> DatasetName | None:
        """What an asset is as a dataset; None for one that holds no data, as the record of a validation."""
        facts = self._catalog.assets.get(asset, AssetFacts(asset, ""))
        table = written.table if written is not None else ""
        if facts.is_model:
            table = facts.table or table
        elif (name := self._names.of_asset(asset)) is not None:
            return name
        if not table:
            return None
        return self._names.relation("postgres" if facts.is_in_postgres else "duckdb", table)

    def _fields(self, asset: str) -> tuple[str, ...]:
        collection = raw_collection(asset)
        return document_fields(processed_lineage(collection, self._lineage)) if collection is not None else ()

    @property
    def _names(self) -> DatasetNames:
        # Where the embedded Postgres listens is known when it has been started.
        return DatasetNames.of(self._settings)

    @cached_property
    def _lineage(self) -> ModelLineage:
        return ModelLineage(self._settings.lineage_dir / "columns.json")

    def _kind(self, step: str) -> str:
        made = self._catalog.of_step(step)
        return "ASSET" if made == (step,) else "STEP" if made else "CHECK"

    def _source(self, step: str) -> str:
        return self._catalog.steps.get(step, StepFacts(step)).source

    def _step_facets(self, step: str) -> dict[str, Any]:
        if step in self._catalog.assets:
            return self._job_facets(step, self._source(step))
        facts = self._catalog.steps.get(step, StepFacts(step))
        return job_facets(description=facts.description, source=source_code(), path=facts.source)

    def _job_facets(self, asset: str, path: str) -> dict[str, Any]:
        facts = self._catalog.assets.get(asset, AssetFacts(asset, ""))
        collection = processed_collection(asset)
        return job_facets(
            description=facts.description,
            owners=facts.owners,
            source=source_code(),
            path=path,
            sql=parsing_sql(collection) if collection is not None else "",
        )

    def _emit(
        self,
        state: str,
        at: datetime,
        name: str,
        kind: str,
        parent: str,
        *,
        run: RunFacts | None = None,
        **parts: Any,
    ) -> None:
        self._emitter.emit(event(RunState(state), at, JobRun(run or self._run, name, kind, parent), **parts))
