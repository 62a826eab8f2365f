"""Lineage of real runs: two sites over HTTP, DuckDB, an external Postgres, and a lineage server that goes away."""

import fcntl
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import yaml
from conftest import Server
from lineage_receiver import Receiver
from openlineage.client.event_v2 import RunState
from openlineage_schemas import faults
from psycopg2 import sql

from nightscout_lakehouse.defs.lineage import RunLineage
from nightscout_lakehouse.demo import DemoOptions, DemoServer, DemoStore, Person
from nightscout_lakehouse.instance import JobOutcome, execute_job, prepare_environment
from nightscout_lakehouse.lib.lineage.datasets import DatasetName, DatasetNames
from nightscout_lakehouse.lib.lineage.dbt_events import build_events, read_build
from nightscout_lakehouse.lib.lineage.diff import compare, pipeline_runs, run_facts
from nightscout_lakehouse.lib.lineage.event_log import EventLog
from nightscout_lakehouse.lib.lineage.facts import RunFacts
from nightscout_lakehouse.lib.lineage.graph import Branch, ColumnKey, Direction, Node, build_graph
from nightscout_lakehouse.lib.lineage.journal import event_files, read_lines
from nightscout_lakehouse.lib.lineage.models import ModelLineage
from nightscout_lakehouse.lib.lineage.page import render
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.serving import read_query
from nightscout_lakehouse.lib.settings import DBT_PROJECT_DIR, Settings, load_settings
from nightscout_lakehouse.lib.warehouse import connect

TOKEN, API_SECRET, DATABASE_PASSWORD = "reader-0123456789abcdef", "an api secret 42", "pass/word @7"
# As that of other tests: dbt parses the project anew for each other name.
DATABASE = "lakehouse_of_a_test"
Event = dict[str, Any]

# Columns of the curated models and marts that are made of no other column: how many rows there are, and words that the
# query itself holds. What decides which rows these are stands in the facet's `dataset`.
MADE_OF_NONE = {
    "dim_glucose_date": {"reading_count"},
    "dim_sensor_session": {
        *("reading_count", "exact_duplicate_count", "calibration_count", "finger_stick_count"),
        "finger_stick_pair_count",
    },
    "dim_site": {"day_count"},
    "fact_daily_insulin": {"treatment_count", "meal_count"},
    "fact_glucose_comparison": {"metric", "unit"},
    "fact_glucose_episodes": {
        *("kind", "level", "reading_count", "is_prolonged_below_54", "is_prolonged_below_70"),
        *("is_prolonged_above_180", "is_prolonged_above_250"),
    },
    "fact_glucose_metrics": {"metric", "unit", "target"},
    "fact_glucose_patterns": {"pattern", "metric", "unit"},
    "fact_glucose_profile": {"period", "grid_minutes", "minute_of_day", "reading_count"},
    "fact_meals": {"carb_entry_count"},
    "mart_dashboard_agp": {"period", "unit", "target_low", "target_high"},
    "mart_dashboard_current": {"unit"},
    "mart_dashboard_days": {"period", "unit"},
    "mart_dashboard_episodes": {"period", "unit"},
    "mart_dashboard_hours": {"unit"},
    "mart_dashboard_ranges": {
        *("period", "unit", "range_name", "range_label", "range_order", "is_band", "bounds_text"),
    },
    "mart_dashboard_readings": {"period", "unit", "target_low", "target_high"},
    "mart_dashboard_summary": {"period", "period_days", "unit"},
    "mart_glucose_hourly_pattern": {"reading_count"},
    "mart_pipeline_health": {"runs_24h", "is_running"},
    "mart_pipeline_runs": {"site_count"},
    "mart_site_attention": {"unit"},
    "mart_time_in_range": {"period_days", "range_name", "range_order"},
}

pytestmark = [pytest.mark.e2e, pytest.mark.postgres]


@dataclass(frozen=True)
class Recorded:
    """Two runs, the second with nothing new."""

    settings: Settings
    owner: PostgresConnection
    first: JobOutcome
    second: JobOutcome
    events: tuple[Event, ...]
    received: tuple[Event, ...]
    received_in_first: int

    def of(self, outcome: JobOutcome, state: str | None = None) -> list[Event]:
        return [
            each
            for each in self.events
            if root_run(each) == outcome.run_id and (state is None or each["eventType"] == state)
        ]

    def complete(self, job: str) -> Event:
        (found,) = [each for each in self.of(self.first, "COMPLETE") if each["job"]["name"] == job]
        return found


def root_run(event: Event) -> str:
    parent = event["run"]["facets"].get("parent")
    return str(parent["root"]["run"]["runId"] if parent else event["run"]["runId"])


def read_events(settings: Settings) -> tuple[Event, ...]:
    return tuple(json.loads(line) for path in event_files(settings.lineage_dir) for line in read_lines(path))


def dataset(each: Event) -> DatasetName:
    return DatasetName(each["namespace"], each["name"])


@pytest.fixture(scope="module")
def recorded(postgres_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("lineage")
    login = sql.Identifier("lineage_owner")
    for statement in (f"drop database if exists {DATABASE}", "drop role if exists lineage_owner"):
        postgres_server.run_as_superuser(sql.SQL(statement))
    postgres_server.run_as_superuser(
        sql.SQL("create role {} login createrole password {}").format(login, sql.Literal(DATABASE_PASSWORD))
    )
    postgres_server.run_as_superuser(sql.SQL("create database {} owner {}").format(sql.Identifier(DATABASE), login))
    owner = replace(
        postgres_server.owner,
        user="lineage_owner",
        password=type(postgres_server.owner.password)(DATABASE_PASSWORD),
        database=DATABASE,
    )
    receiver = Receiver()
    is_stopping = threading.Event()

    def answer(_event: Event) -> int:
        if len(receiver.events) >= 60 and not is_stopping.is_set():
            is_stopping.set()
            threading.Thread(target=receiver.stop, daemon=True).start()
        return 201

    receiver.answer = answer
    # A reading that comes in while the first run is at work would be something new for the second.
    begin = datetime.now(UTC)
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        DemoServer(
            DemoStore.of(Person(seed=3), days=16, now=lambda: begin),
            DemoOptions(default_roles="denied", tokens={TOKEN: "readable"}),
        ) as ada,
        DemoServer(
            DemoStore.of(Person(seed=5), days=3, now=lambda: begin),
            DemoOptions(default_roles="denied", api_secret=API_SECRET),
        ) as bob,
    ):
        sites = folder / "sites.toml"
        sites.write_text(
            f'[[sites]]\nname = "ada"\nurl = "{ada.url}"\ntoken_env = "ADA_TOKEN"\n'
            f'[[sites]]\nname = "bob"\nurl = "{bob.url}"\napi_secret_env = "BOB_SECRET"\n'
        )
        for name, value in {
            "LAKEHOUSE_HOME": str(folder / "a lakehouse"),
            "LAKEHOUSE_SITES_FILE": str(sites),
            "ADA_TOKEN": TOKEN,
            "BOB_SECRET": API_SECRET,
            "DATABASE_URL": owner.url(hide_password=False),
            "OPENLINEAGE_URL": receiver.url,
            "OPENLINEAGE_DISABLED": "false",
            "DAGSTER_HOME": "",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)
        settings = load_settings()
        prepare_environment(settings)
        first = execute_job("nightscout_pipeline")
        received_in_first = len(receiver.events)
        assert is_stopping.wait(10)
        columns_written = (settings.lineage_dir / "columns.json").stat().st_mtime_ns
        receiver.start()
        second = execute_job("nightscout_pipeline")
        assert (settings.lineage_dir / "columns.json").stat().st_mtime_ns == columns_written
        events = read_events(settings)
        receiver.wait_for(len(events))
        receiver.stop()
        yield Recorded(settings, owner, first, second, events, tuple(receiver.events), received_in_first)
    postgres_server.run_as_superuser(sql.SQL("drop database {} with (force)").format(sql.Identifier(DATABASE)))
    postgres_server.run_as_superuser(sql.SQL("drop role lineage_owner"))


def test_every_step_and_asset_of_every_run_begins_and_ends(recorded: Recorded) -> None:
    for outcome in (recorded.first, recorded.second):
        assert outcome.errors == []
        runs: dict[str, list[Event]] = defaultdict(list)
        for each in recorded.of(outcome):
            runs[each["run"]["runId"]].append(each)
        for events in runs.values():
            assert [each["eventType"] for each in events] == ["START", "COMPLETE"], events[0]["job"]
            assert events[0]["eventTime"] <= events[1]["eventTime"]
            assert len({each["job"]["name"] for each in events}) == 1
        jobs = [events[0]["job"]["name"] for events in runs.values()]
        assert len(jobs) == len(set(jobs))
        assert {"nightscout_pipeline", *outcome.step_seconds, *outcome.metadata} - set(jobs) == set()
        by_id = {run_id: events[0] for run_id, events in runs.items()}
        for each in recorded.of(outcome):
            assert each["job"]["namespace"] == "nightscout"
            parent = each["run"]["facets"].get("parent")
            if parent is None:
                assert each["job"]["name"] == "nightscout_pipeline"
                continue
            assert by_id[parent["run"]["runId"]]["job"]["name"] == parent["job"]["name"]
            assert parent["root"]["run"]["runId"] == outcome.run_id
    steps = {each["job"]["name"]: each for each in recorded.of(recorded.first, "COMPLETE")}
    assert steps["dim_glucose_date"]["run"]["facets"]["parent"]["job"]["name"] == "nightscout_curated"
    assert steps["mart_glucose_overview"]["run"]["facets"]["parent"]["job"]["name"] == "nightscout_marts"


def test_the_graph_is_one_and_every_name_in_it_is_somebodys_output(recorded: Recorded) -> None:
    complete = recorded.of(recorded.first, "COMPLETE")
    written = {dataset(each): event["job"]["name"] for event in complete for each in event["outputs"]}
    read = {dataset(each) for event in complete for each in event["inputs"]}
    drop = DatasetName("file", str(recorded.settings.drop_dir))
    api = {DatasetName("nightscout", f"api/v1/{name}") for name in ("entries", "treatments", "devicestatus", "profile")}
    # What each run did is told by the runs, not made by a step.
    postgres = f"postgres://{recorded.owner.host}:{recorded.owner.port}"
    told = {DatasetName(postgres, f"{DATABASE}.ops.{table}") for table in ("pipeline_runs", "pipeline_run_sites")}
    assert read - set(written) == api | {drop} | told
    models = [job for job in written.values() if (DBT_PROJECT_DIR / "models").rglob(f"{job}.sql")]
    assert len(models) == len(written)

    upstream: dict[DatasetName, set[DatasetName]] = defaultdict(set)
    for event in complete:
        for each in event["outputs"]:
            upstream[dataset(each)] |= {dataset(one) for one in event["inputs"]}
    for mart in (name for name in written if ".marts." in name.name):
        reached, border = {mart}, {mart}
        while border:
            border = {one for each in border for one in upstream[each]} - reached
            reached |= border
        expected = told if mart.name.endswith("pipeline_runs") else {DatasetName("nightscout", "api/v1/entries")}
        assert expected & reached or mart.name.endswith("treatments_recent"), mart
    lake = recorded.settings.lake_url
    warehouse = str(recorded.settings.warehouse_path).replace("a lakehouse", "a_lakehouse")
    assert {each.namespace for each in written} == {"file", f"duckdb://{warehouse}", postgres}
    assert DatasetName("file", f"{lake}/processed/nightscout_entries") in written
    assert DatasetName(postgres, f"{DATABASE}.curated.dim_glucose_date") in written
    symlink = recorded.complete("processed_nightscout_entries")["outputs"][0]["facets"]["symlinks"]["identifiers"][0]
    assert symlink["name"] == "warehouse.lake.nightscout_entries"


def test_time_in_range_comes_from_sgv(recorded: Recorded) -> None:
    made_of: dict[tuple[DatasetName, str], list[tuple[DatasetName, str]]] = {}
    for event in recorded.of(recorded.first, "COMPLETE"):
        for each in event["outputs"]:
            for column, found in each["facets"].get("columnLineage", {}).get("fields", {}).items():
                made_of[dataset(each), column] = [(dataset(one), one["field"]) for one in found["inputFields"]]
    mart = dataset(recorded.complete("mart_glucose_overview")["outputs"][0])
    path, seen = [(mart, "time_in_range_pct")], set()
    while path:
        here = path.pop()
        if here not in seen:
            seen.add(here)
            path += made_of.get(here, [])
    assert (DatasetName("nightscout", "api/v1/entries"), "sgv") in seen
    # And from nothing that it is not made of.
    assert {column for where, column in seen if where.namespace == "nightscout"}.isdisjoint(
        {"direction", "device", "trend", "noise", "filtered"}
    )
    tables = {where.name.rpartition(".")[2].rpartition("/")[2] for where, _ in seen}
    assert {"dim_glucose_date", "fact_glucose_readings", "int_glucose_enriched", "stg_nightscout_glucose"} <= tables
    # Every source named is a column of the dataset named.
    columns = {
        dataset(each): {field["name"] for field in each["facets"]["schema"]["fields"]}
        for event in recorded.of(recorded.first, "COMPLETE")
        for each in [*event["inputs"], *event["outputs"]]
        if "schema" in each["facets"]
    }
    bookkeeping = {"warehouse.ops.sites", f"{DATABASE}.ops.pipeline_runs", f"{DATABASE}.ops.pipeline_run_sites"}
    wrong = [
        (where, column)
        for sources in made_of.values()
        for where, column in sources
        if where.name not in bookkeeping and column not in columns[where]
    ]
    assert wrong == []


def test_every_column_of_every_curated_model_and_mart_is_traced(recorded: Recorded) -> None:
    untraced: dict[str, set[str]] = {}
    for path in sorted(DBT_PROJECT_DIR.glob("models/*/*.yml")):
        if path.parent.name not in ("curated", "marts") or path.name.startswith("_"):
            continue
        model = yaml.safe_load(path.read_text())["models"][0]
        (output,) = recorded.complete(model["name"])["outputs"]
        named = {column["name"] for column in model["columns"]}
        assert {field["name"] for field in output["facets"]["schema"]["fields"]} == named, model["name"]
        lineage = output["facets"]["columnLineage"]
        assert lineage["fields"].keys() <= named
        assert all(each["inputFields"] for each in lineage["fields"].values())
        if missing := named - lineage["fields"].keys():
            untraced[model["name"]] = missing
    assert untraced == MADE_OF_NONE
    for model in untraced:
        # A unit is a word of the query; the rows come from somewhere all the same.
        assert (
            untraced[model] == {"unit"}
            or (recorded.complete(model)["outputs"][0]["facets"]["columnLineage"]["dataset"])
        ), model


def test_rows_and_bytes_are_those_of_the_tables(recorded: Recorded) -> None:
    def statistics(job: str) -> dict[str, Any]:
        found: dict[str, Any] = recorded.complete(job)["outputs"][0]["outputFacets"]["outputStatistics"]
        return found

    with connect(recorded.settings, recorded.settings.warehouse_path, read_only=True) as warehouse:
        tables = warehouse.execute("select table_name from duckdb_tables() where schema_name = 'curated'").fetchall()
        assert len(tables) >= 14
        for (table,) in tables:
            rows = warehouse.execute(f"select count(*) from curated.{table}").fetchall()[0][0]
            assert statistics(table)["rowCount"] == rows, table
            assert statistics(f"published_{table}")["rowCount"] == rows, table
    marts = read_query(
        recorded.owner,
        "select table_name, nullif(pg_total_relation_size(('marts.' || table_name)::regclass), 0)"
        " from information_schema.tables where table_schema = 'marts'",
    ).rows
    assert len(marts) >= 13
    for table, size in marts:
        if table == "mart_pipeline_runs":
            # A view that has one row more by now.
            continue
        rows = read_query(recorded.owner, f"select count(*) from marts.{table}").rows[0][0]
        assert statistics(table)["rowCount"] == rows, table
        # Postgres adds its map of free space when it is quiet.
        assert size is None or 0 <= size - statistics(table)["size"] <= 65_536, table
    for collection in COLLECTIONS:
        files = list(Path(recorded.settings.lake_url, "raw", collection.name).rglob("*.parquet"))
        raw = statistics(f"raw_{collection.name}")
        assert (raw["fileCount"], raw["size"]) == (len(files), sum(file.stat().st_size for file in files))
        processed = recorded.complete(f"processed_{collection.name}")["outputs"][0]
        files = list(Path(recorded.settings.lake_url, "processed", collection.name).rglob("*.parquet"))
        assert processed["outputFacets"]["outputStatistics"]["fileCount"] >= len(files)
        with connect(recorded.settings, recorded.settings.warehouse_path, read_only=True) as warehouse:
            rows = warehouse.execute(f"select count(*) from lake.{collection.name}").fetchall()[0][0]
        assert processed["facets"]["dataQualityMetrics"]["rowCount"] == rows, collection.name


def test_events_say_what_ran_what_was_checked_and_whose_it_is(recorded: Recorded) -> None:
    raw = recorded.complete("raw_nightscout_entries")
    assert [one["dimensions"] for one in raw["inputs"][0]["inputFacets"]["subset"]["inputCondition"]["partitions"]] == [
        {"site": "ada"},
        {"site": "bob"},
    ]
    assert {"sgv", "date", "_id"} <= {field["name"] for field in raw["inputs"][0]["facets"]["schema"]["fields"]}
    mart = recorded.complete("mart_glucose_overview")
    assert mart["job"]["facets"]["sql"]["dialect"] == "postgres"
    assert "rolling" in mart["job"]["facets"]["sql"]["query"]
    assert mart["job"]["facets"]["documentation"]["description"].startswith("One row per site and local day")
    assert "Raw SQL" not in mart["job"]["facets"]["documentation"]["description"]
    assert mart["job"]["facets"]["ownership"]["owners"] == [{"name": "team:data-platform"}]
    assert mart["outputs"][0]["facets"]["dataSource"]["uri"].startswith("postgres://")
    assert {"schema", "documentation", "dataQualityMetrics", "columnLineage"} <= mart["outputs"][0]["facets"].keys()
    types = {field["name"]: field["type"] for field in mart["outputs"][0]["facets"]["schema"]["fields"]}
    assert types["reading_date"] == "date"
    location = mart["job"]["facets"].get("sourceCodeLocation")
    if location is not None:
        assert location["path"] == "dbt/models/marts/mart_glucose_overview.sql"
        assert len(location["version"].removesuffix("-dirty")) == 40

    tests = recorded.complete("mart_glucose_overview.checks")
    assertions = tests["inputs"][0]["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert dataset(tests["inputs"][0]) == dataset(mart["outputs"][0])
    assert any(each["assertion"] == "not_null" and each["column"] == "time_in_range_pct" for each in assertions)
    assert all(each["success"] for each in assertions if each["severity"] == "error")
    expectations = recorded.complete("validate_enriched_readings")["inputs"][0]
    assert expectations["name"] == "warehouse.intermediate.int_glucose_enriched"
    assertions = expectations["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert len(assertions) >= 5
    assert {each["assertion"] for each in assertions} >= {"expect_column_values_to_be_between"}
    assert expectations["inputFacets"]["dataQualityMetrics"]["rowCount"] > 1000
    conserved = recorded.complete("processed_nightscout_entries.checks")["inputs"][0]["inputFacets"]
    assert "documents_are_conserved" in {each["name"] for each in conserved["dataQualityAssertions"]["assertions"]}


def test_a_model_or_a_test_that_fails_says_why(recorded: Recorded) -> None:
    build = read_build(recorded.settings.dbt_dir / "duckdb", since=datetime(2026, 1, 1, tzinfo=UTC))
    assert build is not None
    for result in build.results["results"]:
        _, _, name = result["unique_id"].split(".")[:3]
        if name == "dim_site":
            result |= {"status": "error", "message": "Binder Error: no such column"}
        elif name.startswith("not_null_fact_meals_site"):
            result |= {"status": "fail", "failures": 3}
        elif name == "fact_loop_status":
            result |= {"status": "skipped"}
    events = build_events(
        build,
        "duckdb",
        RunFacts(recorded.first.run_id, "nightscout_pipeline"),
        "nightscout_curated",
        DatasetNames.of(recorded.settings),
        {},
        ModelLineage(recorded.settings.lineage_dir / "columns.json"),
        lambda _asset, _path: {},
    )
    failed = {each.job.name: each for each in events if each.eventType is RunState.FAIL}
    messages = {name: each.run.facets["errorMessage"].message for name, each in failed.items()}  # type: ignore[index,attr-defined]
    assert messages == {
        "dim_site": "Binder Error: no such column",
        "fact_meals.checks": "Tests failed: not_null_fact_meals_site (3 rows)",
    }
    assert failed["dim_site"].outputs == []
    assert failed["dim_site"].inputs
    assert "fact_loop_status" not in {each.job.name for each in events}


def test_a_run_with_nothing_new_says_so_in_little(recorded: Recorded) -> None:
    first, second = ({e["job"]["name"] for e in recorded.of(run)} for run in (recorded.first, recorded.second))
    # Tests did not run again: what they found stands.
    assert {job for job in first - second if not job.endswith(".checks")} == set()
    (mart,) = [e for e in recorded.of(recorded.second, "COMPLETE") if e["job"]["name"] == "mart_glucose_overview"]
    full = recorded.complete("mart_glucose_overview")
    assert [dataset(each) for each in mart["outputs"]] == [dataset(each) for each in full["outputs"]]
    assert [dataset(each) for each in mart["inputs"]] == [dataset(each) for each in full["inputs"]]
    assert "columnLineage" not in mart["outputs"][0]["facets"]
    assert "outputStatistics" not in mart["outputs"][0]["outputFacets"]
    (raw,) = [e for e in recorded.of(recorded.second, "COMPLETE") if e["job"]["name"] == "raw_nightscout_entries"]
    assert "columnLineage" not in raw["outputs"][0]["facets"]
    assert "subset" in raw["inputs"][0]["inputFacets"]
    size = {run.run_id: sum(len(json.dumps(e)) for e in recorded.of(run)) for run in (recorded.first, recorded.second)}
    assert size[recorded.second.run_id] < size[recorded.first.run_id] / 3


def test_a_server_that_went_away_in_the_middle_has_everything_in_order(recorded: Recorded) -> None:
    assert 60 <= recorded.received_in_first < len(recorded.of(recorded.first))
    assert recorded.received == recorded.events
    assert not (recorded.settings.lineage_dir / "outbox.ndjson").exists()


def test_no_event_holds_a_secret(recorded: Recorded) -> None:
    password = recorded.owner.url(hide_password=False).split(":")[2].partition("@")[0]
    everything = [path for path in recorded.settings.lineage_dir.rglob("*") if path.is_file()]
    texts = [path.read_text(errors="ignore") for path in everything] + [json.dumps(recorded.received)]
    assert len(texts) >= 3
    for secret in (TOKEN, API_SECRET, DATABASE_PASSWORD, password):
        assert [text[:80] for text in texts if secret in text or json.dumps(secret)[1:-1] in text] == []


def test_a_run_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "NIGHTSCOUT_URL": "http://127.0.0.1:9",
        "NIGHTSCOUT_TOKEN": TOKEN,
        "NIGHTSCOUT_MAX_ATTEMPTS": "1",
        "OPENLINEAGE_DISABLED": "false",
        "DAGSTER_HOME": "",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    prepare_environment(settings)
    outcome = execute_job("nightscout_pipeline")
    events = read_events(settings)
    assert [(each["eventType"], each["job"]["name"]) for each in events] == [
        ("START", "nightscout_pipeline"),
        ("START", "raw_nightscout_entries"),
        ("FAIL", "raw_nightscout_entries"),
        ("FAIL", "nightscout_pipeline"),
    ]
    assert root_run(events[2]) == outcome.run_id
    error = events[2]["run"]["facets"]["errorMessage"]
    assert "No site could be read" in error["message"]
    assert "nightscout_assets.py" in error["stackTrace"]
    assert error["programmingLanguage"] == "python"
    assert "errorMessage" in events[3]["run"]["facets"]
    assert [dataset(each) for each in events[2]["inputs"]] == [DatasetName("nightscout", "api/v1/entries")]
    assert events[2]["outputs"] == []
    assert TOKEN not in json.dumps(events)
    assert [fault for each in events for fault in faults(each)] == []
    assert list((settings.lineage_dir / "open").iterdir()) == []
    assert [(run.state, run.failed_steps) for run in pipeline_runs(EventLog(settings.lineage_dir).heads())] == [
        ("FAIL", ("raw_nightscout_entries",))
    ]

    # `dagster job execute` opens the resources again when the run has ended.
    with dg.DagsterInstance.get() as instance:
        ended: Any = SimpleNamespace(run=instance.get_run_by_id(outcome.run_id), instance=instance)
        RunLineage.of(ended, settings).begin()
    assert len(read_events(settings)) == 4

    # Another run holds the lake.
    monkeypatch.setenv("LAKEHOUSE_LOCK_TIMEOUT_SECONDS", "0")
    with settings.lock_path.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not execute_job("nightscout_pipeline").success
    started, failed = read_events(settings)[4:]
    assert (started["eventType"], failed["eventType"], failed["job"]["name"]) == (
        "START",
        "FAIL",
        "nightscout_pipeline",
    )
    assert "errorMessage" in failed["run"]["facets"]


def test_every_event_and_facet_follows_the_standard(recorded: Recorded) -> None:
    assert sorted({fault for each in recorded.events for fault in faults(each)}) == []
    # Marquez takes no other namespaces; the folder of these runs has a space in its name.
    namespaces = {each["job"]["namespace"] for each in recorded.events}
    namespaces |= {one["namespace"] for each in recorded.events for one in (*each["inputs"], *each["outputs"])}
    assert [name for name in namespaces if not re.fullmatch(r"[a-zA-Z0-9:;=/_.@+-]{1,1024}", name)] == []


def test_the_commands_lead_from_each_figure_to_the_server(recorded: Recorded) -> None:
    graph = build_graph(EventLog(recorded.settings.lineage_dir).events())
    marts = [key for key in graph.datasets if ".marts." in key.name]
    assert len(marts) >= 13
    rootless: dict[str, set[str]] = defaultdict(set)
    for mart in marts:
        for column in graph.columns_of(mart):
            reached = nodes(graph.walk(ColumnKey(mart, column.name), Direction.UPSTREAM, 100, with_conditions=True))
            ends = {node.dataset if isinstance(node, ColumnKey) else node for node in reached}
            if not any(end.name.startswith("api/v1/") or ".ops.pipeline_run" in end.name for end in ends):
                rootless[graph.label(mart)].add(column.name)
    # The name of a site stands in the configuration; no server sends it. A unit is a word of the query.
    assert {column for columns in rootless.values() for column in columns} <= {"site", "unit"}, rootless
    sgv = graph.find("api/v1/entries.sgv")
    for column_name in ("time_in_range_pct", "avg_glucose_mg_dl", "estimated_a1c_7d_avg", "cv_pct"):
        figure = graph.find(f"mart_glucose_overview.{column_name}")
        assert sgv in nodes(graph.walk(figure, Direction.UPSTREAM, 100))
        assert figure in nodes(graph.walk(sgv, Direction.DOWNSTREAM, 100))
    # Nothing that was typed has to be guessed at: each label finds its table again.
    assert all(graph.find(dataset.label) == key for key, dataset in graph.datasets.items())
    page = render(graph, datetime.now(UTC))
    assert len(page) < 5_000_000


def test_the_second_run_differs_in_what_it_read_alone(recorded: Recorded) -> None:
    log = EventLog(recorded.settings.lineage_dir)
    second, first = pipeline_runs(log.heads())
    assert [run.run_id for run in (first, second)] == [recorded.first.run_id, recorded.second.run_id]
    assert [run.state for run in (first, second)] == ["COMPLETE", "COMPLETE"]
    # What fails in both is told, too: the servers' clocks stand still in this test, and readings grow old.
    changes = [each for each in compare(*run_facts(log, (first, second))) if each.before != each.after]
    # Nothing was new: the tests had nothing to look at, and no code, column or check is another.
    assert {change.kind for change in changes} <= {"steps", "rows"}, changes
    assert [change for change in changes if change.kind == "steps" and not change.subject.endswith(".checks")] == []


def nodes(branch: Branch) -> set[Node]:
    return {branch.node, *(node for each in branch.branches for node in nodes(each))}
