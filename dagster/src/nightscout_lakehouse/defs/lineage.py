"""Hears what Dagster says of a run, and has it recorded as OpenLineage events: one place for all steps.

The resource `lakehouse` opens it. No asset knows of it, and nothing that goes wrong in it fails a run.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings

if TYPE_CHECKING:
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
    from nightscout_lakehouse.lib.lineage.recorder import RunRecorder

logger = logging.getLogger(__name__)

CheckKinds = Mapping[tuple[str, str], str]

# Set by the scheduler.
_SCHEDULED_TIME_TAG = ".dagster/scheduled_execution_time"


class RunLineage:
    """The lineage of one run; does nothing where lineage is switched off.

    Args:
        recorder: Writes the events; None for none.
        check_kinds: What each check checks, by asset and check.
    """

    def __init__(self, recorder: "RunRecorder | None" = None, check_kinds: CheckKinds | None = None) -> None:
        self._recorder = recorder
        self._check_kinds = check_kinds or {}
        self._written: dict[str, list[Written]] = defaultdict(list)
        self._checks: dict[str, list[CheckFacts]] = defaultdict(list)

    @classmethod
    def of(cls, context: dg.InitResourceContext, settings: Settings) -> "RunLineage":
        """Listen to the run that a resource is opened for."""
        if settings.openlineage_disabled:
            return cls()
        run, instance = context.run, context.instance
        if run is None or instance is None or run.run_id == "EPHEMERAL":
            return cls()
        now = instance.get_run_by_id(run.run_id)
        if now is not None and now.is_finished:
            # Some commands open the resources again to look at the result.
            return cls()
        try:
            from nightscout_lakehouse.lib.lineage.emitter import Emitter
            from nightscout_lakehouse.lib.lineage.recorder import RunRecorder
            from nightscout_lakehouse.lib.redaction import known_sites, redactor

            catalog = _catalog()
            sites = known_sites(settings)
            emitter = Emitter(settings, lambda: redactor(settings, sites))
            lineage = cls(RunRecorder(settings, run_facts(run), catalog, emitter), catalog.check_kinds)
        except Exception:
            # Whatever it is: glucose matters more than its lineage.
            logger.warning("This run has no lineage events.", exc_info=True)
            return cls()
        instance.add_event_listener(run.run_id, lineage.hear)
        return lineage

    def begin(self) -> None:
        """The run holds the lock of the lake."""
        if self._recorder is None:
            return
        try:
            self._recorder.close_killed_runs()
            self._recorder.begin(datetime.now(UTC))
        except Exception:
            # As above.
            logger.warning("This run's lineage events are incomplete.", exc_info=True)

    def hear(self, entry: dg.EventLogEntry) -> None:
        """Called by Dagster for each event of the run, in order."""
        if entry.dagster_event is None or self._recorder is None:
            return
        try:
            self._record(self._recorder, entry.dagster_event, datetime.fromtimestamp(entry.timestamp, UTC))
        except Exception:
            # Dagster would fail the step that it told of.
            logger.warning("This run's lineage events are incomplete.", exc_info=True)

    def _record(self, recorder: "RunRecorder", event: dg.DagsterEvent, at: datetime) -> None:
        kinds, step = dg.DagsterEventType, event.step_key or ""
        match event.event_type:
            case kinds.STEP_START:
                recorder.step_started(step, at)
            case kinds.ASSET_MATERIALIZATION:
                self._written[step].append(_written(event.step_materialization_data.materialization, at))
            case kinds.ASSET_CHECK_EVALUATION:
                self._checks[step].append(_check(event.asset_check_evaluation_data, self._check_kinds))
            case kinds.STEP_SUCCESS:
                recorder.step_ended(step, at, self._written.pop(step, []), self._checks.pop(step, []))
            case kinds.STEP_FAILURE:
                error = event.step_failure_data.error
                recorder.step_ended(
                    step,
                    at,
                    self._written.pop(step, []),
                    self._checks.pop(step, []),
                    _error(error),
                    is_aborted=error is not None and error.cls_name == "DagsterExecutionInterruptedError",
                )
            case kinds.RUN_SUCCESS:
                recorder.end("COMPLETE", at)
            case kinds.RUN_FAILURE:
                recorder.end("FAIL", at, _error(event.job_failure_data.error, event.message or ""))
            case kinds.RUN_CANCELED:
                recorder.end("ABORT", at, _error(None, event.message or "Stopped."))


def run_facts(run: dg.DagsterRun) -> "RunFacts":
    """A run, and the tick of the schedule that started it."""
    from nightscout_lakehouse.lib.lineage.facts import RunFacts

    scheduled = run.tags.get(_SCHEDULED_TIME_TAG)
    return RunFacts(run.run_id, run.job_name, datetime.fromisoformat(scheduled) if scheduled else None)


def _catalog() -> "Catalog":
    """What the definitions say of assets and steps."""
    from nightscout_lakehouse.definitions import defs
    from nightscout_lakehouse.lib.lineage.facts import Catalog

    graph = defs.resolve_asset_graph()
    assets = {_name(key): _asset(graph, key) for key in graph.materializable_asset_keys}
    steps = {facts.name: facts for facts in map(_step, graph.assets_defs) if facts.name}
    kinds = {
        (_name(key.asset_key), key.name): str(graph.get_check_spec(key).metadata.get("expectation", ""))
        for key in graph.asset_check_keys
    }
    return Catalog(assets, steps, {key: kind for key, kind in kinds.items() if kind})


def _asset(graph: Any, key: dg.AssetKey) -> "AssetFacts":
    from nightscout_lakehouse.lib.lineage.facts import AssetFacts

    node = graph.get(key)
    table = str(node.metadata.get("dagster/table_name", ""))
    return AssetFacts(
        name=_name(key),
        step=node.assets_def.node_def.name,
        upstream=tuple(sorted(_name(parent) for parent in node.parent_keys)),
        # dagster-dbt adds the code.
        description=(node.description or "").partition("\n\n#### Raw SQL")[0],
        owners=tuple(node.owners),
        table=".".join(table.split(".")[-2:]),
        columns=_columns(node.metadata.get("dagster/column_schema")),
        is_in_postgres="postgres" in node.kinds,
        is_model="dbt" in node.kinds,
    )


def _step(definition: dg.AssetsDefinition) -> "StepFacts":
    from nightscout_lakehouse.lib.lineage.facts import StepFacts

    if not definition.is_executable:
        return StepFacts("")
    op = definition.node_def
    reads = {_name(dep.asset_key) for spec in definition.check_specs for dep in spec.additional_deps}
    return StepFacts(
        name=op.name,
        description=op.description or "",
        source=_source_file(op),
        also_reads=tuple(sorted(reads)),
    )


def _source_file(op: Any) -> str:
    """File of a step's code, relative to the repository."""
    function = getattr(getattr(op, "compute_fn", None), "decorated_fn", None)
    path = Path(function.__code__.co_filename) if function is not None else None
    return str(path.relative_to(REPOSITORY_ROOT)) if path and path.is_relative_to(REPOSITORY_ROOT) else ""


def _written(materialization: dg.AssetMaterialization, at: datetime) -> "Written":
    """What a run wrote of an asset, by the metadata that every asset of ours has."""
    from nightscout_lakehouse.lib.lineage.facts import Written

    values = {key: value.value for key, value in materialization.metadata.items()}
    by_kind = values.get("rows_by_kind")
    # The row count of Parquet files is that of their live rows; those that were deleted or refused are in them, too.
    held = sum(by_kind.values()) if isinstance(by_kind, dict) else values.get("dagster/row_count")
    return Written(
        asset=_name(materialization.asset_key),
        at=at,
        table=".".join(str(values.get("dagster/table_name", "")).split(".")[-2:]),
        rows=_whole(values.get("documents_landed", values.get("stored", held))),
        rows_held=_whole(held),
        bytes=_whole(values.get("bytes")),
        files=_whole(values.get("batch_files", values.get("partitions_written"))),
        columns=_columns(values.get("dagster/column_schema")),
        sites=_sites(values.get("reports")),
        is_unchanged=_is_unchanged(values),
    )


def _sites(reports: Any) -> tuple[str, ...]:
    """The sites that were read, of the reports of each."""
    if not isinstance(reports, list):
        return ()
    return tuple(report["site"] for report in reports if "site" in report and not report.get("error"))


def _is_unchanged(values: Mapping[str, Any]) -> bool:
    """Whether nothing was written: a model left alone, no new document, no row that differs."""
    if values.get("unchanged") is True:
        return True
    counts = [
        values[name] for name in ("batch_files", "documents_landed", "partitions_written", "stored") if name in values
    ]
    if not values.get("full", True):
        counts += [values["inserted"], values["updated"], values["deleted"]]
    return bool(counts) and not any(counts)


def _columns(schema: Any) -> "tuple[ColumnFacts, ...]":
    from nightscout_lakehouse.lib.lineage.facts import ColumnFacts

    schema = getattr(schema, "schema", schema)
    if not isinstance(schema, dg.TableSchema):
        return ()
    # dagster-dbt's word for a type that the YAML does not name.
    return tuple(
        ColumnFacts(column.name, "" if column.type == "?" else column.type, column.description or "")
        for column in schema.columns
    )


def _check(evaluation: dg.AssetCheckEvaluation, kinds: CheckKinds) -> "CheckFacts":
    from nightscout_lakehouse.lib.lineage.facts import CheckFacts

    values = {key: value.value for key, value in evaluation.metadata.items()}
    return CheckFacts(
        asset=_name(evaluation.asset_key),
        name=evaluation.check_name,
        is_passed=evaluation.passed,
        kind=kinds.get((_name(evaluation.asset_key), evaluation.check_name), ""),
        is_error=evaluation.severity is dg.AssetCheckSeverity.ERROR,
        description=evaluation.description or "",
        evaluated=_whole(values.get("evaluated")),
        failed=_whole(values.get("failed")),
        is_unchanged=bool(values.get("unchanged")),
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _error(error: Any, otherwise: str = "") -> "ErrorFacts":
    """The root cause in a sentence, and the whole trace."""
    from nightscout_lakehouse.lib.lineage.facts import ErrorFacts

    root = error
    while root is not None and root.cause is not None:
        root = root.cause
    message = root.message.strip() if root is not None else otherwise
    return ErrorFacts(message or "no error given", error.to_string() if error is not None else "")


def _name(key: dg.AssetKey) -> str:
    return "/".join(key.path)
