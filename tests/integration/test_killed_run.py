"""A run that is killed for good, at any point: no reader sees half of it, and the next run makes good for it."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import duckdb
import pytest

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.demo import DemoServer, DemoStore, Person
from nightscout_lakehouse.demo.therapy import Therapy
from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import ingest_sites
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.lineage.journal import read_lines
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.run_journal import RunJournal
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import load_sites

pytestmark = [pytest.mark.e2e, pytest.mark.postgres]

DAYS = 15
# What a run imports, apart from the definitions: reading them parses dbt's models in threads, which no fork survives.
IMPORTED_ONCE = ["nightscout_lakehouse.cli", "dagster_dbt", "dbt.cli.main", "great_expectations", "pandas", "sqlglot"]
TABLES = {
    "lake.nightscout_entries": "* exclude (batch, document_number, fetched_at, first_fetched_at)",
    "intermediate.int_glucose_enriched": "*",
    "curated.fact_glucose_readings": "*",
    "curated.dim_glucose_date": "*",
}


@pytest.fixture
def folder() -> Iterator[Path]:
    parent = Path(tempfile.mkdtemp(prefix="lakehouse-test-"))
    parent.chmod(0o711)
    yield parent
    # There is one where the test has failed.
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    shutil.rmtree(parent)


def run(environment: dict[str, str]) -> None:
    """What `lakehouse run` does, in a process that was forked for it."""
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    app(["run"])


def start(home: Path, url: str) -> ForkServerProcess:
    """A run in a process of its own: forked from one that has imported all that it needs and has done nothing yet."""
    environment = {
        "LAKEHOUSE_HOME": str(home),
        "NIGHTSCOUT_URL": url,
        "NIGHTSCOUT_WINDOW_DAYS": "4",
        "OPENLINEAGE_DISABLED": "false",
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    started = context.Process(target=run, args=(environment,))
    started.start()
    return started


def kill_when(run: ForkServerProcess, is_reached: Callable[[], bool]) -> None:
    """Kill a run in the middle; it has to be running until then."""
    deadline = time.monotonic() + 200
    while not is_reached():
        assert run.is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    run.kill()
    run.join(60)
    assert run.exitcode == -signal.SIGKILL


def complete(run: ForkServerProcess) -> None:
    run.join(200)
    assert run.exitcode == 0


def fill_in_one_go(settings: Settings) -> None:
    """Fill a lake and build its models, with nothing in between."""
    sites, lake = load_sites(settings), Lake.open(settings)
    for collection in COLLECTIONS:
        ingest_sites(sites, settings, lake, collection=collection)
        process_sites(sites, settings, lake, collection)
    DbtProject(settings).build("duckdb", ["+dim_glucose_date"], data_tests=False)


def contents(home: Path) -> dict[str, list[tuple[Any, ...]]]:
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as warehouse:
        warehouse.execute("set TimeZone = 'UTC'")
        return {
            table: warehouse.execute(f"select {columns} from {table} order by all").fetchall()
            for table, columns in TABLES.items()
        }


def ends(home: Path) -> list[str]:
    """How each run ended, in the order in which they began; every step that began has ended."""
    states: dict[tuple[str, str], list[str]] = {}
    for line in read_lines(home / "lineage" / "events.ndjson"):
        event = json.loads(line)
        states.setdefault((event["job"]["name"], event["run"]["runId"]), []).append(event["eventType"])
    assert all(len(each) == 2 and each[0] == "START" for each in states.values()), states
    return [each[1] for (job, _), each in states.items() if job == "nightscout_pipeline"]


# Four runs of the command.
@pytest.mark.timeout(900)
def test_a_lake_whose_runs_were_killed_equals_one_whose_run_was_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person, now = Person(seed=11), datetime.now(UTC)
    entries = list(person.entries(now - timedelta(days=DAYS), now))
    killed, whole = folder / "killed", folder / "whole"
    with DemoServer(DemoStore(entries, profiles=Therapy(person).profiles())) as server:
        kill_when(start(killed, server.url), lambda: len(list(killed.glob("lake/raw/*/*/batch=*"))) >= 2)
        kill_when(start(killed, server.url), lambda: bool(list(killed.glob("lake/processed/**/entries.parquet"))))
        kill_when(start(killed, server.url), (killed / "postgres" / "port").is_file)
        complete(start(killed, server.url))
        monkeypatch.setenv("LAKEHOUSE_HOME", str(whole))
        monkeypatch.setenv("NIGHTSCOUT_URL", server.url)
        fill_in_one_go(load_settings())
    runs = RunJournal(killed / "runs.sqlite").runs()
    assert [run.status for run in runs] == ["success", "killed", "killed", "killed"]
    found, expected = contents(killed), contents(whole)
    assert len(expected["curated.fact_glucose_readings"]) > DAYS * 200
    for table in TABLES:
        assert found[table] == expected[table], table
    # The lineage of each run has an end, which the next run wrote for those that were killed.
    assert ends(killed) == ["ABORT", "ABORT", "ABORT", "COMPLETE"]
