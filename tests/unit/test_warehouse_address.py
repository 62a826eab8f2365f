"""Where the warehouse is: a file of LAKEHOUSE_HOME, another file, or a database of MotherDuck; and scratch files."""

import ast
from pathlib import Path

import duckdb
import pytest

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.errors import ConfigurationError, LakeError
from nightscout_lakehouse.lib.settings import load_settings
from nightscout_lakehouse.lib.warehouse import (
    connect,
    connect_warehouse,
    motherduck_config,
    open_to_read,
    open_warehouse,
)

TOKEN = "motherduck-token-9f8e7d"


@pytest.fixture
def motherduck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKEHOUSE_WAREHOUSE", "md:lakehouse")
    monkeypatch.setenv("MOTHERDUCK_TOKEN", TOKEN)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as the wheel of the extension has it, whose extension is none."""
    folder = tmp_path / "wheels" / "duckdb_extension_motherduck"
    file = folder / "extensions" / f"v{duckdb.__version__}" / "motherduck.duckdb_extension"
    file.parent.mkdir(parents=True)
    (folder / "__init__.py").touch()
    file.write_bytes(bytes(2048))
    monkeypatch.syspath_prepend(tmp_path / "wheels")
    return file


def test_a_file_elsewhere_is_the_warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "on another disk" / "w.duckdb"
    monkeypatch.setenv("LAKEHOUSE_WAREHOUSE", str(elsewhere))
    settings = load_settings()
    assert not settings.has_warehouse
    with open_warehouse(settings):
        pass
    assert elsewhere.is_file()
    assert settings.warehouse == str(elsewhere)
    with open_to_read(settings) as warehouse:
        assert warehouse.execute("select count(*) from ops.info").fetchall() == [(1,)]
    assert not settings.home.exists()


@pytest.mark.usefixtures("motherduck")
def test_dbt_and_we_open_the_same_database_of_motherduck(wheel: Path) -> None:
    settings = load_settings()
    assert settings.warehouse == "md:lakehouse"
    assert settings.has_warehouse
    config = motherduck_config(settings)
    assert config == {
        "motherduck_token": TOKEN,
        "extension_directory": str(settings.duckdb_extension_dir),
        "autoinstall_known_extensions": False,
    }
    (link,) = settings.duckdb_extension_dir.rglob("motherduck.duckdb_extension")
    assert link.readlink() == wheel
    environment = DbtProject(settings)._environment("duckdb")
    assert environment["LAKEHOUSE_WAREHOUSE"] == "md:lakehouse"
    # The token is not among what dbt may log.
    assert ast.literal_eval(environment["LAKEHOUSE_DUCKDB_CONFIG"]) == {
        name: value for name, value in config.items() if name != "motherduck_token"
    }
    assert environment["motherduck_token"] == TOKEN
    from dbt.adapters.duckdb.credentials import DuckDBCredentials

    profile = DuckDBCredentials(database="lakehouse", schema="main", path=environment["LAKEHOUSE_WAREHOUSE"])
    assert profile.is_motherduck


@pytest.mark.usefixtures("motherduck", "wheel")
def test_what_motherduck_refuses_is_said_without_the_token() -> None:
    with pytest.raises(LakeError) as refused:
        connect_warehouse(load_settings())
    # The made-up extension is the one that DuckDB tried: it asked no network for another.
    assert "The file is not a DuckDB extension" in str(refused.value)
    assert "md:lakehouse of MotherDuck cannot be opened" in str(refused.value)
    assert TOKEN not in str(refused.value)


@pytest.mark.usefixtures("motherduck")
def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LakeError, match=r"extension motherduck is not installed\. Run .*--extra motherduck"):
        connect_warehouse(load_settings())
    monkeypatch.setenv("MOTHERDUCK_TOKEN", "")
    with pytest.raises(ConfigurationError, match="MOTHERDUCK_TOKEN is not set"):
        connect_warehouse(load_settings())


@pytest.mark.parametrize("value", ["md:", f"md:x?motherduck_token={TOKEN}", "md:a b"])
def test_a_database_of_another_form_is_refused_and_not_quoted(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKEHOUSE_WAREHOUSE", value)
    with pytest.raises(ConfigurationError, match="md:database") as refused:
        _ = load_settings().warehouse
    assert TOKEN not in str(refused.value)


def test_two_databases_in_memory_that_do_not_fit_keep_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one folder for both, the second writes over the first one's files, and DuckDB crashes."""
    monkeypatch.setenv("DUCKDB_MEMORY_LIMIT", "60MB")
    monkeypatch.setenv("DUCKDB_THREADS", "1")
    settings = load_settings()
    text = "repeat(md5((n + {})::varchar), 4)"
    with connect(settings) as one, connect(settings) as other:
        for engine, number in ((one, 0), (other, 7)):
            engine.execute(f"create temp table t as select n, {text.format(number)} as s from range(1000000) as r (n)")
        assert len(list((settings.home / "tmp").glob("*/*"))) >= 2
        for engine, number in ((one, 0), (other, 7)):
            found = engine.execute(f"select count(*) from t where s = {text.format(number)}").fetchone()
            assert found == (1_000_000,)
    assert list((settings.home / "tmp").iterdir()) == []
