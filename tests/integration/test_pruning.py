"""Old raw files into an archive: never without a verified rebuild, and each batch is at every moment somewhere."""

import io
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.demo import DemoServer, DemoStore, Person
from nightscout_lakehouse.lib.care import pruning
from nightscout_lakehouse.lib.care.backup import back_up
from nightscout_lakehouse.lib.care.compaction import compact
from nightscout_lakehouse.lib.care.forget import forget, survey
from nightscout_lakehouse.lib.care.pruning import bring_back, plan_pruning, prune
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.ingestion import ingest_sites, write_batch
from nightscout_lakehouse.lib.lake import (
    RAW_SCHEMA,
    Lake,
    archives_file,
    batch_file,
    last_batch,
    load_pruned,
    partition_file,
    processing_state_file,
    pruned_file,
    raw_files,
    raw_folder,
)
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES, TREATMENTS, Collection
from nightscout_lakehouse.lib.pipeline_report import print_conservation
from nightscout_lakehouse.lib.processing import pending_batches, process_sites
from nightscout_lakehouse.lib.quality.conservation import compare_with_raw_files
from nightscout_lakehouse.lib.quality.frames import raw_frame
from nightscout_lakehouse.lib.quality.quarantine import Choice, retry_refused
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect

ANNA = Site("anna", "http://127.0.0.1:1", timezone="Europe/Berlin")
BERTA = Site("berta-k", "http://127.0.0.1:1", timezone="America/Denver")
NOW = datetime.now(UTC).replace(microsecond=0)
FIRST = NOW - timedelta(days=760)
OLD, OLDER = NOW - timedelta(days=500), NOW - timedelta(days=700)
RECENT = NOW - timedelta(days=10)


def entry(number: int, **changes: Any) -> str:
    moment = FIRST + timedelta(minutes=5 * number)
    document = {"_id": f"{number:024x}", "type": "sgv", "sgv": 60 + number % 150, "device": "sensor"}
    return json.dumps(document | {"date": int(moment.timestamp() * 1000)} | changes)


def land(
    lake: Lake, number: int, documents: Sequence[str], fetched_at: datetime, collection: Collection = ENTRIES
) -> None:
    write_batch(lake, "anna", number, documents_from_json(documents), fetched_at, collection)


def land_deletions(lake: Lake, number: int, deleted: Sequence[int], fetched_at: datetime, site: str = "anna") -> None:
    rows = [
        {
            "batch": number,
            "document_number": place,
            "operation": "delete",
            "document_id": f"{each:024x}",
            "known_month": f"{FIRST + timedelta(minutes=5 * each):%Y-%m}",
            "fetched_at": fetched_at,
        }
        for place, each in enumerate(deleted, start=1)
    ]
    lake.write_parquet(batch_file(site, number), pa.Table.from_pylist(rows, schema=RAW_SCHEMA))


def processed(lake: Lake, site: str = "anna") -> list[tuple[Any, ...]]:
    """All rows in use of a site."""
    source = f"read_parquet('{lake.url}/processed/{{}}/kind=*/site={site}/month=*/*.parquet', hive_partitioning = true)"
    with duckdb.connect() as engine:
        return [
            row
            for collection in (ENTRIES, TREATMENTS)
            for row in engine.execute(f"select * from {source.format(collection.name)} order by all").fetchall()
        ]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("batch=*.parquet"))


def everywhere(lake: Lake, archive: Path, site: str = "anna") -> list[dict[str, Any]]:
    """The rows of all raw files of the lake and the archive, each counted once."""
    paths = [*Path(lake.root, raw_folder(site)).glob("*.parquet"), *(archive / raw_folder(site)).glob("*.parquet")]
    rows = {
        (row["batch"], row["document_number"]): row for path in paths for row in pq.ParquetFile(path).read().to_pylist()
    }
    return [rows[key] for key in sorted(rows)]


@dataclass(frozen=True)
class House:
    """A lakehouse of a test's own, and where it archives."""

    settings: Settings
    lake: Lake
    archive: Path

    @property
    def raw(self) -> list[str]:
        return names(Path(self.lake.root, raw_folder("anna")))

    @property
    def archived(self) -> list[str]:
        return names(self.archive / raw_folder("anna"))

    def prune(self, days: int = 400) -> list[pruning.Planned]:
        return prune(self.settings, self.archive, older_than_days=days)

    def refused(self, days: int = 400) -> str:
        """What is said of a pruning that must not be; nothing may have changed by it."""
        before = {path: path.read_bytes() for path in self._files()}
        with pytest.raises(LakehouseError) as refusal:
            self.prune(days)
        assert {path: path.read_bytes() for path in self._files()} == before
        assert not (self.settings.home / "tmp" / "prune").exists()
        return str(refusal.value)

    def _files(self) -> Iterator[Path]:
        for folder in (Path(self.lake.root), self.archive):
            yield from (path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A lakehouse with two years of two people, before and after a pruning."""
    folder = tmp_path_factory.mktemp("lakehouse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(folder / "whole" / "home"))
        settings = load_settings()
        lake = Lake.open(settings)
        land(lake, 1, [entry(number) for number in range(1200)], OLDER)
        # An edit, a document that moves to another month, one that says the same as another, and some that are refused.
        moved = int((FIRST + timedelta(days=41)).timestamp() * 1000)
        land(lake, 2, [entry(5, sgv=222), entry(6, date=moved), entry(1, _id="f" * 24)], OLDER)
        process_sites([ANNA], settings, lake)
        land_deletions(lake, 3, [7, 8, 6], OLDER)
        process_sites([ANNA], settings, lake)
        no_zone = {"date": None, "dateString": f"{FIRST + timedelta(days=20):%Y-%m-%dT%H:%M:%S}"}
        refused = [entry(3000 + number, sgv=5) for number in range(3)]
        land(lake, 4, [*(entry(number) for number in range(1200, 2000)), entry(2999, **no_zone), *refused], OLD)
        # What comes late: an edit, a deletion and a reading of days long past.
        land(lake, 5, [entry(9, sgv=333), entry(8), entry(4000, device="other")], RECENT)
        land_deletions(lake, 6, [10], RECENT)
        bolus = {"_id": "b" * 24, "eventType": "Bolus", "insulin": 2.5, "created_at": f"{FIRST:%Y-%m-%dT%H:%M:%SZ}"}
        land(lake, 1, [json.dumps(bolus)], OLD, TREATMENTS)
        write_batch(lake, "berta-k", 1, documents_from_json([entry(number + 9000) for number in range(50)]), OLD)
        process_sites([ANNA, BERTA], settings, lake)
        process_sites([ANNA], settings, lake, TREATMENTS)
        shutil.copytree(folder / "whole", folder / "pruned")
        patch.setenv("LAKEHOUSE_HOME", str(folder / "pruned" / "home"))
        prune(load_settings(), folder / "pruned" / "cold", older_than_days=400)
    return {path.name: path for path in folder.iterdir()}


def house(template: Path, settings: Settings) -> House:
    shutil.copytree(template, settings.home.parent, dirs_exist_ok=True)
    (settings.home.parent / "home").rename(settings.home)
    return House(settings, Lake.open(settings), settings.home.parent / "cold")


@pytest.fixture
def whole(templates: dict[str, Path], settings: Settings) -> House:
    """Nothing was moved yet."""
    return house(templates["whole"], settings)


@pytest.fixture
def pruned(templates: dict[str, Path], settings: Settings) -> House:
    """Batches 1 to 4 of anna's entries, her treatments and all of berta lie in the archive."""
    return house(templates["pruned"], settings)


OLD_FILES = [f"batch={number:08d}.parquet" for number in range(1, 5)]
NEW_FILES = [f"batch={number:08d}.parquet" for number in range(5, 7)]


def test_old_files_move_and_everything_goes_on(whole: House) -> None:
    settings, lake = whole.settings, whole.lake
    before, in_use, size = everywhere(lake, whole.archive), processed(lake), lake.size_bytes(batch_file("anna", 1))
    planned = plan_pruning(settings, whole.archive, older_than_days=400)
    assert whole.raw == OLD_FILES + NEW_FILES
    assert not whole.archive.exists()
    assert whole.prune() == planned
    assert [(each.name, each.first, each.last, each.documents) for each in planned] == [
        ("anna, nightscout_entries", 1, 4, 2007),
        ("berta-k, nightscout_entries", 1, 1, 50),
        ("anna, nightscout_treatments", 1, 1, 1),
    ]
    assert planned[0].size_bytes > size
    assert (whole.raw, whole.archived) == (NEW_FILES, OLD_FILES)
    assert everywhere(lake, whole.archive) == before
    assert processed(lake) == in_use
    files = [path for path in whole.archive.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(whole.archive.stat().st_mode) == 0o700
    assert not (settings.home / "tmp" / "prune").exists()

    found = compare_with_raw_files(settings, lake)
    assert (found.batches, found.documents, found.unaccounted, found.pruned, found.faults) == (2, 3, 0, 6, ())
    with connect(settings) as engine:
        frame = raw_frame(engine, lake, ["anna", "berta-k"], everything=True)
        assert frame is not None
        assert engine.execute(f"select count(*) from ({frame.query})").fetchall() == [(3,)]
    assert whole.prune() == []
    assert pending_batches(lake, "anna") == []


def test_late_data_for_what_was_moved_and_a_second_pruning(pruned: House) -> None:
    settings, lake = pruned.settings, pruned.lake
    before = len(processed(lake))
    land(lake, 7, [entry(11, sgv=77), entry(7), entry(5000, device="third")], RECENT)
    land_deletions(lake, 8, [12, 9], RECENT)
    assert pending_batches(lake, "anna") == [7, 8]
    process_sites([ANNA], settings, lake)
    rows = {row["nightscout_id"]: row for row in in_month(lake)}
    assert len(processed(lake)) == before + 1
    assert rows[f"{11:024x}"]["glucose_mg_dl"] == 77
    # Gone before, and there again; its first version lies in the archive.
    assert (rows[f"{7:024x}"]["is_deleted"], rows[f"{7:024x}"]["first_fetched_at"]) == (False, OLDER)
    assert rows[f"{12:024x}"]["is_deleted"]
    assert not compare_with_raw_files(settings, lake).faults

    (report,) = compact(settings)
    assert report.files_after == 1
    in_use = processed(lake)
    (second,) = pruned.prune(days=5)
    assert (second.first, second.last) == (5, 8)
    assert pruned.raw == []
    assert pruned.archived == [*OLD_FILES, "batch=00000005-00000008.parquet"]
    marker = load_pruned(lake, "anna")
    assert marker is not None
    assert [(each.first, each.last, each.documents, each.deletions) for each in marker.stretches] == [
        (1, 4, 2007, 3),
        (5, 8, 6, 3),
    ]
    assert compact(settings) == []
    found = compare_with_raw_files(settings, lake)
    assert (found.batches, found.pruned, found.faults) == (0, 10, ())
    assert processed(lake) == in_use

    # With no raw file left, numbers go on where they were: of what is judged anew, and of what is read.
    retry_refused(settings, lake, [ANNA], Choice("anna"))
    assert pruned.raw == ["batch=00000009.parquet"]
    assert pending_batches(lake, "anna") == []
    assert not compare_with_raw_files(settings, lake).faults


def in_month(lake: Lake) -> list[dict[str, Any]]:
    path = Path(lake.root, partition_file("sgv", "anna", f"{FIRST:%Y-%m}"))
    return pq.ParquetFile(path).read().to_pylist()


def test_what_is_read_gets_a_number_of_its_own(pruned: House) -> None:
    pruned.prune(days=5)
    assert last_batch(pruned.lake, "anna") == 6
    store = DemoStore.of(Person(seed=3), days=1)
    with DemoServer(store) as server:
        site = Site("anna", server.url, timezone="Europe/Berlin")
        # The worst case: neither of the states that say how far it was.
        pruned.lake.delete(processing_state_file("anna"))
        (report,) = ingest_sites([site], pruned.settings, pruned.lake)
    assert report.error is None
    assert report.batches[0] == 7


class Killed(BaseException):
    """What nothing catches."""


def kill_after(patch: pytest.MonkeyPatch, where: object, name: str, calls: int) -> None:
    original, left = getattr(where, name), [calls]

    def dying(*arguments: Any, **named: Any) -> Any:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return original(*arguments, **named)

    patch.setattr(where, name, dying)


@pytest.mark.parametrize(
    ("where", "name", "calls"),
    [
        (pruning, "copy_into", 3),
        (pruning, "write_manifest", 0),
        (pruning, "save_pruned", 0),
        (Lake, "delete", 0),
        (Lake, "delete", 2),
    ],
)
def test_a_killed_pruning_loses_nothing_and_is_finished_by_the_next(
    whole: House, monkeypatch: pytest.MonkeyPatch, where: object, name: str, calls: int
) -> None:
    settings, lake = whole.settings, whole.lake
    before, in_use = everywhere(lake, whole.archive), processed(lake)
    with monkeypatch.context() as patch:
        kill_after(patch, where, name, calls)
        with pytest.raises(Killed):
            whole.prune()
    assert everywhere(lake, whole.archive) == before
    assert not compare_with_raw_files(settings, lake).faults
    assert pending_batches(lake, "anna") == []
    # In between somebody may put files together, and the lake goes on.
    compact(settings)
    land(lake, 7, [entry(11, sgv=77)], RECENT)
    process_sites([ANNA], settings, lake)
    before, in_use = everywhere(lake, whole.archive), processed(lake)

    whole.prune()
    whole.prune(days=5)
    assert whole.raw == []
    assert everywhere(lake, whole.archive) == before
    assert processed(lake) == in_use
    assert not list(whole.archive.rglob("*.partial"))
    assert not compare_with_raw_files(settings, lake).faults
    back, _ = bring_back(settings, whole.archive)
    assert sum(each.files for each in back) == len(list(whole.archive.rglob("batch=*.parquet")))
    assert sum(pq.read_metadata(Path(lake.root, file.path)).num_rows for file in raw_files(lake, "anna")) == len(before)


def test_what_is_removed_is_on_the_disk_elsewhere(whole: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # A power cut loses what was written and not synced: at each removal, by name, all of that must be on the disk.
    synced: set[str] = set()
    sync, delete = os.fsync, Lake.delete

    def syncing(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    needed: list[Path] = []

    def deleting(lake: Lake, relative: str) -> None:
        if "raw" in relative:
            assert {str(path) for path in needed} <= synced
        delete(lake, relative)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Lake, "delete", deleting)
    lake_folder, folder = (Path(root, raw_folder("anna")) for root in (whole.lake.root, whole.archive))
    needed += [lake_folder, lake_folder / ".pruned.json.tmp", folder, folder / ".batch=00000001.parquet.partial"]
    needed += [folder / ".manifest.json.partial", whole.archive, whole.archive.parent]
    whole.prune()
    synced.clear()
    needed[:] = [lake_folder, *(lake_folder / f".{name}.tmp" for name in OLD_FILES)]
    bring_back(whole.settings, whole.archive)
    assert whole.raw == OLD_FILES + NEW_FILES


def test_files_that_are_brought_back_count_when_all_of_them_are_there(
    pruned: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_after(patch, pruning, "_copy_back", 2)
        with pytest.raises(Killed):
            bring_back(pruned.settings, pruned.archive)
    assert pruned.raw == OLD_FILES[:2] + NEW_FILES
    assert [file.first for file in raw_files(pruned.lake, "anna")] == [5, 6]
    assert compare_with_raw_files(pruned.settings, pruned.lake).pruned == 6
    # Half a file would be found by its checksum; what differs from the archive is not removed.
    path = Path(pruned.lake.root, batch_file("anna", 1))
    good = path.read_bytes()
    path.write_bytes(Path(pruned.lake.root, batch_file("anna", 2)).read_bytes())
    assert "is left of what was moved" in pruned.refused(days=400)
    path.write_bytes(good)
    (planned,) = pruned.prune()
    assert (planned.contents, len(planned.leftovers)) == ((), 2)
    assert pruned.raw == NEW_FILES


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def consistently_without_the_last(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / manifest["files"].pop()["name"]).unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: flip(folder / OLD_FILES[1]), "batch=00000002.parquet has changed"),
        (lambda folder: (folder / OLD_FILES[2]).unlink(), "batch=00000003.parquet is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "does not have the files of batches 1 to 4"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (consistently_without_the_last, "it has other files of batches 1 to 4"),
        (lambda folder: shutil.copy(folder / OLD_FILES[1], folder / NEW_FILES[0]), "neither a copy of what"),
    ],
)
def test_an_archive_that_is_not_whole_is_refused(pruned: House, change: Callable[[Path], Any], message: str) -> None:
    change(pruned.archive / raw_folder("anna"))
    said = pruned.refused(days=5)
    assert message in said
    assert str(pruned.archive) in said
    # A copy too many does not keep the others from being brought back.
    if "neither" not in message:
        with pytest.raises(LakehouseError, match=message):
            bring_back(pruned.settings, pruned.archive)
        assert pruned.raw == NEW_FILES


def test_the_lake_under_another_name_is_no_archive(whole: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a bucket or folder that is mounted a second time: its path says nothing of where it leads.
    whole.archive.mkdir()
    (whole.archive / "raw").symlink_to(Path(whole.lake.root, "raw"))
    assert "is the lake" in whole.refused()
    assert not list(Path(whole.lake.root).rglob("probe-*"))
    Path(whole.lake.root, raw_folder("anna"), "state.json").write_text("{}")
    assert "it has state.json" in whole.refused()
    with monkeypatch.context() as patch:
        patch.setattr(pruning, "make_ready", lambda *_: None)
        with pytest.raises(LakehouseError, match="The file was put back"):
            whole.prune()
    assert whole.raw == OLD_FILES + NEW_FILES
    assert load_pruned(whole.lake, "anna") is None
    assert not compare_with_raw_files(whole.settings, whole.lake).faults

    (whole.archive / "raw").unlink()
    whole.archive.rmdir()
    whole.archive.symlink_to(whole.lake.root)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "resolve", lambda path: path.absolute())
        assert "under another name" in whole.refused()
    whole.archive.unlink()
    assert len(whole.prune()) == 3
    assert whole.raw == NEW_FILES


def test_another_folder_is_not_taken_for_the_archive(pruned: House) -> None:
    away = pruned.archive.rename(pruned.archive.with_name("unplugged"))
    pruned.archive.mkdir()
    assert "does not have the files of batches 1 to 4" in pruned.refused(days=5)
    back, elsewhere = bring_back(pruned.settings, pruned.archive)
    assert back == []
    assert len(elsewhere) == 3
    assert elsewhere["anna, nightscout_entries"].endswith("/pruned/cold")
    # That of another lakehouse, which has a site of the same name.
    shutil.copytree(away / raw_folder("berta-k"), pruned.archive / raw_folder("anna"))
    assert "it has other files of batches 1 to 4" in pruned.refused(days=5)
    with pytest.raises(LakehouseError, match="it has other files"):
        bring_back(pruned.settings, pruned.archive)


def test_nothing_moves_when_a_rebuild_gives_something_else(whole: House) -> None:
    month = f"{FIRST:%Y-%m}"
    path = Path(whole.lake.root, partition_file("sgv", "anna", month))
    good, table = path.read_bytes(), pq.ParquetFile(path).read()
    pq.write_table(table.set_column(3, "glucose_mg_dl", pa.array([100.0] * len(table))), path)
    said = whole.refused()
    assert (
        f"anna, nightscout_entries: built anew from its raw files it is not what is in use: sgv of {month} has" in said
    )
    assert f"remove {whole.lake.url}/processed/nightscout_entries" in said
    pq.write_table(table.drop_columns(["date_ms"]), path)
    assert f"sgv of {month} has other columns" in whole.refused()
    path.unlink()
    assert "0 other rows in use" in whole.refused()
    path.write_bytes(good)
    extra = Path(whole.lake.root, partition_file("mbg", "anna", month))
    extra.parent.mkdir(parents=True)
    extra.write_bytes(good)
    assert f"mbg of {month} has" in whole.refused()
    # A killed run has written what its batch is not yet marked for.
    whole.lake.write_json(processing_state_file("anna"), {"processed_batch": 5})
    assert "run `lakehouse run`, then prune" in whole.refused()
    whole.lake.write_json(processing_state_file("anna"), {"processed_batch": 6})
    shutil.rmtree(extra.parent)

    raw = Path(whole.lake.root, batch_file("anna", 2))
    good = raw.read_bytes()
    flip(raw)
    raw.write_bytes(raw.read_bytes()[:-9])
    assert "cannot be read" in whole.refused()
    raw.unlink()
    assert "the raw files of batches 2 to 2 are gone" in whole.refused()
    raw.write_bytes(good)
    assert len(whole.prune()) == 3


@pytest.mark.parametrize("removed", ["processed", "processed/nightscout_entries/state/anna.json"])
def test_a_history_is_not_built_without_its_beginning(pruned: House, removed: str) -> None:
    settings, lake = pruned.settings, pruned.lake
    in_use = processed(lake)
    gone = Path(lake.root, removed)
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    left = sorted(Path(lake.root).rglob("month=*"))
    with pytest.raises(LakehouseError) as refusal:
        process_sites([ANNA], settings, lake)
    assert "batches 1 to 4 lie in the archive" in str(refusal.value)
    assert "--bring-back" in str(refusal.value)
    assert sorted(Path(lake.root).rglob("month=*")) == left

    back, elsewhere = bring_back(settings, pruned.archive)
    assert [(each.site, each.files) for each in back] == [("anna", 4), ("berta-k", 1), ("anna", 1)]
    assert elsewhere == {}
    assert pruned.raw == OLD_FILES + NEW_FILES
    assert load_pruned(lake, "anna") is None
    process_sites([ANNA, BERTA], settings, lake)
    process_sites([ANNA], settings, lake, TREATMENTS)
    assert processed(lake) == in_use
    assert not compare_with_raw_files(settings, lake).faults

    # Once more, under other names: the archive has each batch once.
    compact(settings)
    pruned.prune(days=5)
    assert pruned.archived == ["batch=00000001-00000006.parquet"]
    assert processed(lake) == in_use


def test_a_history_whose_files_are_gone_does_not_go_on(pruned: House) -> None:
    settings, lake = pruned.settings, pruned.lake
    lake.write_json(processing_state_file("anna"), {"processed_batch": 3})
    with pytest.raises(LakehouseError, match="would have no beginning"):
        process_sites([ANNA], settings, lake)
    lake.write_json(processing_state_file("anna"), {"processed_batch": 6})
    for kind in ENTRIES.all_kinds:
        lake.delete_folder(f"processed/nightscout_entries/kind={kind}/site=anna")
    process_sites([ANNA], settings, lake)
    land(lake, 7, [entry(6000)], NOW)
    with pytest.raises(LakehouseError, match="would have no beginning"):
        process_sites([ANNA], settings, lake)
    for content in ("[", "{}", '{"archive": "/x", "stretches": [{"first": 2}]}'):
        Path(lake.root, pruned_file("anna")).write_text(content)
        with pytest.raises(LakehouseError, match=r"pruned.json is damaged.*Do not remove it"):
            process_sites([ANNA], settings, lake)


def test_a_history_of_which_all_is_deleted_goes_on(pruned: House) -> None:
    settings, lake = pruned.settings, pruned.lake
    # The only one of its site, and refused at that.
    write_batch(lake, "carl", 1, documents_from_json([entry(1, sgv=5)]), OLD)
    carl = Site("carl", "http://127.0.0.1:1")
    process_sites([carl], settings, lake)
    pruned.prune()
    assert load_pruned(lake, "carl") is not None
    land_deletions(lake, 2, range(9000, 9050), NOW, "berta-k")
    land_deletions(lake, 2, [1], NOW, "carl")
    process_sites([BERTA, carl], settings, lake)
    for site in ("berta-k", "carl"):
        write_batch(lake, site, 3, documents_from_json([entry(9100)]), NOW)
    process_sites([BERTA, carl], settings, lake)
    rows = pq.ParquetFile(
        Path(lake.root, partition_file("sgv", "berta-k", f"{FIRST + timedelta(minutes=45000):%Y-%m}"))
    )
    assert sum(not row["is_deleted"] for row in rows.read().to_pylist()) == 1
    assert pending_batches(lake, "carl") == []


def test_what_was_accounted_for_is_what_was_moved(pruned: House) -> None:
    with connect(pruned.settings, pruned.settings.warehouse_path) as warehouse:
        warehouse.execute("update ops.batches set documents = 3, stored = 3 where site = 'anna' and batch = 4")
    (first, second) = compare_with_raw_files(pruned.settings, pruned.lake).faults
    assert first == "anna, nightscout_entries, batch 4: of 3 documents 6 are stored, duplicates or quarantined."
    assert second.startswith("anna, nightscout_entries, batches 1 to 4: 2007 documents and 3 deletions were moved")
    # Another warehouse: it knows nothing of batches that were processed before it was built.
    pruned.settings.warehouse_path.unlink()
    found = compare_with_raw_files(pruned.settings, pruned.lake)
    assert (found.batches, found.unaccounted, found.pruned, found.faults) == (0, 2, 6, ())


def test_a_person_is_forgotten_in_the_archive_too(pruned: House) -> None:
    settings, archive = pruned.settings, pruned.archive
    # The marker says where it was; the test moved it.
    for collection in (ENTRIES, TREATMENTS):
        for site in ("anna", "berta-k"):
            path = Path(pruned.lake.root, pruned_file(site, collection))
            if path.is_file():
                path.write_text(json.dumps(json.loads(path.read_text()) | {"archive": str(archive)}))
                pruned.lake.write_json(archives_file(site, collection), {"archives": []})
    found = survey(settings, "berta-k")
    assert found.archives == (str(archive),)
    manifest = back_up(settings, archive.parent / "saved", with_postgres=False)
    assert "copy it, too" in manifest.left_out[str(archive)]

    done = forget(settings, found)
    assert done.removed["files of the archive"] == 2
    assert done.left == []
    assert not list(archive.rglob("site=berta-k"))
    assert pruned.archived == OLD_FILES

    # Not reached: its disk is away.
    archive.rename(archive.parent / "unplugged")
    done = forget(settings, survey(settings, "anna"))
    assert [each.place for each in done.left] == [str(archive)]
    assert "it has no raw/*/site=anna now" in done.left[0].what
    assert survey(settings, "anna").is_empty


def test_a_person_is_forgotten_where_copies_are_left(whole: House) -> None:
    settings, lake, first = whole.settings, whole.lake, whole.archive
    second = first.with_name("colder [b]")
    whole.prune()
    bring_back(settings, first)
    assert whole.archived == OLD_FILES
    prune(settings, second, older_than_days=400)
    bring_back(settings, second)
    assert load_pruned(lake, "anna") is None
    # What nothing was moved to needs no copy.
    manifest = back_up(settings, first.parent / "saved", with_postgres=False)
    assert not any("copy it, too" in reason for reason in manifest.left_out.values())
    Path(lake.root, archives_file("berta-k")).write_text("{}")
    with pytest.raises(LakehouseError, match=r"archives.json is damaged.*from a backup"):
        survey(settings, "berta-k")

    found = survey(settings, "anna")
    assert found.archives == (str(first), str(second))
    done = forget(settings, found)
    assert done.left == []
    assert done.removed["files of the archive"] == 14
    assert not list(first.parent.rglob("cold*/raw/*/site=anna"))
    assert len(list(first.parent.rglob("cold*/raw/*/site=berta-k"))) == 2


def test_the_command_says_what_it_does(whole: House, tmp_path: Path) -> None:
    def said(*arguments: str, code: int = 0, answer: str | None = None) -> str:
        result = CliRunner().invoke(app, ["prune", *arguments], input=answer)
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    archive = str(whole.archive)
    assert "--bring-back" in said("--help")
    assert "all fetched 4,000 days ago" in said(archive, "--older-than", "4000")
    assert "anna, nightscout_entries: 4 files would move, batches 1 to 4, 2,007 documents" in said(archive, "--dry-run")
    assert "Nothing was moved." in said(archive, answer="n\n", code=1)
    (tmp_path / "file").write_text("")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "manifest.json").write_text("{}")
    for place, message in {
        str(Path(whole.lake.root, "cold")): "moving files there would free nothing",
        str(whole.settings.home): "moving files there would free nothing",
        str(tmp_path / "file"): "is not a folder",
        str(tmp_path / "saved"): "is a backup",
        str(tmp_path / "not" / "there"): "Is the disk mounted?",
        "/proc/cold": "The archive /proc/cold cannot be read and written",
    }.items():
        assert message in said(place, "--yes", code=1)
    assert whole.raw == OLD_FILES + NEW_FILES
    assert "Nothing of this lake was moved to" in said(archive, "--bring-back", code=1)
    moved = said(archive, "--yes")
    assert "anna, nightscout_entries: 4 files moved" in moved
    assert "keep a copy of it" in moved
    assert "does not go with --dry-run" in said(archive, "--bring-back", "--dry-run", code=1)
    console = Console(record=True, file=io.StringIO())
    print_conservation(console, compare_with_raw_files(whole.settings, whole.lake))
    assert "6 batches lie in an archive" in console.export_text()
    assert "anna, nightscout_entries: 4 files are back" in said(archive, "--bring-back")
