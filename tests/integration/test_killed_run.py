"""A run that is killed for good, at any point: no reader sees half of it, and the next run makes good for it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from nightscout_lakehouse.demo import DemoServer, DemoStore, Person
from nightscout_lakehouse.demo.therapy import Therapy
from nightscout_lakehouse.lib.run_journal import RunJournal

pytestmark = [pytest.mark.e2e, pytest.mark.postgres]

DAYS = 40
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
    shutil.rmtree(parent)


def start(home: Path, url: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"LAKEHOUSE_HOME": str(home), "NIGHTSCOUT_URL": url, "NIGHTSCOUT_WINDOW_DAYS": "10"}
    return subprocess.Popen(
        [sys.executable, "-m", "nightscout_lakehouse.cli", "run"], env=environment, stdout=subprocess.DEVNULL
    )


def kill_when(run: subprocess.Popen[bytes], is_reached: Callable[[], bool]) -> None:
    """Kill a run in the middle; it has to be running until then."""
    deadline = time.monotonic() + 200
    while not is_reached():
        assert run.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL


def contents(home: Path) -> dict[str, list[tuple[Any, ...]]]:
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as warehouse:
        warehouse.execute("set TimeZone = 'UTC'")
        return {
            table: warehouse.execute(f"select {columns} from {table} order by all").fetchall()
            for table, columns in TABLES.items()
        }


# Five runs of the command, each with its start-up.
@pytest.mark.timeout(900)
def test_a_lake_whose_runs_were_killed_equals_one_whose_run_was_not(folder: Path) -> None:
    person, now = Person(seed=11), datetime.now(UTC)
    entries = list(person.entries(now - timedelta(days=DAYS), now))
    killed, whole = folder / "killed", folder / "whole"
    with DemoServer(DemoStore(entries, profiles=Therapy(person).profiles())) as server:
        kill_when(start(killed, server.url), lambda: len(list(killed.glob("lake/raw/*/*/batch=*"))) >= 2)
        kill_when(start(killed, server.url), lambda: bool(list(killed.glob("lake/processed/**/entries.parquet"))))
        kill_when(start(killed, server.url), (killed / "postgres" / "port").is_file)
        for home in (killed, whole):
            assert start(home, server.url).wait() == 0
    runs = RunJournal(killed / "runs.sqlite").runs()
    assert [run.status for run in runs] == ["success", "killed", "killed", "killed"]
    found, expected = contents(killed), contents(whole)
    assert len(expected["curated.fact_glucose_readings"]) > DAYS * 200
    for table in TABLES:
        assert found[table] == expected[table], table
