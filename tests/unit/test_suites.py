"""Suites are edited by hand: what is malformed is said in one line, with the file and the key."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nightscout_lakehouse.lib.quality import frames, suites
from nightscout_lakehouse.lib.quality.stages import SUITE_FILES, Stage, check_suites, stage_suite
from nightscout_lakehouse.lib.quality.suites import SUITES_DIR, SuiteError, load_suite
from nightscout_lakehouse.lib.quality.validation import check_suite
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT


def a_suite() -> dict[str, Any]:
    return {
        "name": "mine",
        "meta": {"frame": "enriched_readings", "guards": "int_glucose_enriched"},
        "expectations": [
            {
                "type": "expect_column_values_to_not_be_null",
                "kwargs": {"column": "glucose_mg_dl"},
                "severity": "critical",
                "meta": {"name": "it_is_there", "why": "It has to be there.", "source": "a page"},
            }
        ],
    }


def written(folder: Path, content: dict[str, Any] | str) -> Path:
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("stage", SUITE_FILES)
def test_the_suites_of_the_repository_fit_their_frames_and_great_expectations(stage: Stage) -> None:
    suite = stage_suite(stage)
    check_suite(suite)
    for expectation in suite.expectations:
        assert set(expectation.columns) <= set(frames.FRAME_COLUMNS[suite.frame]), expectation.name
        assert expectation.columns, expectation.name


def test_the_glucose_suite_says_what_was_agreed() -> None:
    content = json.loads((SUITES_DIR / "nightscout_suite.json").read_text())
    assert content["name"] == "nightscout_glucose_suite"
    of_glucose = [item for item in content["expectations"] if item["kwargs"].get("column") == "glucose_mg_dl"]
    kwargs = {item["type"]: item["kwargs"] for item in of_glucose}
    assert kwargs["expect_column_values_to_be_between"] == {
        "column": "glucose_mg_dl",
        "min_value": 20,
        "max_value": 600,
        "mostly": 0.99,
    }
    assert kwargs["expect_column_mean_to_be_between"] == {"column": "glucose_mg_dl", "min_value": 80, "max_value": 250}
    assert "expect_column_values_to_not_be_null" in kwargs


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda s: s["expectations"][0].pop("type"), "expectations[0].type"),
        (lambda s: s["expectations"][0].update(type="ExpectNothing"), "expectations[0].type"),
        (lambda s: s["expectations"][0].update(severity="severe"), "expectations[0].severity"),
        (lambda s: s["expectations"][0].update(kwarg={}), "expectations[0].kwarg"),
        (lambda s: s["expectations"][0]["meta"].pop("why"), "expectations[0].meta.why"),
        (lambda s: s["expectations"][0]["meta"].update(source=""), "expectations[0].meta.source"),
        (lambda s: s["expectations"][0]["meta"].update(scope="always"), "expectations[0].meta.scope"),
        (lambda s: s["expectations"].append(s["expectations"][0]), "expectations[1].meta.name"),
        (lambda s: s["meta"].pop("guards"), "meta.guards"),
        (lambda s: s.pop("name"), "name"),
        (lambda s: s.update(expectations=[]), "expectations"),
    ],
)
def test_what_is_malformed_is_named_by_its_key(change: Any, key: str, tmp_path: Path) -> None:
    suite = a_suite()
    change(suite)
    path = written(tmp_path, suite)
    with pytest.raises(SuiteError) as refused:
        load_suite(path)
    message = str(refused.value)
    assert str(path) in message
    assert f"key {key}" in message
    assert "\n" not in message


def test_a_file_that_is_no_json_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"mine\.json is not valid JSON: .*line 1"):
        load_suite(written(tmp_path, '{"name": '))
    with pytest.raises(SuiteError, match=r"gone\.json cannot be read \(No such file"):
        load_suite(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "expect_column_values_to_be_nice"}, "key type: Great Expectations has no"),
        ({"kwargs": {"colum": "glucose_mg_dl"}}, "key kwargs: "),
        ({"kwargs": {"column": "glucose_mg_dl", "mostly": 1.5}}, "key kwargs: mostly: "),
    ],
)
def test_what_great_expectations_refuses_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    suite = a_suite()
    suite["expectations"][0].update(change)
    with pytest.raises(SuiteError, match="expectation it_is_there") as refused:
        check_suite(load_suite(written(tmp_path, suite)))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_reference_has_every_key_and_every_column() -> None:
    page = (REPOSITORY_ROOT / "docs" / "reference" / "suites.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert {
        frame: dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE)) for frame, text in sections.items()
    } == frames.FRAME_COLUMNS
    keys = set(re.findall(r"^\| `expectations\[\]\.([\w.]+)`", page, re.MULTILINE))
    assert keys == {"type", "kwargs", "severity", *(f"meta.{name}" for name in suites._Meta.model_fields)}


def test_a_suite_about_other_rows_or_columns_is_refused(tmp_path: Path) -> None:
    suite = a_suite()
    (checked,) = check_suites([written(tmp_path, suite)])
    assert checked.name == "mine"
    suite["expectations"][0]["kwargs"]["column"] = "glucose"
    with pytest.raises(SuiteError, match=r"key expectations\[0\]\.kwargs: enriched_readings has no column glucose"):
        check_suites([written(tmp_path, suite)])
    suite["meta"]["frame"] = "rows"
    with pytest.raises(SuiteError, match=r"key meta\.frame: there is no frame rows"):
        check_suites([written(tmp_path, suite)])
    assert [found.name for found in check_suites()] == [stage_suite(stage).name for stage in SUITE_FILES]
