"""Folders that appear whole, SQLite files that are copied while a program writes them, and what is searched for."""

import gzip
import sqlite3
from pathlib import Path

import pytest

from nightscout_lakehouse.lib.care.files import copy_file, whole_folder
from nightscout_lakehouse.lib.care.traces import Traces, every_file, in_files
from nightscout_lakehouse.lib.errors import LakehouseError


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "saved"
    left_by_a_killed_one = tmp_path / ".saved.partial"
    left_by_a_killed_one.mkdir()
    (left_by_a_killed_one / "old").write_text("old")

    def fail() -> None:
        with whole_folder(target, "backup") as folder:
            (folder / "half").write_text("half")
            assert not target.exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(target, "backup") as folder:
        (folder / "all").write_text("all")
    assert [path.name for path in tmp_path.rglob("*")] == ["saved", "all"]
    with pytest.raises(LakehouseError, match="is there already"), whole_folder(target, "backup"):
        pass
    assert (target / "all").read_text() == "all"


def test_a_database_is_copied_whole_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a #1.db"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("pragma journal_mode = wal")
    writer.execute("create table t (n)")
    writer.execute("insert into t values (1)")
    writer.execute("begin")
    writer.execute("insert into t values (2)")
    copy_file(path, tmp_path / "copy" / "b.db")
    writer.execute("rollback")
    writer.close()
    assert [each.name for each in (tmp_path / "copy").iterdir()] == ["b.db"]
    # What was committed and still only in the log is there, what was not is not.
    assert sqlite3.connect(tmp_path / "copy" / "b.db").execute("select n from t").fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("…/site=anna/batch=1", "the name"),
        ('{"site": "anna"}', "the name"),
        ("Site anna.", "the name"),
        ("anna-2 joanna ANNA annal anna_b", ""),
        ("read 5f3c9e0a1b2c3d4e5f6a7b8c", "ids, devices or notes"),
    ],
)
def test_a_name_is_a_word_of_its_own(content: str, what: str) -> None:
    assert Traces("anna", ("5f3c9e0a1b2c3d4e5f6a7b8c",)).found_in(content.encode()) == what


def test_a_trace_is_found_across_blocks_and_in_compressed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nightscout_lakehouse.lib.care.traces._BLOCK_BYTES", 64)
    probe = "5f3c9e0a1b2c3d4e5f6a7b8c"
    (tmp_path / "plain.bin").write_bytes(b"x" * 50 + probe.encode() + b"x" * 100)
    (tmp_path / "old.ndjson.gz").write_bytes(gzip.compress(b"y" * 300 + probe.encode()))
    (tmp_path / "agp-anna.html").write_text("nothing")
    (tmp_path / "clean.log").write_text("z" * 500)
    found = {each.place: each.what for each in in_files(every_file(tmp_path), Traces("anna-k", (probe,)), tmp_path)}
    assert found == {"plain.bin": "ids, devices or notes", "old.ndjson.gz": "ids, devices or notes"}
