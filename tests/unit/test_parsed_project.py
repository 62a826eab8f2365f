"""What dbt has parsed is kept for the next process, and only as long as it holds."""

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nightscout_lakehouse.lib import parsed_project
from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.parsed_project import ParsedProject
from nightscout_lakehouse.lib.settings import load_settings

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest


@dataclass
class Projects:
    """A folder of a project of which dbt has always parsed the same.

    Attributes:
        folder: Where it is.
        parsed: What dbt has parsed.
        parses: For which databases dbt had to parse.
    """

    folder: Path
    parsed: "Manifest"
    parses: list[str] = field(default_factory=list)

    def read(self, database: str = "warehouse") -> "Manifest":
        def parse() -> "Manifest":
            self.parses.append(database)
            return self.parsed

        return ParsedProject(self.folder, "duckdb", database, self.folder.parent / "a home", parse).manifest()


@pytest.fixture
def projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Projects:
    parsed = DbtProject(load_settings())._parsed("duckdb").manifest()
    new_process(monkeypatch)
    folder = tmp_path / "dbt"
    folder.mkdir()
    (folder / "model.sql").write_text("select 1")
    return Projects(folder, parsed)


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsed_project, "_PARSED", {})


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.msgpack"))


def test_the_next_process_reads_what_one_has_parsed(projects: Projects, monkeypatch: pytest.MonkeyPatch) -> None:
    assert projects.read() is projects.read()
    new_process(monkeypatch)
    read = projects.read()
    assert projects.parses == ["warehouse"]
    assert read is not projects.parsed
    assert read.to_dict() == projects.parsed.to_dict()


def test_a_change_and_another_database_are_parsed(projects: Projects, monkeypatch: pytest.MonkeyPatch) -> None:
    projects.read()
    projects.read("of/another name")
    assert projects.parses == ["warehouse", "of/another name"]
    (projects.folder / "model.sql").write_text("select 2")
    projects.read()
    new_process(monkeypatch)
    projects.read()
    assert projects.parses == ["warehouse", "of/another name", "warehouse"]
    # What does not hold any more is gone.
    assert len(kept(projects.folder / "target")) == 2


@pytest.mark.parametrize("left", [1000, 0])
def test_a_file_that_cannot_be_read_is_made_anew(
    left: int, projects: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects.read()
    (file,) = kept(projects.folder / "target")
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    new_process(monkeypatch)
    projects.read()
    assert len(projects.parses) == 2
    assert file.read_bytes() == whole


def test_where_the_project_cannot_be_written_the_lakehouse_keeps_it(
    projects: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    (projects.folder / "target").write_text("no folder")
    projects.read()
    assert len(kept(projects.folder.parent / "a home")) == 1
    new_process(monkeypatch)
    projects.read()
    assert projects.parses == ["warehouse"]


def test_the_manifest_of_the_definitions_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DbtProject(load_settings()).prepare_manifest()
    monkeypatch.setenv("LAKEHOUSE_HOME", str(tmp_path / "another"))
    assert DbtProject(load_settings()).prepare_manifest() == file
    assert not list((tmp_path / "another").rglob("*.json"))


def test_the_parsed_project_is_kept_out_of_garbage_collections(
    projects: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects.read()
    new_process(monkeypatch)
    gc.unfreeze()
    projects.read()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 100_000
