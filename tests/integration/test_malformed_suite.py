"""A suite that somebody got wrong: one clear line from every command, never a traceback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.lib.quality.suites import SUITES_DIR

# The command as it is, with the suites of another folder.
LAKEHOUSE = """
import sys
from pathlib import Path
from nightscout_lakehouse.lib.quality import suites
suites.SUITES_DIR = Path(sys.argv.pop(1))
from nightscout_lakehouse.cli import app
app()
"""


@pytest.fixture
def suites(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SUITES_DIR, tmp_path / "expectations"))


def lakehouse(suites: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, "-c", LAKEHOUSE, str(suites), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=os.environ | {"COLUMNS": "400"},
    )
    assert "Traceback" not in ended.stdout + ended.stderr
    return ended


def edit(path: Path, **changes: object) -> None:
    suite = json.loads(path.read_text())
    suite["expectations"][1].update(changes)
    path.write_text(json.dumps(suite))


@pytest.mark.parametrize("command", ["run", "dev", "validate"])
def test_commands_name_the_file_and_the_key(command: str, suites: Path) -> None:
    path = suites / "nightscout_marts_suite.json"
    edit(path, severity="severe")
    ended = lakehouse(suites, command)
    assert ended.returncode == 1
    message = " ".join(ended.stderr.split())
    assert f"Error: The suite {path}, key expectations[1].severity: Input should be 'critical'" in message
    assert "Starting Dagster" not in ended.stdout


def test_great_expectations_reads_a_suite_on_request(suites: Path) -> None:
    edit(suites / "nightscout_suite.json", type="expect_column_values_to_be_nice")
    ended = CliRunner().invoke(app, ["validate", "--suite", str(suites / "nightscout_suite.json")])
    assert isinstance(ended.exception, SystemExit)
    assert ended.exit_code == 1
    assert "key type: Great Expectations has no expect_column_values_to_be_nice." in " ".join(ended.stderr.split())
    good = CliRunner().invoke(app, ["validate", "--suite", str(suites / "nightscout_raw_suite.json")])
    assert good.exit_code == 0, good.stderr
    assert "nightscout_raw_suite.json: 12 expectations, well-formed." in " ".join(good.stdout.split())


def test_doctor_finds_them(monkeypatch: pytest.MonkeyPatch, suites: Path) -> None:
    from nightscout_lakehouse.lib import doctor
    from nightscout_lakehouse.lib.quality import stages
    from nightscout_lakehouse.lib.settings import load_settings

    sound = doctor._finding("suites", doctor._suites, load_settings())
    assert sound.is_ok, sound.found
    assert "nightscout_suite.json (11 expectations)" in sound.found
    monkeypatch.setattr(stages, "SUITES_DIR", suites)
    edit(suites / "nightscout_suite.json", kwargs={"colum": "glucose_mg_dl"})
    finding = doctor._finding("suites", doctor._suites, load_settings())
    assert not finding.is_ok
    assert f"The suite {suites / 'nightscout_suite.json'}, " in finding.found
    assert "key kwargs: " in finding.found
