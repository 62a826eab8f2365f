"""What the lineage commands tell, from events that the typed client wrote."""

import gzip
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import lineage_events as made
import pytest
from click.testing import Result
from hypothesis import given, settings, strategies
from openlineage.client.event_v2 import RunState
from openlineage.client.serde import Serde
from openlineage_schemas import faults
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.lib.lineage.diff import Change, choose_run, compare, pipeline_runs, run_facts
from nightscout_lakehouse.lib.lineage.event_log import EventHead, EventLog, LineageError
from nightscout_lakehouse.lib.lineage.graph import (
    Bond,
    Branch,
    ColumnKey,
    DatasetKey,
    Direction,
    Graph,
    build_graph,
    short_names,
)
from nightscout_lakehouse.lib.lineage.page import lay_out, render

MART_COLUMN = "mart_glucose_overview.time_in_range_pct"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a lakehouse" / "lineage"


def graph_of(folder: Path, *runs: Any) -> Graph:
    for events in runs:
        made.write(events, folder / "events.ndjson")
    return build_graph(EventLog(folder).events())


def write_file(events: Any, path: Path) -> None:
    """A file of events, compressed if its name says so, as those are that were rotated."""
    plain = path.with_name(path.name.removesuffix(".gz"))
    made.write(events, plain)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()


def names(graph: Graph, branch: Branch) -> list[str]:
    """All names of a tree, from the root on."""
    return [graph.label(branch.node), *(name for each in branch.branches for name in names(graph, each))]


def lakehouse(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["lineage", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def said(result: Result) -> str:
    """An error as one line, however wide the terminal."""
    assert result.exit_code == 1
    return " ".join(result.stderr.split())


# --- the file of events ---------------------------------------------------------------------------


def test_the_events_of_these_tests_follow_the_standard() -> None:
    for run in (made.pipeline_run(0), made.pipeline_run(1, fails=True)):
        for event in run:
            assert faults(json.loads(Serde.to_json(event))) == []


def test_the_newest_event_comes_first_over_rotated_files(folder: Path) -> None:
    for number, name in enumerate(("events-20261125T1.ndjson.gz", "events-20261125T2.ndjson.gz", "events.ndjson")):
        write_file(made.pipeline_run(number), folder / name)
    (folder / "outbox.ndjson").write_text("no event of ours\n")
    times = [event.event_time for event in EventLog(folder).events()]
    ends = [head.event_time for head in EventLog(folder).heads()]
    assert len(times) == 3 * 14
    assert times == ends
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("block", [7, 64, 4096])
def test_lines_are_whole_wherever_a_block_ends(folder: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("nightscout_lakehouse.lib.lineage.event_log._BLOCK_BYTES", block)
    events = made.pipeline_run(0)
    made.write(events, folder / "events.ndjson")
    read = [(event.run.run_id, event.event_type) for event in EventLog(folder).events()]
    assert read == [(event.run.runId, event.eventType.value) for event in reversed(events)]


def test_a_line_that_a_killed_run_left_costs_one_event(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "events.ndjson"
    made.write(made.pipeline_run(0), path)
    whole = path.read_text()
    path.write_text(whole + '{"eventTime": "2026-11-25T12:3\n' + whole + '{"eventType": "STA')
    package = logging.getLogger("nightscout_lakehouse")
    package.propagate, propagated = True, package.propagate
    try:
        assert sum(1 for _ in EventLog(folder).events()) == 2 * 14
    finally:
        package.propagate = propagated
    assert "2 damaged lines" in caplog.text


def test_not_more_is_read_than_allowed(folder: Path) -> None:
    for number in range(3):
        made.write(made.pipeline_run(number), folder / "events.ndjson")
    size = (folder / "events.ndjson").stat().st_size
    log = EventLog(folder, most_bytes=size // 3 + 100)
    assert log.is_cut
    assert not EventLog(folder).is_cut
    events = list(log.events())
    # The event that the limit cuts through is left out.
    assert len(events) == 14
    assert {event.run.run_id for event in events} <= {made.run_id(2, step) for step in range(7)}
    write_file(made.pipeline_run(9), folder / "events-20261125T1.ndjson.gz")
    assert all(event.run.run_id != made.run_id(9) for event in log.events())


def test_a_file_that_holds_something_else_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nightscout_lakehouse.lib.lineage.event_log._MOST_LINE_BYTES", 1000)
    monkeypatch.setattr("nightscout_lakehouse.lib.lineage.event_log._BLOCK_BYTES", 1000)
    folder.mkdir(parents=True)
    (folder / "events.ndjson").write_bytes(b"x" * 10_000)
    with pytest.raises(LineageError, match=r"events\.ndjson has a line of more than"):
        list(EventLog(folder).events())


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip at all, but long enough", gzip.compress(b"x" * 10_000)[:-30]],
    # gzip writes the second into what it makes, and test processes are to agree on the names of the tests.
    ids=["empty", "no gzip", "cut off"],
)
def test_a_damaged_old_file_is_named(folder: Path, content: bytes) -> None:
    write_file(made.pipeline_run(0), folder / "events.ndjson")
    (folder / "events-20261125T1.ndjson.gz").write_bytes(content)
    if not content:
        assert len(list(EventLog(folder).events())) == 14
        return
    with pytest.raises(LineageError, match=r"events-20261125T1\.ndjson\.gz cannot be read"):
        list(EventLog(folder).events())
    # What is newer is read without it.
    assert [run.run_id for run in pipeline_runs(EventLog(folder).heads(), most=1)] == [made.run_id(0)]


def test_the_page_that_cannot_be_written_is_told(folder: Path) -> None:
    made.write(made.pipeline_run(0), folder / "events.ndjson")
    (folder / "lineage.tmp").mkdir()
    assert "The page cannot be written to" in said(lakehouse("open", "--no-browser"))


# --- the graph ------------------------------------------------------------------------------------


def test_a_figure_is_followed_to_the_api_and_back(folder: Path) -> None:
    graph = graph_of(folder, made.pipeline_run(0))
    up = graph.walk(graph.find(MART_COLUMN), Direction.UPSTREAM, 100)
    chain = [
        "mart_glucose_overview.time_in_range_pct",
        "postgres:dim_glucose_date.time_in_range_pct",
        "duckdb:dim_glucose_date.time_in_range_pct",
        "fact_glucose_readings.glucose_mg_dl",
        "nightscout_entries.glucose_mg_dl",
        "api/v1/entries.sgv",
    ]
    assert names(graph, up) == chain
    down = graph.walk(graph.find("api/v1/entries.sgv"), Direction.DOWNSTREAM, 100)
    assert names(graph, down) == chain[::-1]
    tables = graph.walk(graph.find("mart_glucose_overview"), Direction.UPSTREAM, 100)
    assert names(graph, tables) == [name.rpartition(".")[0] for name in chain]
    cut = graph.walk(graph.find(MART_COLUMN), Direction.UPSTREAM, 2)
    assert names(graph, cut) == chain[:3]
    assert cut.branches[0].branches[0].is_cut


def test_conditions_are_followed_when_asked_for(folder: Path) -> None:
    graph = graph_of(folder, made.pipeline_run(0))
    node = graph.find("duckdb:dim_glucose_date.time_in_range_pct")
    direct, with_conditions = (
        graph.walk(node, Direction.UPSTREAM, 1, with_conditions=asked).branches for asked in (False, True)
    )
    assert [(graph.label(each.node), each.link and each.link.how) for each in direct] == [
        ("fact_glucose_readings.glucose_mg_dl", "aggregated")
    ]
    assert [(graph.label(each.node), each.link and each.link.how) for each in with_conditions[1:]] == [
        ("fact_glucose_readings.site", "group by")
    ]


def test_a_count_is_followed_by_what_decides_which_rows_count(folder: Path) -> None:
    events = made.pipeline_run(0)
    for event in events:
        for output in event.outputs or []:
            if output.name == made.DAYS[1]:
                assert output.facets is not None
                output.facets["columnLineage"].fields["time_in_range_pct"].inputFields = [  # type: ignore[attr-defined]
                    *made.input_fields([(made.READINGS, "glucose_mg_dl", "INDIRECT", "FILTER")])
                ]
    graph = graph_of(folder, events)
    node = graph.find(MART_COLUMN)
    up, down = graph.walk(node, Direction.UPSTREAM, 100), Direction.DOWNSTREAM
    assert names(graph, up)[-1] == "api/v1/entries.sgv"
    assert names(graph, graph.walk(graph.find("api/v1/entries.sgv"), down, 100))[-1] == MART_COLUMN
    # A column with values of its own does not drag its conditions in.
    other = graph.walk(graph.find("fact_glucose_readings.site"), down, 100)
    assert "duckdb:dim_glucose_date.time_in_range_pct" not in names(graph, other)


def test_what_decides_for_a_whole_table_is_told_when_asked_for(folder: Path) -> None:
    columns = {"site": "varchar", "time_in_range_pct": "double", "reading_count": "bigint"}
    events = made.pipeline_run(0, days_columns=columns)
    for event in events:
        for output in event.outputs or []:
            if output.name == made.DAYS[1]:
                assert output.facets is not None
                output.facets["columnLineage"].dataset = made.input_fields(  # type: ignore[attr-defined]
                    [(made.READINGS, "site", "INDIRECT", "GROUP_BY")]
                )
    graph = graph_of(folder, events)
    count = graph.find("duckdb:dim_glucose_date.reading_count")
    assert isinstance(count, ColumnKey)
    assert graph.is_made_of_none(count)
    assert graph.links(count, Direction.UPSTREAM, with_conditions=False) == []
    assert [(link.how, link.bond) for link in graph.links(count, Direction.UPSTREAM)] == [("group by", Bond.ROWS)]
    node = graph.find("duckdb:dim_glucose_date.time_in_range_pct")
    assert [link.bond for link in graph.links(node, Direction.UPSTREAM, with_conditions=False)] == [Bond.VALUE]
    told = lakehouse("show", "mart_glucose_overview.reading_count", "--upstream").stdout.splitlines()
    assert told[2] == "    └── duckdb:dim_glucose_date.reading_count¹ · DuckDB · copied"
    assert told[3].startswith("¹ A count of rows, or what the query itself says")
    assert "¹" not in lakehouse("show", MART_COLUMN).stdout
    assert "no other column¹" in lakehouse("show", "duckdb:dim_glucose_date.reading_count", "--upstream").stdout
    whole = lakehouse("show", "mart_glucose_overview.reading_count", "--upstream", "--conditions").stdout
    assert "fact_glucose_readings.site · DuckDB · condition: group by" in whole


def test_a_failed_run_hides_nothing_of_the_last_complete_one(folder: Path) -> None:
    graph = graph_of(folder, made.pipeline_run(0), made.pipeline_run(1, fails=True))
    mart = next(step for step in graph.steps.values() if step.key.name == "mart_glucose_overview")
    assert (mart.state, mart.error.splitlines()[0], mart.run_id) == ("FAIL", "no space left", made.run_id(0, 6))
    assert names(graph, graph.walk(graph.find(MART_COLUMN), Direction.UPSTREAM, 100))[-1] == "api/v1/entries.sgv"
    assert graph.datasets[DatasetKey(*made.MART)].written_at == made.BEGIN.replace(second=13)


def test_a_run_that_had_nothing_to_do_hides_nothing(folder: Path) -> None:
    idle = made.pipeline_run(1)
    for event in idle:
        event.outputs = []
        event.job.facets = {}
    no_columns = made.pipeline_run(2)
    for event in no_columns:
        for output in event.outputs or []:
            assert output.facets is not None
            del output.facets["columnLineage"]
    for later in (idle, no_columns):
        graph = graph_of(folder, *([made.pipeline_run(0)] if later is idle else []), later)
        assert len(names(graph, graph.walk(graph.find(MART_COLUMN), Direction.UPSTREAM, 100))) == 6
        model = next(step for step in graph.steps.values() if step.key.name == "dim_glucose_date")
        assert model.sql.startswith("select site")
        assert model.commit == "a" * 40
        assert graph.datasets[DatasetKey(*made.MART)].written_at == (
            made.BEGIN.replace(second=13) if later is idle else made.BEGIN.replace(hour=13, second=13)
        )


def test_the_newest_run_counts(folder: Path) -> None:
    changed = {"site": "varchar", "time_in_range_pct": "decimal"}
    graph = graph_of(
        folder, made.pipeline_run(0, is_unique=False), made.pipeline_run(1, rows=101, days_columns=changed)
    )
    readings = graph.datasets[DatasetKey(*made.READINGS)]
    assert (readings.row_count, readings.byte_count) == (101, 1010)
    assert [(check.name, check.is_passed) for check in readings.checks] == [("rows", True), ("unique", True)]
    assert [column.type for column in graph.datasets[DatasetKey(*made.DAYS)].columns] == ["varchar", "decimal"]
    assert readings.description.startswith("One row per")


def test_where_no_columns_are_told_whole_tables_are_followed(folder: Path) -> None:
    events = made.pipeline_run(0)
    for event in events:
        for output in event.outputs or []:
            if output.name == made.PUBLISHED[1]:
                assert output.facets is not None
                del output.facets["columnLineage"]
    graph = graph_of(folder, events)
    up = names(graph, graph.walk(graph.find(MART_COLUMN), Direction.UPSTREAM, 100))
    assert up[1:4] == [
        "postgres:dim_glucose_date.time_in_range_pct",
        "duckdb:dim_glucose_date",
        "fact_glucose_readings",
    ]
    down = names(graph, graph.walk(graph.find("fact_glucose_readings.glucose_mg_dl"), Direction.DOWNSTREAM, 100))
    assert down[1:] == [
        "duckdb:dim_glucose_date.time_in_range_pct",
        "postgres:dim_glucose_date",
        "mart_glucose_overview",
    ]


def test_a_circle_ends(folder: Path) -> None:
    a, b = (made.WAREHOUSE, "warehouse.x.a"), (made.WAREHOUSE, "warehouse.x.b")
    direct = "DIRECT"
    events = [
        made.event(
            RunState.COMPLETE,
            f"make {end[1]}",
            0,
            number,
            inputs=[made.source(begin), made.source(end)],
            outputs=[made.target(end, {"x": "int"}, 1, {"x": [(n, "x", direct, "IDENTITY") for n in (begin, end)]})],
        )
        for number, (begin, end) in enumerate(((a, b), (b, a)), start=1)
    ]
    graph = graph_of(folder, events)
    for name in ("a", "a.x"):
        for direction in Direction:
            walk = graph.walk(graph.find(name), direction, 100)
            assert names(graph, walk) == [name, name.replace("a", "b", 1), name]
            assert walk.branches[0].branches[0].is_repeated
    assert "</html>" in render(graph, made.BEGIN)


def test_what_a_person_types_is_found(folder: Path) -> None:
    graph = graph_of(folder, made.pipeline_run(0))
    mart = DatasetKey(*made.MART)
    for name in (
        "mart_glucose_overview",
        "marts.mart_glucose_overview",
        "MART_GLUCOSE_OVERVIEW",
        made.MART[1],
        f"{made.POSTGRES}/{made.MART[1]}",
    ):
        assert graph.find(name) == mart
        assert graph.find(f"{name}.site") == ColumnKey(mart, "site")
    assert graph.find("duckdb:dim_glucose_date") == DatasetKey(*made.DAYS)
    assert graph.find("api/v1/entries.sgv") == graph.find("entries.sgv") == ColumnKey(DatasetKey(*made.API), "sgv")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "dim_glucose_date",
            "dim_glucose_date can be each of: duckdb:dim_glucose_date, postgres:dim_glucose_date. Name one of them.",
        ),
        (
            "curated.dim_glucose_date.site",
            "can be each of: duckdb:dim_glucose_date.site, postgres:dim_glucose_date.site.",
        ),
        ("mart_glucose_overveiw", "knows no mart_glucose_overveiw. Near: mart_glucose_overview"),
        ("mart_glucose_overveiw.site", "Near: mart_glucose_overview.site, "),
        ("mart_glucose_overview.time_in_range", "has no such column; near: time_in_range_pct."),
        ("mart_glucose_overview.xyz", "mart_glucose_overview has the columns: site, time_in_range_pct."),
        ("time_in_range_pct", "A column is named so in: duckdb:dim_glucose_date.time_in_range_pct, mart_glucose_over"),
        ("overview", "Near: mart_glucose_overview"),
        ("zzz", "It has 6 tables; lakehouse lineage open shows them."),
        ("", "The lineage knows no"),
    ],
)
def test_what_is_not_there_or_not_clear_is_told(folder: Path, name: str, message: str) -> None:
    graph = graph_of(folder, made.pipeline_run(0))
    with pytest.raises(LineageError) as told:
        graph.find(name)
    assert message in str(told.value)


def test_short_names_are_as_short_as_they_can_be() -> None:
    keys = [
        DatasetKey("file", "/lake/raw/nightscout_entries"),
        DatasetKey("file", "/lake/processed/nightscout_entries"),
        DatasetKey("s3://bucket", "lake/raw/nightscout_profiles"),
        DatasetKey("duckdb:///w.duckdb", "w.staging.stg"),
        DatasetKey("duckdb:///other.duckdb", "w.staging.stg"),
        DatasetKey("nightscout", "api/v1/entries"),
    ]
    assert list(short_names(keys).values()) == [
        "raw/nightscout_entries",
        "processed/nightscout_entries",
        "nightscout_profiles",
        "duckdb:///w.duckdb/w.staging.stg",
        "duckdb:///other.duckdb/w.staging.stg",
        "api/v1/entries",
    ]


# --- the page -------------------------------------------------------------------------------------

_edges = strategies.integers(2, 14).flatmap(
    lambda count: strategies.tuples(
        strategies.just(count),
        strategies.lists(
            strategies.tuples(strategies.integers(0, count - 1), strategies.integers(0, count - 1)).filter(
                lambda edge: edge[0] != edge[1]
            ),
            unique=True,
            max_size=30,
        ),
    )
)


@settings(max_examples=60, deadline=None)
@given(_edges)
def test_every_table_and_line_has_its_place(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    count, lines = drawn
    layout = lay_out(count, lines)
    layer_of = {node: number for number, layer in enumerate(layout.layers) for node in layer}
    assert sorted(node for node in layer_of if node >= 0) == list(range(count))
    assert sum(len(layer) for layer in layout.layers) == len(layer_of)
    assert set(layout.paths) == set(lines)
    through = [node for path in layout.paths.values() for node in path[1:-1]]
    assert len(through) == len(set(through))
    for (source, target), path in layout.paths.items():
        assert (path[0], path[-1]) == (source, target)
        if layer_of[source] < layer_of[target]:
            assert all(layer_of[right] == layer_of[left] + 1 for left, right in pairwise(path))
    closes_a_circle = any(_reaches(target, source, lines) for source, target in lines)
    if not closes_a_circle:
        assert all(layer_of[source] < layer_of[target] for source, target in lines)


def _reaches(start: int, end: int, lines: list[tuple[int, int]]) -> bool:
    seen, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        waiting += [target for source, target in lines if source == here and target not in seen]
        seen.update(waiting)
    return end in seen


def test_lines_that_can_be_led_past_each_other_do_not_cross() -> None:
    layout = lay_out(6, [(0, 5), (1, 4), (2, 3)])
    place = {node: position for layer in layout.layers for position, node in enumerate(layer)}
    order = sorted((place[source], place[target]) for source, target in layout.paths)
    assert order == [(0, 0), (1, 1), (2, 2)]


def test_the_page_holds_no_address_and_cannot_be_broken_out_of(folder: Path) -> None:
    events = made.pipeline_run(0, sql="select '</script><script>alert(1)</script>' -- <!-- &")
    page = render(graph_of(folder, events), made.BEGIN)
    assert page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    for part in ("src=", "@import", "url(", "<link", "fetch(", "XMLHttpRequest"):
        assert part not in page
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    (sql,) = {step["sql"] for table in data["tables"] for step in table["steps"] if "alert" in step["sql"]}
    assert sql.startswith("select '</script><script>alert(1)</script>' -- <!-- & where")


# --- runs and what changed between them ------------------------------------------------------------


def changes(folder: Path, before: Any, after: Any) -> list[Change]:
    made.write([*before, *after], folder / "events.ndjson")
    log = EventLog(folder)
    runs = pipeline_runs(log.heads())
    return compare(*run_facts(log, (choose_run(runs, "previous"), choose_run(runs, "latest"))))


def test_two_runs_of_the_same_differ_in_nothing(folder: Path) -> None:
    assert changes(folder, made.pipeline_run(0), made.pipeline_run(1)) == []


def test_rows_code_and_columns_that_changed_are_told(folder: Path) -> None:
    found = changes(
        folder,
        made.pipeline_run(0),
        made.pipeline_run(
            1,
            rows=90,
            sql="select site,\navg(in_range_2) as time_in_range_pct\nfrom readings",
            commit="b" * 40,
            days_columns={"time_in_range_pct": "decimal", "sd": "double"},
        ),
    )
    assert [(each.kind, each.subject, each.before, each.after) for each in found] == [
        ("code", "git commit", "a" * 40, "b" * 40),
        ("code", "dim_glucose_date", "1 line removed", "1 line added"),
        ("rows", "fact_glucose_readings", "100 rows", "90 rows"),
        ("rows", "nightscout_entries", "100 rows in this run", "90 rows in this run"),
        ("schema", "duckdb:dim_glucose_date.sd", None, "double"),
        ("schema", "duckdb:dim_glucose_date.site", "varchar", None),
        ("schema", "duckdb:dim_glucose_date.time_in_range_pct", "double", "decimal"),
        ("schema", "postgres:dim_glucose_date.sd", None, "double"),
        ("schema", "postgres:dim_glucose_date.site", "varchar", None),
        ("schema", "postgres:dim_glucose_date.time_in_range_pct", "double", "decimal"),
        ("schema", "mart_glucose_overview.sd", None, "double"),
        ("schema", "mart_glucose_overview.site", "varchar", None),
        ("schema", "mart_glucose_overview.time_in_range_pct", "double", "decimal"),
    ]
    assert found[1].detail[1:3] == ("-avg(in_range) as time_in_range_pct", "+avg(in_range_2) as time_in_range_pct")
    assert found[2].detail == ("-10",)


def test_failures_failed_checks_and_other_inputs_are_told(folder: Path) -> None:
    after = made.pipeline_run(1, is_unique=False, fails=True)
    other = ("file", "/data/drop")
    for event in after:
        event.inputs = [made.source(other) if each.name == made.API[1] else each for each in event.inputs or []]
    found = changes(folder, made.pipeline_run(0), after)
    assert [(each.kind, each.subject, each.before, each.after) for each in found] == [
        ("steps", "mart_glucose_overview", "no failure", "failed: no space left"),
        ("steps", "nightscout_pipeline", "no failure", "failed: no message"),
        ("inputs", "drop", None, "read"),
        ("inputs", "api/v1/entries", "read", None),
        ("checks", "fact_glucose_readings: unique of site", "passed", "failed"),
    ]


def test_a_schema_without_types_changes_nothing(folder: Path) -> None:
    untyped = {"site": "", "time_in_range_pct": ""}
    assert changes(folder, made.pipeline_run(0), made.pipeline_run(1, days_columns=untyped)) == []
    graph = build_graph(EventLog(folder).events())
    assert [column.type for column in graph.datasets[DatasetKey(*made.DAYS)].columns] == ["varchar", "double"]


def test_steps_of_one_run_only_are_told(folder: Path) -> None:
    after = [event for event in made.pipeline_run(1) if event.job.name != "published_dim_glucose_date"]
    found = changes(folder, made.pipeline_run(0), after)
    assert found[0] == Change("steps", "published_dim_glucose_date", "ran", None)
    assert [each.kind for each in found] == ["steps", "inputs"]


def test_runs_are_put_together_from_parent_to_parent(folder: Path) -> None:
    """dbt's models are parts of a step, which is a part of the run; no event need name the run itself."""
    events = made.pipeline_run(0, fails=True)
    for event in events[3:]:
        parent = event.run.facets["parent"] if event.run.facets and "parent" in event.run.facets else None
        if parent is not None:
            parent.run = replace_run(parent.run, made.run_id(0, 1))  # type: ignore[attr-defined]
    made.write(events[1:-1], folder / "events.ndjson")
    (run,) = pipeline_runs(EventLog(folder).heads())
    assert (run.run_id, run.job, run.state, run.step_count) == (made.run_id(0), "", "FAIL", 6)
    assert run.failed_steps == ("mart_glucose_overview",)
    assert (run.ended_at - run.started_at).total_seconds() == 11


def replace_run(run: Any, run_id: str) -> Any:
    return type(run)(runId=run_id)


def test_a_run_that_has_not_ended_is_running(folder: Path) -> None:
    made.write(made.pipeline_run(0)[:4], folder / "events.ndjson")
    (run,) = pipeline_runs(EventLog(folder).heads())
    assert (run.state, run.step_count, run.job) == ("RUNNING", 2, "nightscout_pipeline")


def test_what_a_rotated_file_brings_along_is_no_run(folder: Path) -> None:
    carried = [event for event in made.pipeline_run(0) if event.eventType is RunState.COMPLETE and event.outputs]
    graph = graph_of(folder, carried, made.pipeline_run(1)[:4])
    runs = pipeline_runs(EventLog(folder).heads())
    assert [run.run_id for run in runs] == [made.run_id(1)]
    assert names(graph, graph.walk(graph.find(MART_COLUMN), Direction.UPSTREAM, 100))[-1] == "api/v1/entries.sgv"


def test_the_newest_runs_are_found_without_reading_the_others(folder: Path) -> None:
    for number in range(4):
        made.write(made.pipeline_run(number), folder / "events.ndjson")
    log = EventLog(folder)
    read = list[str]()

    def heads() -> Iterator[EventHead]:
        for head in log.heads():
            read.append(head.run.run_id)
            yield head

    runs = pipeline_runs(heads(), most=2)
    assert [run.run_id for run in runs] == [made.run_id(3), made.run_id(2)]
    assert [run.step_count for run in runs] == [6, 6]
    assert len(read) == 2 * 14
    assert [len(facts.writes) for facts in run_facts(log, runs)] == [5, 5]


def test_runs_are_chosen_by_word_or_beginning(folder: Path) -> None:
    for number in (0x1A, 0x1B, 0x2C):
        made.write(made.pipeline_run(number), folder / "events.ndjson")
    runs = pipeline_runs(EventLog(folder).heads())
    assert [run.run_id[:8] for run in runs] == ["0000002c", "0000001b", "0000001a"]
    assert choose_run(runs, "LATEST") == runs[0]
    assert choose_run(runs, "previous") == runs[1]
    assert choose_run(runs, "0000001A") == runs[2]
    with pytest.raises(LineageError, match="2 runs begin with 0000001"):
        choose_run(runs, "0000001")
    with pytest.raises(LineageError, match=r"No run begins with f.*0000002c"):
        choose_run(runs, "f")
    with pytest.raises(LineageError, match="There are not two runs to compare, only 1"):
        choose_run(runs[:1], "previous")
    # A check in between is no run of the pipeline, unless it is asked for.
    states = (RunState.START, RunState.COMPLETE)
    made.write([made.event(state, "lakehouse_check", 0x3D, 0) for state in states], folder / "events.ndjson")
    runs = pipeline_runs(EventLog(folder).heads())
    assert [run.run_id[:8] for run in runs][:2] == ["0000003d", "0000002c"]
    assert [choose_run(runs, word).run_id[:8] for word in ("latest", "previous")] == ["0000002c", "0000001b"]
    assert choose_run(runs, "0000003d").is_command
    whole = pipeline_runs(EventLog(folder).heads(), most=2, with_commands=False)
    assert [run.run_id[:8] for run in whole] == ["0000002c", "0000001b"]
    assert replace(runs[0], job="x") != runs[0]


# --- the commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["show", "x"], ["open"], ["runs"], ["diff"]])
def test_before_the_first_run_the_commands_say_so(command: list[str], folder: Path) -> None:
    assert "There is no lineage yet. Run the pipeline first: make run." in said(lakehouse(*command))
    folder.mkdir(parents=True)
    (folder / "events.ndjson").touch()
    assert "There is no lineage yet." in said(lakehouse(*command))


def test_show_prints_both_ways_or_one(folder: Path) -> None:
    made.write(made.pipeline_run(0), folder / "events.ndjson")
    both = lakehouse("show", "fact_glucose_readings.glucose_mg_dl")
    assert both.exit_code == 0
    assert both.stdout.splitlines() == [
        "fact_glucose_readings.glucose_mg_dl comes from",
        "└── nightscout_entries.glucose_mg_dl · Files · copied",
        "    └── api/v1/entries.sgv · Nightscout · computed",
        "fact_glucose_readings.glucose_mg_dl goes into",
        "└── duckdb:dim_glucose_date.time_in_range_pct · DuckDB · aggregated",
        "    └── postgres:dim_glucose_date.time_in_range_pct · Postgres · copied",
        "        └── mart_glucose_overview.time_in_range_pct · Postgres · copied",
    ]
    up = lakehouse("show", "fact_glucose_readings", "--upstream", "--depth", "1").stdout.splitlines()
    assert up == [
        "fact_glucose_readings comes from",
        "└── nightscout_entries · Files · 100 rows written · 2026-11-25 12:00 UTC · more follows",
    ]
    assert "nothing that the lineage knows" in lakehouse("show", "api/v1/entries", "--upstream").stdout
    assert "knows no nowhere" in said(lakehouse("show", "nowhere"))


def test_show_as_json_is_for_programs(folder: Path) -> None:
    made.write(made.pipeline_run(0), folder / "events.ndjson")
    told = json.loads(lakehouse("show", MART_COLUMN, "--upstream", "--format", "json").stdout)
    assert told["name"] == MART_COLUMN
    assert "downstream" not in told
    (nearest,) = told["upstream"]["next"]
    assert nearest == nearest | {
        "namespace": made.POSTGRES,
        "dataset": made.PUBLISHED[1],
        "column": "time_in_range_pct",
        "how": "copied",
        "bond": "value",
        "step": "mart_glucose_overview",
    }


def test_open_writes_the_page_and_opens_it_at_what_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) is None)
    made.write(made.pipeline_run(0), folder / "events.ndjson")
    path = folder / "lineage.html"
    assert lakehouse("open", "--no-browser").stdout.strip() == str(path)
    assert opened == []
    lakehouse("open", MART_COLUMN)
    assert opened == [f"{path.as_uri()}#mart_glucose_overview.time_in_range_pct"]
    assert "%20" in opened[0]
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert "No browser could be opened" in lakehouse("open").stdout


def test_runs_and_diff_print_what_there_is(folder: Path) -> None:
    made.write(made.pipeline_run(0), folder / "events.ndjson")
    made.write(made.pipeline_run(1, rows=90, fails=True, is_unique=False), folder / "events.ndjson")
    listed = lakehouse("runs").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["run", "00000001", "00000000"]
    assert "mart_glucose_overview" in listed[1]
    assert len(lakehouse("runs", "--limit", "1").stdout.splitlines()) == 2
    plain = json.loads(lakehouse("runs", "--format", "json").stdout)
    assert [(run["run_id"], run["state"], run["steps"]) for run in plain] == [
        (made.run_id(1), "FAIL", 6),
        (made.run_id(0), "COMPLETE", 6),
    ]
    told = lakehouse("diff").stdout
    assert "  fact_glucose_readings: 100 rows → 90 rows (-10)" in told.splitlines()
    assert "  fact_glucose_readings: unique of site: passed → failed" in told.splitlines()
    assert "  mart_glucose_overview: no failure → failed: no space left" in told.splitlines()
    kinds = {each["kind"] for each in json.loads(lakehouse("diff", "--format", "json").stdout)["changes"]}
    assert kinds == {"steps", "rows", "checks"}
    made.write(
        [event for event in made.pipeline_run(2) if not event.job.name.startswith("published")],
        folder / "events.ndjson",
    )
    assert "  published_dim_glucose_date: ran → did not run" in lakehouse("diff", "00000000", "latest").stdout
    same = lakehouse("diff", "00000001", "00000001").stdout
    # What fails still is told, though nothing has changed.
    assert "fact_glucose_readings: unique of site: failed → failed" in same
    assert "Rows" not in same
    whole = lakehouse("diff", "00000000", "00000000").stdout
    assert whole.splitlines()[-1] == "Nothing that the lineage tells has changed."
    assert "No run begins with 7" in said(lakehouse("diff", "7", "latest"))
