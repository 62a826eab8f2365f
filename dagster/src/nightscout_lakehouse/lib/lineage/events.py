"""OpenLineage events, of the client's typed facets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any
from uuid import UUID, uuid5

from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState, set_producer
from openlineage.client.facet_v2 import (
    base_subset_dataset,
    column_lineage_dataset,
    data_quality_assertions_dataset,
    data_quality_metrics_dataset,
    data_quality_metrics_input_dataset,
    datasource_dataset,
    documentation_dataset,
    documentation_job,
    error_message_run,
    job_type_job,
    nominal_time_run,
    output_statistics_output_dataset,
    ownership_dataset,
    ownership_job,
    parent_run,
    schema_dataset,
    source_code_location_job,
    sql_job,
    symlinks_dataset,
)

from nightscout_lakehouse.lib.lineage.column_lineage import ColumnSource
from nightscout_lakehouse.lib.lineage.datasets import NAMESPACE, DatasetName
from nightscout_lakehouse.lib.lineage.facts import CheckFacts, ColumnFacts, ErrorFacts, RunFacts, Written
from nightscout_lakehouse.lib.lineage.source_code import SourceCode

PRODUCER = f"urn:nightscout-lakehouse:{version('nightscout-lakehouse')}"
set_producer(PRODUCER)

# The schedule's distance from tick to tick.
_TICK = timedelta(minutes=30)
START, COMPLETE, FAIL, ABORT = RunState.START, RunState.COMPLETE, RunState.FAIL, RunState.ABORT


@dataclass(frozen=True)
class JobRun:
    """One run of one job.

    Attributes:
        run: The Dagster run that it belongs to.
        name: Name of the job: of the Dagster job, the step or the asset.
        kind: `JOB`, `STEP`, `ASSET`, `MODEL` or `CHECK`.
        parent: Names of the job that it is a part of; empty for the Dagster run itself.
    """

    run: RunFacts
    name: str
    kind: str
    parent: str = ""

    @property
    def run_id(self) -> str:
        """Follows from the Dagster run and the name: an event that is sent twice is the same event."""
        return run_id(self.run, self.name)


def run_id(run: RunFacts, name: str) -> str:
    """The OpenLineage run id of a job of a Dagster run."""
    return run.run_id if name == run.job else str(uuid5(UUID(run.run_id), name))


def event(
    state: RunState,
    at: datetime,
    job: JobRun,
    *,
    inputs: Iterable[InputDataset] = (),
    outputs: Iterable[OutputDataset] = (),
    job_facets: Mapping[str, Any] | None = None,
    error: ErrorFacts | None = None,
) -> RunEvent:
    """One event of a run."""
    facets: dict[str, Any] = run_facets(job)
    if error is not None:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
            message=error.message, programmingLanguage="python", stackTrace=error.stack_trace or None
        )
    return RunEvent(
        eventType=state,
        eventTime=timestamp(at),
        run=Run(runId=job.run_id, facets=facets),
        job=Job(namespace=NAMESPACE, name=job.name, facets={"jobType": _job_type(job.kind), **(job_facets or {})}),
        inputs=list(inputs),
        outputs=list(outputs),
        producer=PRODUCER,
    )


def run_facets(job: JobRun) -> dict[str, Any]:
    """Whose part a run is, and for which tick of the schedule it stands."""
    facets: dict[str, Any] = {}
    if job.parent:
        facets["parent"] = parent_run.ParentRunFacet(
            run=parent_run.Run(runId=run_id(job.run, job.parent)),
            job=parent_run.Job(namespace=NAMESPACE, name=job.parent),
            root=parent_run.Root(
                run=parent_run.RootRun(runId=job.run.run_id),
                job=parent_run.RootJob(namespace=NAMESPACE, name=job.run.job),
            ),
        )
    if job.run.scheduled_for is not None:
        facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(
            nominalStartTime=timestamp(job.run.scheduled_for),
            nominalEndTime=timestamp(job.run.scheduled_for + _TICK),
        )
    return facets


def timestamp(moment: datetime) -> str:
    """A time as OpenLineage writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job_facets(
    *,
    description: str = "",
    owners: Sequence[str] = (),
    source: SourceCode | None = None,
    path: str = "",
    sql: str = "",
) -> dict[str, Any]:
    """What is known of a job: what it does, who answers for it, where its code is."""
    facets: dict[str, Any] = {}
    if description:
        facets["documentation"] = documentation_job.DocumentationJobFacet(description=description)
    if owners:
        facets["ownership"] = ownership_job.OwnershipJobFacet(
            owners=[ownership_job.Owner(name=name) for name in owners]
        )
    if source is not None:
        facets["sourceCodeLocation"] = source_code_location_job.SourceCodeLocationJobFacet(
            type="git",
            url=source.url_of(path),
            repoUrl=source.repository or None,
            path=path or None,
            version=source.commit,
        )
    if sql:
        facets["sql"] = sql_job.SQLJobFacet(query=sql, dialect="duckdb")
    return facets


def input_dataset(
    name: DatasetName,
    *,
    sites: Sequence[str] = (),
    columns: Sequence[ColumnFacts] = (),
    description: str = "",
) -> InputDataset:
    """A dataset that is read; of a dataset that a job of ours writes, that job's events say what it is."""
    facets = _dataset_facets(name, columns, description, ()) if description else {}
    condition = _sites_condition(sites)
    return InputDataset(
        namespace=name.namespace,
        name=name.name,
        facets=facets,
        inputFacets={"subset": base_subset_dataset.InputSubsetInputDatasetFacet(inputCondition=condition)}
        if condition
        else {},
    )


def output_dataset(
    name: DatasetName,
    written: Written,
    *,
    columns: Sequence[ColumnFacts] = (),
    sources: Mapping[str, Any] | None = None,
    description: str = "",
    owners: Sequence[str] = (),
    symlink: DatasetName | None = None,
) -> OutputDataset:
    """A dataset that was written.

    Args:
        name: Its name.
        written: What was written.
        columns: Its columns; those that `written` names if none are given.
        sources: The facet `columnLineage`, by its name.
        description: What it is.
        owners: Who answers for it.
        symlink: Another name of it.
    """
    facets = _dataset_facets(name, columns or written.columns, description, owners)
    facets |= {"dataQualityMetrics": quality_metrics(written)} | dict(sources or {})
    if symlink is not None:
        facets["symlinks"] = symlinks(symlink)
    output_facets: dict[str, Any] = {}
    if written.rows is not None:
        output_facets["outputStatistics"] = output_statistics(written)
    if condition := _sites_condition(written.sites):
        output_facets["subset"] = base_subset_dataset.OutputSubsetOutputDatasetFacet(outputCondition=condition)
    return OutputDataset(namespace=name.namespace, name=name.name, facets=facets, outputFacets=output_facets)


def unchanged_dataset(name: DatasetName, columns: Sequence[ColumnFacts], written: Written) -> OutputDataset:
    """A dataset that stays as it is; what it is was said when it was written."""
    facets: dict[str, Any] = {}
    if columns:
        facets["schema"] = schema(tuple(replace(column, description="") for column in columns))
    if written.rows_held is not None:
        facets["dataQualityMetrics"] = data_quality_metrics_dataset.DataQualityMetricsDatasetFacet(
            columnMetrics={}, rowCount=written.rows_held
        )
    return OutputDataset(namespace=name.namespace, name=name.name, facets=facets, outputFacets={})


def output_statistics(written: Written) -> output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet:
    """How much was written."""
    return output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=written.rows, size=written.bytes, fileCount=written.files
    )


def quality_metrics(written: Written) -> data_quality_metrics_dataset.DataQualityMetricsDatasetFacet:
    """How much a dataset holds."""
    return data_quality_metrics_dataset.DataQualityMetricsDatasetFacet(
        columnMetrics={},
        rowCount=written.rows_held,
        bytes=written.bytes if written.rows == written.rows_held else None,
        lastUpdated=timestamp(written.at),
    )


def schema(columns: Sequence[ColumnFacts]) -> schema_dataset.SchemaDatasetFacet:
    """The columns of a dataset."""
    return schema_dataset.SchemaDatasetFacet(
        fields=[
            schema_dataset.SchemaDatasetFacetFields(
                name=column.name, type=column.type or None, description=column.description or None, fields=None
            )
            for column in columns
        ]
    )


def symlinks(other: DatasetName) -> symlinks_dataset.SymlinksDatasetFacet:
    """Another name of a dataset: the warehouse's view of the lake's files."""
    return symlinks_dataset.SymlinksDatasetFacet(
        identifiers=[symlinks_dataset.Identifier(namespace=other.namespace, name=other.name, type="VIEW")]
    )


def column_lineage(
    columns: Mapping[str, Sequence[ColumnSource]],
    rows: Sequence[ColumnSource],
    name_of: Callable[[str], DatasetName | None],
) -> dict[str, Any]:
    """The facet `columnLineage`, by its name; empty if no column has a source.

    Args:
        columns: For each column what it is made of.
        rows: What decides which rows there are.
        name_of: The dataset of a table.
    """
    fields = {
        column: column_lineage_dataset.Fields(inputFields=found)
        for column, sources in columns.items()
        if (found := _input_fields(sources, name_of))
    }
    if not fields:
        return {}
    return {
        "columnLineage": column_lineage_dataset.ColumnLineageDatasetFacet(
            fields=fields, dataset=_input_fields(rows, name_of)
        )
    }


def _input_fields(
    sources: Sequence[ColumnSource], name_of: Callable[[str], DatasetName | None]
) -> list[column_lineage_dataset.InputField]:
    named = ((source, name_of(source.table)) for source in sources)
    return [
        column_lineage_dataset.InputField(
            namespace=name.namespace,
            name=name.name,
            field=source.column,
            transformations=[
                column_lineage_dataset.Transformation(
                    type="DIRECT" if source.is_direct else "INDIRECT", subtype=source.subtype
                )
            ],
        )
        for source, name in named
        if name is not None
    ]


def checked_dataset(name: DatasetName, checks: Sequence[CheckFacts]) -> InputDataset:
    """A dataset that was checked, with what was found."""
    facets: dict[str, Any] = {
        "dataQualityAssertions": data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(
            assertions=[_assertion(check) for check in checks]
        )
    }
    evaluated = [check.evaluated for check in checks if check.evaluated is not None]
    if evaluated:
        facets["dataQualityMetrics"] = data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet(
            columnMetrics={}, rowCount=max(evaluated)
        )
    return InputDataset(namespace=name.namespace, name=name.name, facets={}, inputFacets=facets)


def checks_error(checks: Sequence[CheckFacts]) -> ErrorFacts | None:
    """What failed with severity error; None if nothing did."""
    failed = [check for check in checks if check.is_error and not check.is_passed]
    if not failed:
        return None
    return ErrorFacts("; ".join(f"{check.name}: {check.description or 'failed'}" for check in failed))


def _assertion(check: CheckFacts) -> data_quality_assertions_dataset.Assertion:
    return data_quality_assertions_dataset.Assertion(
        assertion=check.kind or check.name,
        name=check.name,
        success=check.is_passed,
        severity="error" if check.is_error else "warn",
        description=check.description or None,
        expected="0" if check.failed is not None else None,
        actual=str(check.failed) if check.failed is not None else None,
        params=None,
    )


def _dataset_facets(
    name: DatasetName, columns: Sequence[ColumnFacts], description: str, owners: Sequence[str]
) -> dict[str, Any]:
    # `file` and `nightscout` are names and no addresses.
    uri = name.namespace if "://" in name.namespace else None
    facets: dict[str, Any] = {"dataSource": datasource_dataset.DatasourceDatasetFacet(name=name.namespace, uri=uri)}
    if columns:
        facets["schema"] = schema(columns)
    if description:
        facets["documentation"] = documentation_dataset.DocumentationDatasetFacet(description=description)
    if owners:
        facets["ownership"] = ownership_dataset.OwnershipDatasetFacet(
            owners=[ownership_dataset.Owner(name=owner) for owner in owners]
        )
    return facets


def _sites_condition(sites: Sequence[str]) -> base_subset_dataset.PartitionSubsetCondition | None:
    if not sites:
        return None
    return base_subset_dataset.PartitionSubsetCondition(
        partitions=[base_subset_dataset.Partition(dimensions={"site": site}) for site in sites]
    )


def _job_type(kind: str) -> job_type_job.JobTypeJobFacet:
    return job_type_job.JobTypeJobFacet(processingType="BATCH", integration="DAGSTER", jobType=kind)
