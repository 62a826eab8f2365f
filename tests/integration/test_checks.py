"""Law 5 without losing a check: a tick tests what changed, a full check everything, no fault is forgotten."""

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lineage_events
import pytest
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.lib.data_tests import models_that_passed
from nightscout_lakehouse.lib.dbt_project import DbtBuildResult, DbtError, DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES, TREATMENTS, Collection
from nightscout_lakehouse.lib.partition_counts import counts_query, live_rows
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.summary import CollectionOverview, collection_overview
from nightscout_lakehouse.lib.warehouse import connect, open_warehouse

MODELS = ["tag:stg", "tag:int", "tag:curated"]
READINGS = ["stg_nightscout_glucose", "int_glucose_enriched", "fact_glucose_readings"]
SITE = Site("berlin", "http://127.0.0.1:1", timezone="Europe/Berlin")
FETCHED_AT = datetime(2026, 11, 20, tzinfo=UTC)
START = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)
OLD_DAY = "2026-10-01"


def entry(number: int, days: float, sgv: int | str = 120, *, is_valid: bool = True) -> str:
    moment = START + timedelta(days=days)
    document = {"type": "sgv", "sgv": sgv, "date": int(moment.timestamp() * 1000), "device": "sensor"}
    return json.dumps({"_id": f"{number:024x}", "isValid": is_valid, **document})


def land(settings: Settings, lake: Lake, batch: int, *texts: str) -> None:
    write_batch(lake, SITE.name, batch, documents_from_json(list(texts)), FETCHED_AT)
    process_sites([SITE], settings, lake)


def execute(settings: Settings, statement: str) -> None:
    with open_warehouse(settings) as warehouse:
        warehouse.execute(statement)


def failed(error: pytest.ExceptionInfo[DbtError]) -> set[str]:
    result = error.value.result
    assert isinstance(result, DbtBuildResult)
    return {node.name.split("_fact_")[0] for node in result.nodes if node.status == "fail"}


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a month of readings, one a day, built and tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("tested")))
        settings = load_settings()
        land(settings, Lake.open(settings), 1, *(entry(number, number) for number in range(31)))
        DbtProject(settings).build("duckdb", MODELS)
    return settings.home


@pytest.fixture
def project(tested: Path, settings: Settings) -> DbtProject:
    """That lakehouse, for one test."""
    shutil.copytree(tested, settings.home, dirs_exist_ok=True)
    return DbtProject(settings)


def test_a_tick_tests_what_changed_and_a_full_check_finds_the_rest(
    project: DbtProject, settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "false")
    for name in ("curated.fact_glucose_readings", "intermediate.int_glucose_enriched"):
        execute(settings, f"update {name} set glucose_range = 'none' where reading_date = '{OLD_DAY}'")
    land(settings, lake, 2, entry(100, 31))
    project.build("duckdb", READINGS)
    project.check(full=False)
    with pytest.raises(DbtError, match="accepted_values") as error:
        project.check(full=True)
    assert failed(error) == {"accepted_values"}
    # It is not forgotten: every tick fails, until the day is computed again.
    land(settings, lake, 3, entry(101, 31.1))
    with pytest.raises(DbtError, match="accepted_values"):
        project.build("duckdb", READINGS)
    told = CliRunner().invoke(app, ["check"])
    assert told.exit_code == 1
    assert "fail: accepted_values" in told.stderr
    assert "tests passed on what was not tested yet" in told.stdout
    ended = lineage_events.ends(settings.lineage_dir)
    assert (ended["lakehouse_check"], ended["fact_glucose_readings.checks"]) == ("FAIL", "FAIL")
    land(settings, lake, 4, entry(102, 0.1))
    project.build("duckdb", READINGS)
    told = CliRunner().invoke(app, ["check", "--full"])
    assert (told.exit_code, told.stderr) == (0, "")
    passed, number = re.findall(r"(\d+) of (\d+) tests passed on the whole history", told.stdout)[0]
    assert passed == number
    assert int(number) > 50
    ended = lineage_events.ends(settings.lineage_dir)
    assert set(ended.values()) == {"COMPLETE"}
    assert {"lakehouse_check", "fact_glucose_readings.checks", "dim_glucose_date.checks"} <= ended.keys()


def test_without_a_warehouse_there_is_nothing_to_check() -> None:
    told = CliRunner().invoke(app, ["check", "--full"])
    assert told.exit_code == 1
    assert "There is nothing to check yet. Run the pipeline first." in told.stderr


def test_a_fault_on_a_touched_day_fails_that_tick_and_the_next(
    project: DbtProject, settings: Settings, lake: Lake
) -> None:
    # As if the model had lost a reading of a day that it says it has computed.
    land(settings, lake, 2, entry(100, 0.1))
    project.build("duckdb", READINGS)
    execute(settings, "delete from ops.checks")
    execute(settings, f"delete from curated.fact_glucose_readings where entry_id = 'berlin/{100:024x}'")
    for _ in range(2):
        with pytest.raises(DbtError, match="every_staged_reading_counts"):
            project.build("duckdb", READINGS)
    land(settings, lake, 3, entry(101, 0.2))
    project.build("duckdb", READINGS)


def test_a_warehouse_that_was_lost_is_tested_whole(project: DbtProject, settings: Settings, lake: Lake) -> None:
    settings.warehouse_path.unlink()
    land(settings, lake, 2, entry(100, 31))
    project.build("duckdb", MODELS, data_tests=False)
    # No change names this day any more, and yet it is tested.
    execute(settings, f"update curated.fact_glucose_readings set glucose_range = '' where reading_date = '{OLD_DAY}'")
    with pytest.raises(DbtError, match="accepted_values"):
        project.check(full=True)
    with pytest.raises(DbtError, match="accepted_values"):
        project.build("duckdb", READINGS)
    project.build("duckdb", READINGS, full_refresh=True)
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        behind = warehouse.execute(
            "select watermarks.consumer from ops.watermarks inner join ops.checks on consumer = model"
            " where checks.change_seq < watermarks.change_seq"
        ).fetchall()
        tested = warehouse.execute("select count(*) from ops.checks").fetchall()[0][0]
    assert behind == []
    assert tested > 10


def test_rows_without_a_day_are_found_at_every_tick(project: DbtProject, settings: Settings, lake: Lake) -> None:
    execute(settings, f"update curated.dim_glucose_date set reading_date = null where reading_date = '{OLD_DAY}'")
    land(settings, lake, 2, entry(100, 31))
    with pytest.raises(DbtError, match="one_row_per_dim_glucose_date_site__reading_date") as failed:
        project.build("duckdb", [*READINGS, "dim_glucose_date"])
    log = settings.dbt_dir / "logs" / "dbt.log"
    assert failed.value.hint == f"The details are in {log}."
    assert "one_row_per_dim_glucose_date_site__reading_date" in log.read_text()


def test_a_model_passes_only_with_all_of_its_tests() -> None:
    manifest = {
        "nodes": {
            "model.a": {"resource_type": "model", "name": "a"},
            "model.b": {"resource_type": "model", "name": "b"},
            "model.untested": {"resource_type": "model", "name": "untested"},
            "test.a": {"resource_type": "test", "depends_on": {"nodes": ["model.a"]}},
            "test.both": {"resource_type": "test", "depends_on": {"nodes": ["model.a", "model.b"]}},
        }
    }
    assert models_that_passed(manifest, {"test.a", "test.both"}) == ["a", "b"]
    assert models_that_passed(manifest, {"test.a"}) == []
    assert models_that_passed(manifest, {"test.both"}) == ["b"]


def test_the_counts_of_partitions_are_those_of_their_rows(settings: Settings, lake: Lake) -> None:
    land(settings, lake, 1, *(entry(number, number) for number in range(40)), entry(50, 1, "HIGH"))
    # An edit, a move to another month, a deletion, a partition that becomes empty, a document that is refused.
    land(settings, lake, 2, entry(1, 1, 90), entry(2, 35), entry(3, 3, is_valid=False), entry(50, 1, 100))
    land(settings, lake, 3, entry(60, 300, "LOW"))

    def counted() -> list[tuple[object, ...]]:
        with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
            query = "select * exclude (collection, site) from ops.partitions where collection = 'nightscout_entries'"
            return warehouse.execute(f"{query} order by all").fetchall()

    def shown(collection: Collection) -> CollectionOverview:
        with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
            return collection_overview(warehouse, collection)

    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        view = "(select * from lake.nightscout_entries)"
        expected = warehouse.execute(f"from ({counts_query(ENTRIES, view)}) order by all").fetchall()
        live = warehouse.execute(
            "select count(*), min(reading_timestamp), max(reading_timestamp) from lake.nightscout_entries"
            " where kind = 'sgv' and not is_deleted and not is_duplicate"
        ).fetchall()[0]
        found = live_rows(warehouse, ENTRIES.name)
    assert counted() == expected
    assert (found.row_count, found.first_time, found.last_time) == live
    overview = shown(ENTRIES)
    assert (overview.live_rows, overview.first_time, overview.last_time) == live
    assert sum(overview.rows_by_kind.values()) == sum(row[4] for row in expected)
    assert sum(overview.quarantine_by_reason.values()) == overview.rows_by_kind["quarantined"] == 1
    assert overview.preview.count("\n") == 6
    # A warehouse that was lost, or is of an older version, counts the files once.
    execute(settings, "delete from ops.partitions")
    land(settings, lake, 4)
    assert counted() == expected
    assert shown(TREATMENTS).live_rows == 0
