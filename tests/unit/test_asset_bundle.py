"""The form of the dashboards' files: without what differs between two machines, and back."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nightscout_lakehouse.lib.dashboard.environment import BUNDLE_DIR, SUPERSET_DIR

sys.path.insert(0, str(SUPERSET_DIR))

import asset_bundle

CHART, OTHER = "6daaee36-e4b6-5a46-bc5a-2f92d46b6a87", "0b7eaaf7-d7bb-5f3d-8d4e-7213e2def406"


def chart_node(chart: int, uuid: str) -> dict[str, Any]:
    return {"type": "CHART", "id": f"CHART-{uuid[:4]}", "meta": {"chartId": chart, "uuid": uuid}}


def exported(first: int, second: int, dataset: int) -> dict[str, str]:
    """A dashboard as two machines would export it, each with ids of its own."""
    both = [first, second]
    dashboard = {
        "dashboard_title": "Glucose",
        "css": "",
        "slug": "glucose",
        "uuid": "9769db1a-91ce-5357-8a05-eba309e5f07f",
        "position": {"CHART-a": chart_node(first, CHART), "CHART-b": chart_node(second, OTHER), "KEY": "v2"},
        "metadata": {
            "chart_configuration": {
                str(first): {"id": first, "crossFilters": {"scope": "global", "chartsInScope": both}},
                str(second): {"id": second, "crossFilters": {"scope": {"rootPath": [], "excluded": [first]}}},
            },
            "expanded_slices": {str(second): True},
            "timed_refresh_immune_slices": [second],
            "native_filter_configuration": [
                {"id": "F", "scope": {"excluded": both}, "chartsInScope": both, "targets": [{"datasetUuid": OTHER}]}
            ],
            "shared_label_colors": ["demo"],
            "map_label_colors": {"demo": "#000000"},
            "default_filters": "{}",
            "refresh_frequency": 300,
        },
        "version": "1.0.0",
    }
    chart = {
        "slice_name": "Time in range",
        "description": None,
        "viz_type": "pie",
        "params": {"datasource": f"{dataset}__table", "slice_id": first, "dashboards": [1], "viz_type": "pie", "b": 1},
        "query_context": f'{{"datasource": {dataset}}}',
        "uuid": CHART,
        "dataset_uuid": OTHER,
        "version": "1.0.0",
    }
    return {
        f"dashboards/Glucose_{first}.yaml": yaml.safe_dump(dashboard),
        f"charts/Time_in_range_{first}.yaml": yaml.safe_dump(chart),
        "metadata.yaml": "timestamp: 2026-11-25T17:00:00",
    }


def test_two_machines_export_the_same() -> None:
    one, two = (asset_bundle.canonical(exported(*ids), {}) for ids in ((1, 2, 3), (71, 8, 9)))
    assert one == two
    assert list(one) == ["charts/time_in_range.yaml", "dashboards/glucose.yaml", "metadata.yaml"]
    assert yaml.safe_load(one["charts/time_in_range.yaml"])["params"] == {"b": 1}
    text = one["dashboards/glucose.yaml"]
    for computed in ("chartsInScope", "label_colors", "default_filters", "css"):
        assert computed not in text
    first, second = asset_bundle.chart_number(CHART), asset_bundle.chart_number(OTHER)
    metadata = yaml.safe_load(text)["metadata"]
    assert metadata["native_filter_configuration"][0]["scope"]["excluded"] == sorted([first, second])
    assert metadata["timed_refresh_immune_slices"] == [second]
    assert metadata["expanded_slices"] == {str(second): True}
    # The first takes part in cross-filtering as every chart does.
    assert metadata["chart_configuration"] == {
        str(second): {"id": second, "crossFilters": {"scope": {"excluded": [first], "rootPath": []}}}
    }


def test_the_form_is_stable() -> None:
    once = asset_bundle.canonical(exported(1, 2, 3), {})
    assert asset_bundle.canonical(once, once) == once
    assert asset_bundle.canonical(asset_bundle.completed(once), once) == once


def test_known_assets_keep_their_files() -> None:
    bundle = asset_bundle.canonical(exported(1, 2, 3), {"charts/tir.yaml": f"uuid: {CHART}"})
    assert "charts/tir.yaml" in bundle
    # A new asset does not take the name of a known one.
    bundle = asset_bundle.canonical(exported(1, 2, 3), {"charts/time_in_range.yaml": f"uuid: {OTHER}"})
    assert f"charts/time_in_range_{CHART[:8]}.yaml" in bundle


def test_what_the_editor_fills_in_stays_out_unless_it_was_written() -> None:
    defaults = {"pie": {"donut": False, "show_legend": True, "b": 1}}
    saved = exported(1, 2, 3)
    (name,) = [name for name in saved if name.startswith("charts/")]
    chart = yaml.safe_load(saved[name])
    filled_in = {"donut": False, "show_legend": False, "matrixify_enable": False, "matrixify_row_height": 300}
    saved[name] = yaml.safe_dump(chart | {"params": chart["params"] | filled_in})
    known = {"charts/tir.yaml": f"uuid: {CHART}\nparams: {{b: 1}}"}
    bundle = asset_bundle.canonical(saved, known, defaults)
    assert yaml.safe_load(bundle["charts/tir.yaml"])["params"] == {"b": 1, "show_legend": False}
    bundle = asset_bundle.canonical(saved, {}, defaults)
    assert yaml.safe_load(bundle["charts/time_in_range.yaml"])["params"] == {"show_legend": False}


def test_what_a_dashboard_says_when_it_is_saved_unchanged_stays_out() -> None:
    before = asset_bundle.canonical(exported(1, 2, 3), {})
    dashboard = yaml.safe_load(before["dashboards/glucose.yaml"])
    dashboard |= {"certified_by": "", "certification_details": "", "description": ""}
    everywhere = {"scope": {"rootPath": ["ROOT_ID"], "excluded": []}, "chartsInScope": [1, 2]}
    dashboard["metadata"] |= {"cross_filters_enabled": True, "global_chart_configuration": everywhere}
    saved = before | {"dashboards/glucose.yaml": yaml.safe_dump(dashboard)}
    assert asset_bundle.canonical(saved, before) == before


def test_an_import_resets_what_the_files_leave_out() -> None:
    whole = asset_bundle.completed(asset_bundle.canonical(exported(1, 2, 3), {}))
    chart = yaml.safe_load(whole["charts/time_in_range.yaml"])
    assert {key: chart[key] for key in ("description", "cache_timeout", "query_context")} == {
        "description": None,
        "cache_timeout": None,
        "query_context": None,
    }


def test_a_chart_without_number_gets_one() -> None:
    bundle = asset_bundle.canonical(exported(1, 2, 3), {})
    dashboard = yaml.safe_load(bundle["dashboards/glucose.yaml"])
    numbered = copy.deepcopy(dashboard)
    for node in ("CHART-a", "CHART-b"):
        del dashboard["position"][node]["meta"]["chartId"]
    bundle["dashboards/glucose.yaml"] = yaml.safe_dump(dashboard)
    assert yaml.safe_load(asset_bundle.completed(bundle)["dashboards/glucose.yaml"])["position"] == numbered["position"]


def test_secrets_of_a_database_stay_out() -> None:
    database = {
        "database_name": "Marts",
        "uuid": CHART,
        "password": "hunter2",
        "encrypted_extra": "hunter2",
        "ssh_tunnel": {"password": "hunter2"},
        "allow_file_upload": False,
        "extra": {"schemas_allowed_for_file_upload": []},
    }
    text = asset_bundle.canonical({"databases/m.yaml": yaml.safe_dump(database)}, {})["databases/marts.yaml"]
    assert "hunter2" not in text
    assert "allow_csv_upload: false" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", r"charts/odd\.yaml is not an asset with a uuid"),
        ("a: 1\nb: [", r"charts/odd\.yaml is not valid YAML in line 2"),
        (f"uuid: {CHART}\ndataset_uuid: nowhere", r"charts/odd\.yaml, dataset_uuid: no file has the uuid nowhere"),
        (f"uuid: {OTHER}", r"charts/odd\.yaml has the uuid of charts/a\.yaml"),
        (
            f"uuid: {CHART}\nmetadata: {{native_filter_configuration: [{{name: Site, targets: [datasetUuid: x]}}]}}",
            r"charts/odd\.yaml, filter Site: no file has the uuid x",
        ),
        (
            f"uuid: {CHART}\nposition: {{CHART-1: {{type: CHART, meta: {{uuid: y, sliceName: Days}}}}}}",
            r"charts/odd\.yaml, chart Days: no file has the uuid y",
        ),
    ],
)
def test_a_file_that_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(asset_bundle.BundleError, match=message):
        asset_bundle.check({"charts/a.yaml": f"uuid: {OTHER}", "charts/odd.yaml": text})


def test_writing_a_bundle_says_what_changed(tmp_path: Path) -> None:
    assert asset_bundle.write_bundle(tmp_path, {"charts/a.yaml": "1\n", "metadata.yaml": "2\n"}) == [
        "charts/a.yaml",
        "metadata.yaml",
    ]
    changed = asset_bundle.write_bundle(tmp_path, {"charts/b.yaml": "1\n", "metadata.yaml": "2\n"})
    assert changed == ["charts/a.yaml", "charts/b.yaml"]
    assert asset_bundle.read_bundle(tmp_path) == {"charts/b.yaml": "1\n", "metadata.yaml": "2\n"}


# The files of the repository


def test_the_files_are_in_this_form() -> None:
    bundle = asset_bundle.read_bundle(BUNDLE_DIR)
    assert asset_bundle.canonical(bundle, bundle) == bundle


def test_the_files_hold_together_and_let_nobody_write() -> None:
    bundle = asset_bundle.read_bundle(BUNDLE_DIR)
    asset_bundle.check(bundle)
    (database,) = [yaml.safe_load(text) for name, text in bundle.items() if name.startswith("databases/")]
    assert database["sqlalchemy_uri"] == "postgresql+psycopg2://bi_reader@marts/lakehouse"
    allowed = [
        key for key, value in database.items() if key.startswith(("allow_", "expose_", "impersonate_")) and value
    ]
    assert allowed == []
