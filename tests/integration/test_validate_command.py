"""`lakehouse validate`: the outcomes as a table, and 1 if something critical fails."""

import json
import shutil
from datetime import timedelta
from pathlib import Path

import lineage_events
import pytest
from click.testing import Result
from test_faults import MODELS, NOW, documents
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.defs.quality import nightscout_validations
from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.quality import stages
from nightscout_lakehouse.lib.quality.stages import kept_results, validate_stage
from nightscout_lakehouse.lib.quality.suites import SUITES_DIR
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import open_warehouse

ANNA = Site("anna", "http://127.0.0.1:1", timezone="UTC")


def lakehouse(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def arrive(settings: Settings, lake: Lake, number: int, made: list[dict[str, object]]) -> None:
    write_batch(lake, "anna", number, documents_from_json([json.dumps(d) for d in made]), NOW)
    process_sites([ANNA], settings, lake)


def edited_suites(folder: Path) -> Path:
    suites = Path(shutil.copytree(SUITES_DIR, folder / "expectations"))
    path = suites / "nightscout_suite.json"
    suite = json.loads(path.read_text())
    (bounded,) = [e for e in suite["expectations"] if e["meta"]["name"] == "glucose_is_plausible"]
    bounded["kwargs"]["max_value"] = 100
    suite["expectations"].append(
        {
            "type": "expect_column_values_to_not_be_null",
            "kwargs": {"column": "device"},
            "severity": "warning",
            "meta": {"name": "device_is_known", "why": "Somebody wants to see it.", "source": "their own"},
        }
    )
    path.write_text(json.dumps(suite))
    return suites


def test_a_table_and_an_exit_code(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NIGHTSCOUT_URL", ANNA.url)
    monkeypatch.setenv("NIGHTSCOUT_SITE", "anna")
    monkeypatch.setenv("DAGSTER_HOME", "")
    assert "The models are not built yet. Run `make run` first." in lakehouse("validate").stderr
    arrive(settings, lake, 1, documents())
    DbtProject(settings).build("duckdb", MODELS, data_tests=False)

    touched = lakehouse("validate")
    assert touched.exit_code == 0, touched.output
    assert "0 critical and 0 others are not met." in touched.stdout
    assert [result["rows"] > 0 for result in kept_results(settings)] == [False, True, True]
    report = settings.quality_dir / "latest.html"
    assert "stopped" not in report.read_text()
    # Nothing is new, so nothing is looked at; the whole history is on request, documents that are processed included.
    lakehouse("validate")
    assert [result["rows"] for result in kept_results(settings)] == [0, 0, 0]
    full = lakehouse("validate", "--full")
    assert full.exit_code == 0, full.output
    assert [result["rows"] > 0 for result in kept_results(settings)] == [True, True, True]
    assert "Law of conservation: 60 documents of 1 batches, 0 do not agree." in full.stdout

    # Somebody adds an expectation to the file and lowers a bound: both count at once, no Python was touched.
    with monkeypatch.context() as patch:
        patch.setattr(stages, "SUITES_DIR", edited_suites(tmp_path))
        edited = lakehouse("validate", "--full")
        assert edited.exit_code == 1
        verdicts = {line.split()[1]: line.split()[2:4] for line in edited.stdout.splitlines() if len(line.split()) > 3}
        assert verdicts["device_is_known"] == ["yes", "warning"]
        assert verdicts["glucose_is_plausible"] == ["NO", "critical"]
        checks = {spec.name: spec.metadata for spec in nightscout_validations._check_specs("enriched")}
        assert checks["device_is_known"]["severity"] == "warning"
    assert lakehouse("validate", "--full").exit_code == 0

    with open_warehouse(settings) as warehouse:
        warehouse.execute("update intermediate.int_glucose_enriched set glucose_category = 'in_range'")
        warehouse.execute("update ops.batches set stored = stored - 1")
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "false")
    wrong = lakehouse("validate", "--full")
    assert wrong.exit_code == 1
    assert lineage_events.ends(settings.lineage_dir) == {
        "lakehouse_validate": "FAIL",
        "validate_raw_documents": "COMPLETE",
        "validate_enriched_readings": "FAIL",
        "validate_daily_figures": "COMPLETE",
        "processed_nightscout_entries_batches_match_raw_files": "FAIL",
    }
    (line,) = [line for line in wrong.stdout.splitlines() if "category_follows_from_the_value" in line]
    assert line.split()[2:4] == ["NO", "critical"]
    assert line.split()[-1] == "anna"
    assert "1 critical and 0 others are not met." in wrong.stdout
    assert "of which 59 are stored, duplicates or quarantined." in " ".join(wrong.stdout.split())
    assert "stopped" in report.read_text()


def test_what_a_model_has_not_taken_in_is_not_called_validated(settings: Settings, lake: Lake) -> None:
    project, made = DbtProject(settings), documents()
    arrive(settings, lake, 1, made)
    project.build("duckdb", ["+int_glucose_enriched"], data_tests=False)
    assert validate_stage("enriched", settings, lake, [ANNA]).rows == 60
    # It is processed, and the run ends before the model is built.
    late = made[0] | {"_id": "f" * 24, "date": int((NOW - timedelta(days=5)).timestamp() * 1000)}
    arrive(settings, lake, 2, [late])
    validate_stage("enriched", settings, lake, [ANNA])
    validate_stage("enriched", settings, lake, [ANNA], everything=True)
    project.build("duckdb", ["+int_glucose_enriched"], data_tests=False)
    found = validate_stage("enriched", settings, lake, [ANNA])
    assert {outcome.expectation.name: outcome.evaluated for outcome in found.outcomes}["entry_id_is_unique"] == 1
    assert validate_stage("enriched", settings, lake, [ANNA]).rows == 0


def test_a_document_that_was_mended_or_deleted_is_out_of_view(settings: Settings, lake: Lake) -> None:
    made = documents()
    wrong = [d | {"sgv": round(d["sgv"] / 18, 1)} for d in made]
    write_batch(lake, "anna", 1, documents_from_json([json.dumps(d) for d in wrong]), NOW)
    found = validate_stage("raw", settings, lake, [ANNA])
    assert [outcome.expectation.name for outcome in found.blocking] == ["values_are_in_mg_dl"]
    write_batch(lake, "anna", 2, documents_from_json([json.dumps(d) for d in made[:20]]), NOW)
    still = validate_stage("raw", settings, lake, [ANNA])
    assert [outcome.expectation.name for outcome in still.blocking] == ["values_are_in_mg_dl"]
    assert (still.blocking[0].failed or 0) < (found.blocking[0].failed or 0)
    write_batch(lake, "anna", 3, documents_from_json([json.dumps(d) for d in made[20:]]), NOW)
    mended = validate_stage("raw", settings, lake, [ANNA])
    assert mended.blocking == ()
    assert mended.rows == 60
