"""The systemd units and the operations page, held against the code; and Dagster's configuration as settings change."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.instance import check_storage, prepare_environment
from nightscout_lakehouse.lib.errors import ConfigurationError, LakehouseError
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings, load_settings

UNITS = sorted((REPOSITORY_ROOT / "deploy" / "systemd").iterdir())
PASSWORD = "not-to-be-shown-77"


def directives(unit: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit.read_text().splitlines() if re.match(r"[A-Z][A-Za-z]+=", line))


def test_the_units_are_valid(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("There is no systemd here.")
    # systemd takes a path with a blank only in quotes, and this repository may lie in one.
    (tmp_path / "bin").symlink_to(Path(sys.executable).parent)
    for unit in UNITS:
        here = unit.read_text().replace("/opt/nightscout-lakehouse/.venv/bin", str(tmp_path / "bin"))
        (tmp_path / unit.name).write_text(here)
    checked = subprocess.run(
        [analyze, "verify", *(str(tmp_path / unit.name) for unit in UNITS)], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_units_start_commands_that_exist_under_a_user_of_their_own() -> None:
    services = [unit for unit in UNITS if unit.suffix == ".service"]
    assert len(services) == 3
    for unit in services:
        found = directives(unit)
        program, *command = found["ExecStart"].split()
        assert program.endswith("/lakehouse")
        assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0
        assert found["User"] == "lakehouse"
        assert found["NoNewPrivileges"] == "true"
        assert found["ProtectSystem"] == "strict"
        # What it writes is not for everybody on the machine.
        assert (found["UMask"], found["StateDirectoryMode"]) == ("0027", "0750")
        assert found["Environment"] == f"LAKEHOUSE_HOME=/var/lib/{found['StateDirectory']}"


def test_the_page_names_files_and_variables_that_exist() -> None:
    page = (REPOSITORY_ROOT / "docs" / "operations.md").read_text()
    for file in re.findall(r"/opt/nightscout-lakehouse/((?:deploy|\.env)[\w./-]+)", page):
        assert list(REPOSITORY_ROOT.glob(file.rstrip(".") + ("*" if file.endswith(".") else ""))), file
    known = {str(field.validation_alias) for field in Settings.model_fields.values()}
    compose = (REPOSITORY_ROOT / "docker-compose.yml").read_text()
    named = set(re.findall(r"`((?:LAKE|LAKEHOUSE|NIGHTSCOUT|DAGSTER|SUPERSET|MINIO)_[A-Z0-9_]+)", page)) | {
        "DATABASE_URL"
    }
    missing = [name for name in named if name not in known and f"${{{name}" not in compose and name != "LAKEHOUSE_HOME"]
    assert missing == []
    # The roles are made as the script of compose makes them.
    script = (REPOSITORY_ROOT / "compose" / "postgres-init.sh").read_text()
    grant = "grant bi_reader to lakehouse with admin true, inherit false, set true;"
    assert grant in page
    assert grant in script


@pytest.fixture
def _environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DAGSTER_HOME", "DAGSTER_POSTGRES_URL"):
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("_environment_is_kept")
def test_dagster_is_configured_as_the_settings_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    prepare_environment(settings)
    file = settings.dagster_home / "dagster.yaml"
    first = file.read_text()
    assert "storage" not in yaml.safe_load(first)
    assert yaml.safe_load(first)["event_log_storage"]["class"] == "OpenSqliteEventLogStorage"

    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"postgres://dagster:{PASSWORD}@db:5432/dagster")
    prepare_environment(load_settings())
    written = yaml.safe_load(file.read_text())
    assert written["storage"]["custom"]["class"] == "OpenPostgresStorage"
    assert written["storage"]["custom"]["config"] == {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}
    assert "event_log_storage" not in written
    assert PASSWORD not in file.read_text()
    import os

    # As SQLAlchemy reads it with the driver that is installed.
    assert os.environ["DAGSTER_POSTGRES_URL"].startswith(f"postgresql+psycopg2://dagster:{PASSWORD}@db:5432/dagster")
    # What is in the environment now is read again by the next process.
    prepare_environment(load_settings())

    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "")
    prepare_environment(load_settings())
    assert file.read_text() == first
    assert [path.name for path in settings.dagster_home.iterdir()] == ["dagster.yaml"]


@pytest.mark.usefixtures("_environment_is_kept")
def test_what_somebody_wrote_into_dagster_yaml_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    prepare_environment(settings)
    file = settings.dagster_home / "dagster.yaml"
    file.write_text(file.read_text().replace("max_concurrent_runs: 1", "max_concurrent_runs: 2"))
    edited = file.read_text()
    prepare_environment(settings)
    assert file.read_text() == edited
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"postgresql://dagster:{PASSWORD}@db/dagster")
    with pytest.raises(ConfigurationError, match="was edited and does not fit DAGSTER_POSTGRES_URL, which is set"):
        prepare_environment(load_settings())
    file.write_text(
        edited.partition("event_log_storage:")[0]
        + "storage:\n  postgres:\n    postgres_url: {env: DAGSTER_POSTGRES_URL}\n"
    )
    prepare_environment(load_settings())
    # Of version 0.1, which did not sign it.
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "")
    unsigned = edited.partition("\n")[2].partition("event_log_storage:")[0]
    file.write_text(unsigned.replace("max_concurrent_runs: 2", "max_concurrent_runs: 1"))
    prepare_environment(load_settings())
    assert file.read_text().startswith("# Written by lakehouse")


def test_a_storage_that_is_not_there_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"postgresql://dagster:{PASSWORD}@127.0.0.1:9/dagster")
    with pytest.raises(LakehouseError) as refused:
        check_storage(load_settings())
    assert "Dagster's storage cannot be opened: The database dagster@127.0.0.1:9/dagster" in str(refused.value)
    assert "DAGSTER_POSTGRES_URL" in str(refused.value)
    assert PASSWORD not in str(refused.value)


def test_exec_says_when_there_is_no_such_program() -> None:
    found = CliRunner().invoke(app, ["exec", "--", "no-such-program-here"])
    assert found.exit_code == 1
    assert "There is no program no-such-program-here" in found.output
