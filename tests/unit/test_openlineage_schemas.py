"""The schemas that events are held to: what the standard forbids is told, also where the classes let it pass."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import lineage_events as made
import pytest
from openlineage.client.serde import Serde
from openlineage_schemas import PUBLISHED, documents, faults, published_files

SPEC_FILES = Path(__file__).parents[1] / "openlineage_spec"
SPEC = "https://openlineage.io/spec/"
CORE = f"{SPEC}2-0-2/OpenLineage.json#/$defs/"
DBT = "https://github.com/OpenLineage/OpenLineage/tree/main/integration/common/openlineage/schema/"
Json = dict[str, Any]

RUN: Json = {"runId": "106e9a2b-0c63-4bd1-9a38-7c9f1de7a001"}
JOB: Json = {"namespace": "nightscout", "name": "dim_site"}
TABLE: Json = {"namespace": "duckdb:///w", "name": "w.curated.dim_site"}
PARTITIONS: Json = {"type": "partition", "partitions": [{"dimensions": {"site": "demo"}}]}
LOCATIONS: Json = {"type": "location", "locations": ["s3://lake/raw"]}
COMPARED: Json = {
    "type": "compare",
    "left": {"type": "field", "field": "site"},
    "right": {"type": "literal", "value": "demo"},
    "comparison": "EQUAL",
}
BOTH: Json = {"type": "binary", "left": LOCATIONS, "right": COMPARED, "operator": "AND"}
PATTERN: Json = {"eventTrigger": "PERIODIC", "eventContentMode": "ACCUMULATIVE", "windowDuration": 1}


def facet(schema: str, **content: Any) -> Json:
    """A facet of a schema, named by its file and definition, as `1-2-0/SchemaDatasetFacet`."""
    url = f"{SPEC}facets/{schema}.json#/$defs/{schema.split('/')[1]}" if "://" not in schema else schema
    return {"_producer": "urn:test", "_schemaURL": url, **content}


def event(kind: str = "RunEvent", **content: Any) -> Json:
    head = {"eventTime": "2026-11-25T17:33:19.500Z", "producer": "urn:test", "schemaURL": CORE + kind}
    return {**head, **(content or {"eventType": "COMPLETE", "run": RUN, "job": JOB})}


def with_run(**facets: Json) -> Json:
    return event(run=RUN | {"facets": facets}, job=JOB)


def with_job(**facets: Json) -> Json:
    return event(run=RUN, job=JOB | {"facets": facets})


def with_input(facets: Json | None = None, **input_facets: Json) -> Json:
    return event(run=RUN, job=JOB, inputs=[TABLE | {"facets": facets or {}, "inputFacets": input_facets}])


def job_type(**content: Any) -> Json:
    return with_job(jobType=facet("2-0-4/JobTypeJobFacet", processingType="BATCH", integration="DBT", **content))


def subset(condition: Json) -> Json:
    url = f"{SPEC}facets/1-0-0/BaseSubsetDatasetFacet.json#/$defs/InputSubsetInputDatasetFacet"
    return with_input(subset=facet(url, inputCondition=condition))


def columns(facets: Json | None = None, **content: Any) -> Json:
    return with_input({"columnLineage": facet("1-2-0/ColumnLineageDatasetFacet", **content), **(facets or {})})


def dbt_run(invocation: str) -> Json:
    return with_run(dbt_run=facet(f"{DBT}dbt-run-run-facet.json", invocation_id=invocation))


TAGS = facet("1-0-0/TagsRunFacet", tags=[{"key": "environment", "value": "production"}])
PARENT = facet("1-2-0/ParentRunFacet", run=RUN, job=JOB)
SCHEMA = facet("1-2-0/SchemaDatasetFacet", fields=[{"name": "site", "type": "varchar"}])

FOLLOWS = [
    event(),
    event("JobEvent", job=JOB, inputs=[TABLE]),
    event("DatasetEvent", dataset=TABLE),
    with_run(tags=TAGS, parent=PARENT),
    with_input({"schema": SCHEMA}),
    job_type(emissionPattern=PATTERN),
    columns(fields={"site": {"inputFields": [{**TABLE, "field": "site"}]}}),
    dbt_run(RUN["runId"]),
    *(subset(condition) for condition in (PARTITIONS, LOCATIONS, COMPARED, BOTH)),
]

# What each demand that the classes do not hold rejects: the definition, and an event that breaks it alone.
BREAKS_A_DEMAND = {
    "JobTypeJobFacet": job_type(emissionPattern=PATTERN | {"windowDuration": 0}),
    "PartitionSubsetCondition": subset(PARTITIONS | {"type": "location"}),
    "LocationSubsetCondition": subset(LOCATIONS | {"type": "place"}),
    "CompareSubsetCondition": subset({key: value for key, value in COMPARED.items() if key != "type"}),
    "BinarySubsetCondition": subset(BOTH | {"type": "compare"}),
}

BREAKS = {
    "a job event with a run": event("JobEvent", run=RUN, job=JOB),
    "a dataset event with a job and a run": event("DatasetEvent", run=RUN, job=JOB, dataset=TABLE),
    "another value of eventType": event(eventType="DONE", run=RUN, job=JOB),
    "no job": event(run=RUN),
    "null for what is not there": event(run=RUN, job=JOB, inputs=None),
    "a schema that is no kind of event": event("BaseEvent", dataset=[]),
    "both a job event and a dataset event": event("JobEvent", job=JOB, dataset=TABLE),
    "a day without a time": event() | {"eventTime": "2026-11-25"},
    "a time without a zone": event() | {"eventTime": "2026-11-25T17:33:19"},
    "a time with a blank": event() | {"eventTime": "2026-11-25 17:33:19Z"},
    "a day that does not exist": event() | {"eventTime": "2026-02-30T17:33:19Z"},
    "a run that is no UUID": event(run={"runId": "nightscout_pipeline"}, job=JOB),
    "a producer that is no URI": event() | {"producer": "nightscout lakehouse"},
    "a URI with a stray per cent sign": event() | {"producer": "urn:100%"},
    "a facet without a producer": with_run(tags={key: TAGS[key] for key in ("_schemaURL", "tags")}),
    "a facet without a schema": with_run(tags={"_producer": "urn:test", "tags": []}),
    "a facet of an unknown version": with_run(tags=facet("9-0-0/TagsRunFacet", tags=[])),
    "a facet that was not compared": with_run(test=facet("1-0-1/TestRunFacet", tests=[])),
    "a facet under another name": with_run(labels=TAGS),
    "a facet of a run on a job": with_job(tags=TAGS),
    "a facet of inputs among those of the dataset": with_input(
        {"dataQualityAssertions": facet("1-1-0/DataQualityAssertionsDatasetFacet", assertions=[])}
    ),
    "a text where a number belongs": with_input(
        dataQualityMetrics=facet("1-0-3/DataQualityMetricsInputDatasetFacet", columnMetrics={}, rowCount="90")
    ),
    "a column lineage without columns": columns(),
    "an input of a column that does not name it": columns(fields={"site": {"inputFields": [TABLE]}}),
    "a transformation without a type": columns(
        fields={}, dataset=[{**TABLE, "field": "site", "transformations": [{"subtype": "FILTER"}]}]
    ),
    "a nested field without a name": with_input({"schema": SCHEMA | {"fields": [{"name": "a", "fields": [{}]}]}}),
    "a root without its job": with_run(parent=PARENT | {"root": {"run": RUN}}),
    "an invocation of dbt that is no UUID": dbt_run("yesterday"),
}


@pytest.mark.parametrize("follows", FOLLOWS)
def test_an_event_that_follows_the_standard_has_no_faults(follows: Json) -> None:
    assert faults(follows) == []


@pytest.mark.parametrize("broken", [*BREAKS.values(), *BREAKS_A_DEMAND.values()], ids=[*BREAKS, *BREAKS_A_DEMAND])
def test_an_event_that_breaks_the_standard_is_told(broken: Json) -> None:
    assert faults(broken) != []


def test_each_demand_that_the_classes_lose_is_broken_by_a_test() -> None:
    assert {name for each in PUBLISHED for name in each.demands} == set(BREAKS_A_DEMAND)


def test_each_schema_that_was_compared_is_one_of_the_installed() -> None:
    """After an upgrade that names a newer version: read that, compare it, and write it into `PUBLISHED`."""
    installed = documents()
    assert {each.url for each in PUBLISHED} - installed.keys() == set()
    assert [
        (each.document, name)
        for each in PUBLISHED
        for name in (*each.keys, *each.demands)
        if name not in installed[each.url]["$defs"]
    ] == []


def test_a_fault_says_where_it_is_and_by_which_schema() -> None:
    whole = json.loads(Serde.to_json(made.pipeline_run(0)[-1]))
    broken = copy.deepcopy(whole)
    broken["run"]["runId"] = "1"
    assert faults(whole) == []
    (fault,) = faults(broken)
    assert fault.startswith("event.run.runId: ")
    assert fault.endswith("(by https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent)")


def test_the_published_files_are_as_they_were_published_and_are_what_events_are_held_to() -> None:
    sums = dict(reversed(line.split()) for line in (SPEC_FILES / "SHA256SUMS").read_text().splitlines())
    files = {str(path.relative_to(SPEC_FILES)): path.read_bytes() for path in SPEC_FILES.rglob("*.json")}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == sums
    published = {schema["$id"]: schema for schema in published_files()}
    assert len(published) == len(files) == 9
    assert {each.url for each in PUBLISHED if "openlineage_spec/" in each.source} == published.keys()
    held_to = documents()
    assert {url: held_to[url] for url in published} == published
