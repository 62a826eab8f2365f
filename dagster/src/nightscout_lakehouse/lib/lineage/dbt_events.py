"""Events of dbt's models and tests: what `openlineage-dbt` makes of dbt's artefacts, with our names and columns.

dbt's own names are kept for datasets; the view of a lake's collection is the collection's files. What its SQL parser
finds of columns is replaced (docs/decisions/0012-lineage.md).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import attr
from openlineage.client.event_v2 import InputDataset, Job, Run, RunEvent, RunState
from openlineage.client.facet_v2 import error_message_run, source_code_job
from openlineage.common.provider.dbt.local import DbtLocalArtifactProcessor

from nightscout_lakehouse.lib.dbt_project import Target
from nightscout_lakehouse.lib.lineage.column_lineage import QueryLineage
from nightscout_lakehouse.lib.lineage.datasets import NAMESPACE, DatasetName, DatasetNames
from nightscout_lakehouse.lib.lineage.events import (
    PRODUCER,
    JobRun,
    column_lineage,
    output_statistics,
    quality_metrics,
    run_facets,
    symlinks,
    timestamp,
)
from nightscout_lakehouse.lib.lineage.facts import RunFacts, Written
from nightscout_lakehouse.lib.lineage.models import SITES_TABLE, ModelLineage, model_lineage, table_columns
from nightscout_lakehouse.lib.model_versions import model_versions
from nightscout_lakehouse.lib.settings import DBT_PROJECT_DIR

CHECKS_SUFFIX = ".checks"
# How openlineage-dbt names the job of a model's tests.
TEST_SUFFIX = ".test"
# What dbt's own events say and nobody needs twice: our parent and our names are put in their place.
_DROPPED_RUN_FACETS = ("dbt_version", "parent")


@dataclass(frozen=True)
class DbtBuild:
    """An invocation of dbt, as its artefacts tell of it.

    Attributes:
        manifest: Its manifest, each node with the query that was run.
        results: Its results.
    """

    manifest: dict[str, Any]
    results: dict[str, Any]


def read_build(target_dir: Path, since: datetime) -> DbtBuild | None:
    """The artefacts of an invocation; None if there is none since a time: dbt did not run, or not to its end."""
    try:
        results = json.loads((target_dir / "run_results.json").read_bytes())
        manifest = json.loads((target_dir / "manifest.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if datetime.fromisoformat(results["metadata"]["generated_at"]) < since:
        return None
    for result in results["results"]:
        node = manifest["nodes"].get(result["unique_id"])
        if node is not None and result.get("compiled_code"):
            node["compiled_code"] = result["compiled_code"]
    return DbtBuild(manifest, results)


class _Artifacts(DbtLocalArtifactProcessor):  # type: ignore[misc]
    """openlineage-dbt's reader of artefacts, given them instead of files: its own would ask for the password."""

    def __init__(self, build: DbtBuild, profile: dict[str, Any], catalog: dict[str, Any]) -> None:
        super().__init__(project_dir=str(DBT_PROJECT_DIR), producer=PRODUCER, job_namespace=NAMESPACE, skip_errors=True)
        self._given = (build.manifest, build.results, profile, catalog)

    def get_dbt_metadata(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
        return self._given


def build_events(
    build: DbtBuild,
    target: Target,
    run: RunFacts,
    step: str,
    names: DatasetNames,
    written: Mapping[str, Written],
    lineage: ModelLineage,
    job_facets: Callable[[str, str], dict[str, Any]],
) -> list[RunEvent]:
    """START and COMPLETE or FAIL of each model that was built, and of the tests of each, in their order.

    Args:
        build: What dbt did.
        target: On which database.
        run: The Dagster run.
        step: The step that ran dbt.
        names: Names of datasets.
        written: What was written, by model.
        lineage: Where columns come from.
        job_facets: What is known of a model's job, by its name and the file of its code.
    """
    models = {key: node for key, node in build.manifest["nodes"].items() if node["resource_type"] == "model"}
    messages = {result["unique_id"]: result.get("message") or "" for result in build.results["results"]}
    columns = _Columns(build.manifest, target, names, lineage)
    artifacts = _Artifacts(build, _profile(target, names), _catalog(models, written))
    events: list[RunEvent] = []
    for given in artifacts.parse().events():
        node = models.get(_node_id(given))
        if node is None:
            # A test of no single model's: it is among the assertions of one of them.
            continue
        is_test = given.job.name.endswith(TEST_SUFFIX)
        name = node["name"] + (CHECKS_SUFFIX if is_test else "")
        event = _under_our_names(given, JobRun(run, name, "CHECK" if is_test else "MODEL", step), names)
        if event.eventType is not RunState.START:
            event.job.facets = {
                **(given.job.facets or {}),
                **job_facets(node["name"], f"dbt/{node['original_file_path']}"),
            }
            if not is_test:
                # The compiled query is another one on every day; this changes with the code alone.
                event.job.facets["sourceCode"] = source_code_job.SourceCodeJobFacet("sql", node["raw_code"])
        if event.eventType is RunState.FAIL and event.run.facets is not None:
            message = _failed_assertions(given) if is_test else messages[node["unique_id"]]
            event.run.facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
                message=message or "failed", programmingLanguage="sql"
            )
        if not is_test:
            _complete(event, node, columns, written.get(node["name"]))
        events.append(event)
    return sorted(events, key=lambda event: (event.job.name.endswith(CHECKS_SUFFIX), _when(event)))


def _under_our_names(given: RunEvent, job: JobRun, names: DatasetNames) -> RunEvent:
    """The event of openlineage-dbt as one of ours. What an input is, is said by the job that writes it."""
    run = {key: facet for key, facet in (given.run.facets or {}).items() if key not in _DROPPED_RUN_FACETS}
    is_start = given.eventType is RunState.START
    return RunEvent(
        eventType=given.eventType,
        eventTime=timestamp(_when(given)),
        run=Run(job.run_id, run_facets(job) | ({} if is_start else run)),
        job=Job(NAMESPACE, job.name, {"jobType": (given.job.facets or {})["jobType"]}),
        inputs=[_input(dataset, names, keep_found=not is_start) for dataset in given.inputs or []],
        # START and COMPLETE share their datasets.
        outputs=[] if is_start else [attr.evolve(output) for output in given.outputs or []],
        producer=PRODUCER,
    )


class _Columns:
    """Where the columns of the models of one build come from."""

    def __init__(self, manifest: Mapping[str, Any], target: Target, names: DatasetNames, lineage: ModelLineage) -> None:
        self._target = target
        self._names = names
        self._lineage = lineage
        self._schemas = table_columns(manifest)
        self._versions = model_versions(manifest)

    def facet(self, node: Mapping[str, Any]) -> dict[str, Any]:
        found = self._of(node)
        return column_lineage(found.columns, found.rows, self.dataset)

    def reads_sites(self, node: Mapping[str, Any]) -> bool:
        return SITES_TABLE in self._of(node).tables

    def dataset(self, table: str) -> DatasetName | None:
        return self._names.relation(self._target, table)

    def _of(self, node: Mapping[str, Any]) -> QueryLineage:
        def parse() -> QueryLineage:
            return model_lineage(node["compiled_code"], self._target, self._schemas)

        return self._lineage.of(node["name"], self._versions[node["name"]], parse)


def _complete(event: RunEvent, node: Mapping[str, Any], columns: _Columns, written: Written | None) -> None:
    """Say what dbt does not: the table of the sites among the inputs, the columns' sources, how much there is."""
    sites = columns.dataset(SITES_TABLE)
    if columns.reads_sites(node) and sites is not None:
        event.inputs = [*(event.inputs or []), InputDataset(sites.namespace, sites.name, {})]
    for output in event.outputs or []:
        facets = {key: facet for key, facet in (output.facets or {}).items() if key != "columnLineage"}
        output.facets = facets | columns.facet(node)
        if written is not None:
            output.facets["dataQualityMetrics"] = quality_metrics(written)
            # openlineage-dbt leaves out a table that is empty.
            output.outputFacets = {"outputStatistics": output_statistics(written)}


def _input(given: Any, names: DatasetNames, *, keep_found: bool) -> InputDataset:
    """An input by its name, with what tests found. The views over the lake are the lake's files."""
    name = DatasetName(given.namespace, given.name)
    facets: dict[str, Any] = {}
    if given.namespace.startswith("duckdb:"):
        files = names.in_warehouse(given.name.partition(".")[2])
        if files != name:
            name, facets = files, {"symlinks": symlinks(name)}
    found = getattr(given, "inputFacets", None) or {}
    return InputDataset(
        namespace=name.namespace, name=name.name, facets=facets, inputFacets=found if keep_found else {}
    )


def _failed_assertions(event: RunEvent) -> str:
    failed = []
    for dataset in event.inputs or []:
        facet = (getattr(dataset, "inputFacets", None) or {}).get("dataQualityAssertions")
        failed += [
            f"{each.name} ({each.actual} rows)" for each in (facet.assertions if facet else []) if not each.success
        ]
    return "Tests failed: " + ", ".join(failed)


def _node_id(event: RunEvent) -> str:
    facet = (event.job.facets or {}).get("dbt_node")
    return str(getattr(facet, "unique_id", ""))


def _when(event: RunEvent) -> datetime:
    return datetime.fromisoformat(event.eventTime)


def _profile(target: Target, names: DatasetNames) -> dict[str, Any]:
    """What openlineage-dbt names datasets by."""
    if target == "duckdb" or names.postgres is None:
        return {"type": "duckdb", "path": names.warehouse}
    host, _, port = names.postgres[0].rpartition(":")
    return {"type": "postgres", "host": host, "port": port}


def _catalog(models: Mapping[str, Mapping[str, Any]], written: Mapping[str, Written]) -> dict[str, Any]:
    """What dbt's catalog would say: the columns as they stand in the database."""
    nodes: dict[str, Any] = {}
    for key, node in models.items():
        found = written.get(node["name"])
        if found is not None and found.columns:
            nodes[key] = {
                "columns": {column.name: {"name": column.name, "type": column.type} for column in found.columns},
                "stats": {},
            }
    return {"nodes": nodes, "sources": {}}
