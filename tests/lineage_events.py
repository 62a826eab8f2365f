"""OpenLineage events as the emitter writes them, built with the typed client: a small pipeline from API to mart."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    JobFacet,
    RunFacet,
    column_lineage_dataset,
    data_quality_assertions_dataset,
    data_quality_metrics_dataset,
    documentation_dataset,
    error_message_run,
    output_statistics_output_dataset,
    parent_run,
    schema_dataset,
    source_code_job,
    source_code_location_job,
    sql_job,
)
from openlineage.client.serde import Serde
from openlineage_schemas import faults

from nightscout_lakehouse.lib.lineage.journal import event_files, read_lines

NAMESPACE = "nightscout"
PIPELINE = "nightscout_pipeline"
API = (NAMESPACE, "api/v1/entries")
PARQUET = ("file", "/data/a lake/processed/nightscout_entries")
WAREHOUSE = "duckdb:///data/warehouse.duckdb"
POSTGRES = "postgres://127.0.0.1:5432"
READINGS = (WAREHOUSE, "warehouse.curated.fact_glucose_readings")
DAYS = (WAREHOUSE, "warehouse.curated.dim_glucose_date")
PUBLISHED = (POSTGRES, "lakehouse.curated.dim_glucose_date")
MART = (POSTGRES, "lakehouse.marts.mart_glucose_overview")
BEGIN = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)

Name = tuple[str, str]
# By column: the columns it comes from, as (dataset, column, type, subtype).
Sources = Mapping[str, Sequence[tuple[Name, str, str, str]]]


def run_id(run: int, step: int = 0) -> str:
    """The id of a step of a run; step 0 is the run itself."""
    return str(UUID(int=run << 96 | step))


def event(state: RunState, job: str, run: int, step: int, **parts: Any) -> RunEvent:
    """One event; `parts` may hold inputs, outputs, job_facets and run_facets. A run begins every half hour."""
    facets: dict[str, RunFacet] = dict(parts.get("run_facets", {}))
    if step:
        facets["parent"] = parent_run.ParentRunFacet(
            run=parent_run.Run(runId=run_id(run)), job=parent_run.Job(namespace=NAMESPACE, name=PIPELINE)
        )
    job_facets: dict[str, JobFacet] = dict(parts.get("job_facets", {}))
    seconds = step * 2 + (state is not RunState.START) + (step == 0 and state is not RunState.START) * 60
    return RunEvent(
        eventType=state,
        eventTime=(BEGIN + timedelta(minutes=30 * run, seconds=seconds)).isoformat(),
        run=Run(runId=run_id(run, step), facets=facets),
        job=Job(namespace=NAMESPACE, name=job, facets=job_facets),
        inputs=list(parts.get("inputs", [])),
        outputs=list(parts.get("outputs", [])),
        producer="https://example.org/nightscout-lakehouse",
    )


def source(name: Name, assertions: Mapping[tuple[str, str | None], bool] | None = None) -> InputDataset:
    """A dataset that is read, with the tests of it."""
    facets = {}
    if assertions:
        facets["dataQualityAssertions"] = data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(
            assertions=[
                data_quality_assertions_dataset.Assertion(assertion=test, success=is_passed, column=column)
                for (test, column), is_passed in assertions.items()
            ]
        )
    return InputDataset(namespace=name[0], name=name[1], inputFacets=facets)


def target(name: Name, columns: Mapping[str, str], rows: int, sources: Sources | None = None) -> OutputDataset:
    """A dataset that is written, with its columns and their types."""
    fields = [
        schema_dataset.SchemaDatasetFacetFields(name=column, type=kind or None) for column, kind in columns.items()
    ]
    facets: dict[str, Any] = {
        "schema": schema_dataset.SchemaDatasetFacet(fields=fields),
        "documentation": documentation_dataset.DocumentationDatasetFacet(description=f"One row per {name[1]}."),
    }
    if sources is not None:
        facets["columnLineage"] = column_lineage_dataset.ColumnLineageDatasetFacet(
            fields={column: column_lineage_dataset.Fields(input_fields(found)) for column, found in sources.items()}
        )
    # What the warehouse holds is counted; of the batch files of a bucket only what was written is known.
    if name != PARQUET:
        facets["dataQualityMetrics"] = data_quality_metrics_dataset.DataQualityMetricsDatasetFacet(
            columnMetrics={}, rowCount=rows, bytes=rows * 10
        )
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=rows, size=rows * 10)
    return OutputDataset(namespace=name[0], name=name[1], facets=facets, outputFacets={"outputStatistics": statistics})


def input_fields(sources: Sequence[tuple[Name, str, str, str]]) -> list[column_lineage_dataset.InputField]:
    """The columns that one comes from, as the facet names them."""
    return [
        column_lineage_dataset.InputField(
            namespace=dataset[0],
            name=dataset[1],
            field=column,
            transformations=[column_lineage_dataset.Transformation(type=kind, subtype=subtype)],
        )
        for dataset, column, kind, subtype in sources
    ]


def code(sql: str, commit: str, run: int) -> dict[str, JobFacet]:
    """The facets of a dbt model."""
    return {
        # As compiled, the query is another one in each run.
        "sql": sql_job.SQLJobFacet(query=f"{sql} where reading_date >= '{BEGIN + timedelta(days=run)}'"),
        "sourceCode": source_code_job.SourceCodeJobFacet(language="sql", sourceCode=sql),
        "sourceCodeLocation": source_code_location_job.SourceCodeLocationJobFacet(
            type="git", url="https://example.org/repo", version=commit
        ),
    }


def pipeline_run(
    run: int,
    *,
    rows: int = 100,
    sql: str = "select site,\navg(in_range) as time_in_range_pct\nfrom readings",
    commit: str = "a" * 40,
    days_columns: Mapping[str, str] | None = None,
    is_unique: bool = True,
    fails: bool = False,
) -> list[RunEvent]:
    """The events of one run of the small pipeline, the oldest first.

    Args:
        run: Its number.
        rows: Readings written.
        sql: Of the model `dim_glucose_date`.
        commit: The git commit.
        days_columns: Columns of `dim_glucose_date`.
        is_unique: Whether the test of `fact_glucose_readings` passes.
        fails: The last step fails.
    """
    direct = "DIRECT"
    readings = {"site": "varchar", "glucose_mg_dl": "double"}
    days = days_columns or {"site": "varchar", "time_in_range_pct": "double"}
    steps: list[tuple[str, list[InputDataset], list[OutputDataset], dict[str, JobFacet]]] = [
        (
            "processed_nightscout_entries",
            [source(API)],
            [target(PARQUET, readings, rows, {"glucose_mg_dl": [(API, "sgv", direct, "TRANSFORMATION")], "site": []})],
            {},
        ),
        (
            "fact_glucose_readings",
            [source(PARQUET)],
            [target(READINGS, readings, rows, {c: [(PARQUET, c, direct, "IDENTITY")] for c in readings})],
            {},
        ),
        (
            "fact_glucose_readings.test",
            [source(READINGS, {("unique", "site"): is_unique, ("rows", None): True})],
            [],
            {},
        ),
        (
            "dim_glucose_date",
            [source(READINGS)],
            [
                target(
                    DAYS,
                    days,
                    3,
                    {
                        "time_in_range_pct": [
                            (READINGS, "glucose_mg_dl", direct, "AGGREGATION"),
                            (READINGS, "site", "INDIRECT", "GROUP_BY"),
                        ],
                        "site": [(READINGS, "site", direct, "IDENTITY")],
                    },
                )
            ],
            code(sql, commit, run),
        ),
        (
            "published_dim_glucose_date",
            [source(DAYS)],
            [target(PUBLISHED, days, 3, {c: [(DAYS, c, direct, "IDENTITY")] for c in days})],
            {},
        ),
        (
            "mart_glucose_overview",
            [source(PUBLISHED)],
            [target(MART, days, 3, {c: [(PUBLISHED, c, direct, "IDENTITY")] for c in days})],
            code("select * from days", commit, run),
        ),
    ]
    events = [event(RunState.START, PIPELINE, run, 0)]
    for number, (job, inputs, outputs, facets) in enumerate(steps, start=1):
        events.append(event(RunState.START, job, run, number, inputs=inputs, job_facets=facets))
        if fails and number == len(steps):
            message = error_message_run.ErrorMessageRunFacet("no space left\nTraceback …", programmingLanguage="python")
            events.append(event(RunState.FAIL, job, run, number, inputs=inputs, run_facets={"errorMessage": message}))
        else:
            events.append(event(RunState.COMPLETE, job, run, number, inputs=inputs, outputs=outputs, job_facets=facets))
    return [*events, event(RunState.FAIL if fails else RunState.COMPLETE, PIPELINE, run, 0)]


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The events in a folder, as they stand there; each follows the standard."""
    found = [json.loads(line) for path in event_files(folder) for line in read_lines(path)]
    assert [fault for each in found for fault in faults(each)] == []
    return found


def ends(folder: Path) -> dict[str, str]:
    """How each job in a folder ended last."""
    return {each["job"]["name"]: each["eventType"] for each in recorded(folder) if each["eventType"] != "START"}


def write(events: Sequence[RunEvent], path: Path) -> None:
    """Append events to a file, as the file transport of the client does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(Serde.to_json(each) + "\n" for each in events)
