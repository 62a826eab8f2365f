"""Small raw files into few: nothing is lost, a reader sees each row once, new batches get numbers of their own."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_processing import SITE, entry, land, rows
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.demo import DemoServer, DemoStore, Person
from nightscout_lakehouse.lib.care.compaction import compact
from nightscout_lakehouse.lib.errors import LakeError
from nightscout_lakehouse.lib.ingestion import ingest_sites
from nightscout_lakehouse.lib.lake import Lake, processing_state_file, raw_files, raw_folder
from nightscout_lakehouse.lib.processing import all_batches, pending_batches, process_sites
from nightscout_lakehouse.lib.quality.conservation import compare_with_raw_files
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site

COLUMNS = (
    "nightscout_id, glucose_mg_dl, batch, document_number, is_deleted, is_duplicate, quarantine_reason, fetched_at"
)


@pytest.fixture
def folder(settings: Settings, lake: Lake) -> Path:
    """Seven batches of a site, with an edit and a document that is refused; the last one is not processed yet."""
    for number in range(1, 7):
        land(lake, number, [entry(number), entry(number + 1, sgv=100 + number), entry(50 + number, sgv=5)])
        if number % 2:
            process_sites([SITE], settings, lake)
    process_sites([SITE], settings, lake)
    land(lake, 7, [entry(90)])
    return Path(lake.root, raw_folder("anna"))


def contents(lake: Lake) -> list[dict[str, object]]:
    """The rows of all raw files, in the order of their batches."""
    return [row for file in raw_files(lake, "anna") for row in pq.read_table(Path(lake.root, file.path)).to_pylist()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet"))


def test_processed_files_become_one_and_nothing_is_lost(settings: Settings, lake: Lake, folder: Path) -> None:
    before, processed = contents(lake), rows(settings, COLUMNS)
    (planned,) = compact(settings, dry_run=True)
    assert (planned.files_before, planned.files_after) == (7, 2)
    assert len(names(folder)) == 7
    (done,) = compact(settings)
    assert (done.files_before, done.files_after) == (7, 2)
    assert done.bytes_after < done.bytes_before
    assert names(folder) == ["batch=00000001-00000006.parquet", "batch=00000007.parquet"]
    assert contents(lake) == before
    assert all_batches(lake, "anna") == [1, 2, 3, 4, 5, 6, 7]
    assert pending_batches(lake, "anna") == [7]
    assert compact(settings) == []

    process_sites([SITE], settings, lake)
    found = compare_with_raw_files(settings, lake)
    assert (found.batches, found.unaccounted, found.faults) == (7, 0, ())
    assert set(processed) < set(rows(settings, COLUMNS))


def test_everything_is_built_again_from_files_of_many_batches(settings: Settings, lake: Lake, folder: Path) -> None:
    process_sites([SITE], settings, lake)
    before = rows(settings, COLUMNS)
    compact(settings)
    land(lake, 8, [entry(91)])
    shutil.rmtree(Path(lake.root, "processed"))
    settings.warehouse_path.unlink()
    # As if a first attempt had been killed after the first file.
    lake.write_json(processing_state_file("anna"), {"processed_batch": 0, "rebuilt_until": 8})
    assert pending_batches(lake, "anna") == [1, 2, 3, 4, 5, 6, 7, 8]
    # While it is under way, nothing is put together.
    assert compact(settings) == []
    process_sites([SITE], settings, lake)
    assert set(before) < set(rows(settings, COLUMNS))
    assert not compare_with_raw_files(settings, lake).faults
    land(lake, 9, [entry(92)])
    assert pending_batches(lake, "anna") == [9]


def test_a_killed_compaction_is_seen_by_nobody_and_made_good(settings: Settings, lake: Lake, folder: Path) -> None:
    parts = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    before = contents(lake)
    compact(settings)
    for name in ("batch=00000002.parquet", "batch=00000006.parquet"):
        (folder / name).write_bytes(parts[name])
    assert contents(lake) == before
    assert not compare_with_raw_files(settings, lake).faults
    (done,) = compact(settings)
    assert (done.files_before, done.files_after) == (4, 2)
    assert names(folder) == ["batch=00000001-00000006.parquet", "batch=00000007.parquet"]

    # What is not in the large file is not removed.
    (folder / "batch=00000003.parquet").write_bytes(parts["batch=00000004.parquet"])
    with pytest.raises(LakeError, match="do not say the same"):
        compact(settings)
    assert "batch=00000003.parquet" in names(folder)


def test_what_is_read_afterwards_gets_a_number_of_its_own(settings: Settings, lake: Lake) -> None:
    store = DemoStore.of(Person(seed=3), days=2)
    with DemoServer(store) as server:
        site = Site("anna", server.url, timezone="Europe/Berlin")
        ingest_sites([site], settings, lake)
        process_sites([site], settings, lake)
        first = all_batches(lake, "anna")
        # What `quarantine retry` lands does not move the state of reading.
        land(lake, first[-1] + 1, [entry(1)])
        process_sites([site], settings, lake)
        compact(settings)
        assert len(raw_files(lake, "anna")) == 1
        for lost in (None, raw_folder("anna") + "/state.json"):
            if lost:
                lake.delete(lost)
            last = all_batches(lake, "anna")[-1]
            moment = datetime.now(UTC) - timedelta(hours=last)
            date_ms = int(moment.timestamp() * 1000)
            store.put({"_id": f"{last:024x}", "type": "sgv", "sgv": 222, "date": date_ms, "device": "other"})
            (report,) = ingest_sites([site], settings, lake)
            assert report.landed > 0
            assert report.batches[0] == last + 1
            process_sites([site], settings, lake)
    assert not compare_with_raw_files(settings, lake).faults


def test_the_command_says_what_became_of_what(folder: Path) -> None:
    said = CliRunner().invoke(app, ["compact", "--dry-run"])
    assert said.output.startswith("anna, nightscout_entries: 7 files would become 2")
    said = CliRunner().invoke(app, ["compact"])
    assert "7 files became 2" in said.output
    assert "nothing to put together" in CliRunner().invoke(app, ["compact"]).output
