"""The files of the dashboards against the marts that they draw from."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nightscout_lakehouse.lib.agp_report.content import RANGES
from nightscout_lakehouse.lib.dashboard.environment import BUNDLE_DIR
from nightscout_lakehouse.lib.settings import DBT_PROJECT_DIR

TYPES = {
    "text": "TEXT",
    "double precision": "DOUBLE PRECISION",
    "timestamp": "TIMESTAMP WITHOUT TIME ZONE",
    "timestamp with time zone": "TIMESTAMP WITH TIME ZONE",
    "integer": "INTEGER",
    "bigint": "BIGINT",
    "boolean": "BOOLEAN",
    "date": "DATE",
}
SNAKE_CASE = re.compile(r"\b[a-z0-9]+_[a-z0-9_]+\b")


def assets(kind: str) -> dict[str, dict[str, Any]]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((BUNDLE_DIR / kind).glob("*.yaml"))}


DATASETS, CHARTS, DASHBOARDS = assets("datasets"), assets("charts"), assets("dashboards")


def mart(name: str) -> dict[str, Any]:
    found = yaml.safe_load((DBT_PROJECT_DIR / "models" / "marts" / f"{name}.yml").read_text())
    model: dict[str, Any] = found["models"][0]
    return model


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_is_a_mart_with_labels_and_the_marts_own_descriptions(name: str) -> None:
    dataset, model = DATASETS[name], mart(name)
    assert (dataset["schema"], dataset["table_name"], dataset.get("sql")) == ("marts", name, None)
    assert dataset["description"] == " ".join(model["description"].split())
    columns = {column["column_name"]: column for column in dataset["columns"]}
    in_mart = {column["name"]: column for column in model["columns"]}
    assert {key for key, column in columns.items() if not column.get("expression")} == in_mart.keys()
    for key, column in columns.items():
        assert column["verbose_name"], key
        assert not SNAKE_CASE.search(column["verbose_name"]), key
        assert column["description"], key
        if key in in_mart:
            assert column["description"] == in_mart[key]["description"]
            assert column["type"] == TYPES[in_mart[key]["data_type"]]
    for metric in dataset["metrics"]:
        assert metric["description"], metric
        assert metric["d3format"], metric
        assert not SNAKE_CASE.search(metric["metric_name"].replace("__yhat_lower", "").replace("__yhat_upper", ""))


def test_every_chart_is_described_and_on_a_dashboard() -> None:
    shown = {node["meta"]["uuid"] for board in DASHBOARDS.values() for node in nodes(board)}
    assert {chart["uuid"] for chart in CHARTS.values()} == shown
    assert all(chart["description"].endswith(".") for chart in CHARTS.values())
    titles = [chart["slice_name"] for chart in CHARTS.values()]
    assert len(set(titles)) == len(titles)


def nodes(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for node in dashboard["position"].values():
        if isinstance(node, dict) and node["type"] == "CHART":
            yield node


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_wide_screen_and_a_phone_show_the_same_marts(name: str) -> None:
    """Rows for either are told apart by the names of what stands in them; see the CSS of the dashboard."""
    datasets: dict[str, set[str]] = {"wide": set(), "phone": set()}
    by_uuid = {chart["uuid"]: chart for chart in CHARTS.values()}
    for node in nodes(DASHBOARDS[name]):
        kind = node["id"].removeprefix("CHART-").partition("_")[0]
        if kind in datasets:
            datasets[kind].add(by_uuid[node["meta"]["uuid"]]["dataset_uuid"])
        if kind != "wide":
            assert node["meta"]["width"] == 12, node["id"]
    assert datasets["wide"] == datasets["phone"]
    for kind in datasets:
        assert f'[id^="CHART-{kind}_"]' in DASHBOARDS[name]["css"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_refreshes_by_itself_and_asks_for_one_choice_each(name: str) -> None:
    metadata = DASHBOARDS[name]["metadata"]
    assert metadata["refresh_frequency"] == 300
    filters = {each["name"]: each for each in metadata["native_filter_configuration"]}
    for label in {"Person", "Period", "Unit"} & filters.keys():
        values = filters[label]["controlValues"]
        # Two people in one line, or two units in one table, would be a lie.
        assert (values["multiSelect"], values["enableEmptyFilter"]) == (False, True)
        if values["defaultToFirstItem"]:
            # Without this every chart asks once before the filter has its value: for all people.
            assert filters[label]["requiredFirst"]
        else:
            assert filters[label]["defaultDataMask"]["filterState"]["value"]


def test_ranges_have_the_colours_of_the_report() -> None:
    for dashboard in DASHBOARDS.values():
        colours = {name.strip(): colour for name, colour in dashboard["metadata"]["label_colors"].items()}
        for label, colour, _, _ in RANGES.values():
            assert colours[label] == colour


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_sentence_for_an_empty_chart_is_for_one_that_there_is(name: str) -> None:
    titles = {node["meta"]["sliceName"] for node in nodes(DASHBOARDS[name])}
    named = set(re.findall(r'data-test-chart-name="([^"]*)"', DASHBOARDS[name]["css"]))
    assert named <= titles
    # In the table of a clinic nobody is left out.
    assert bool(named) is (name == "glucose_monitoring")


def test_nothing_of_one_machine_is_in_the_files() -> None:
    text = json.dumps([DATASETS, CHARTS, DASHBOARDS]) + Path(BUNDLE_DIR / "databases" / "marts.yaml").read_text()
    assert not re.search(r"password|/home/|/tmp/|127\.0\.0\.1|localhost", text)
