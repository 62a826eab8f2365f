"""What every dbt model has to have, read from dbt's own manifest."""

import json
from typing import Any

import pytest

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, load_settings

LAYERS = {"staging": "stg", "intermediate": "int", "curated": "curated", "marts": "mart"}
PREFIXES = {"staging": ("stg_",), "intermediate": ("int_",), "curated": ("fact_", "dim_"), "marts": ("mart_",)}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("home")))
        parsed: dict[str, Any] = json.loads(DbtProject(load_settings()).prepare_manifest().read_text())
    return parsed


@pytest.fixture(scope="module")
def models(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["name"]: node for node in manifest["nodes"].values() if node["resource_type"] == "model"}


def test_names_tags_and_schemas_follow_the_layer(models: dict[str, dict[str, Any]]) -> None:
    for name, model in models.items():
        layer = model["path"].partition("/")[0]
        assert name.startswith(PREFIXES[layer]), name
        assert set(model["tags"]) == {"nightscout", LAYERS[layer]}, name
        assert model["schema"] == layer, name


def test_every_model_and_column_is_described(models: dict[str, dict[str, Any]]) -> None:
    for name, model in models.items():
        assert model["description"], name
        assert model["columns"], name
        for column in model["columns"].values():
            assert column["description"], f"{name}.{column['name']}"


def test_what_others_build_on_has_a_contract_and_a_tested_key(
    manifest: dict[str, Any], models: dict[str, dict[str, Any]]
) -> None:
    tests = [node for node in manifest["nodes"].values() if node["resource_type"] == "test"]
    for name, model in models.items():
        if model["schema"] not in ("curated", "marts"):
            continue
        assert model["contract"]["enforced"], name
        kinds = {
            test["test_metadata"]["name"]
            for test in tests
            if test.get("test_metadata") and model["unique_id"] == test["attached_node"]
        }
        assert kinds & {"unique", "one_row_per"}, name


def test_fact_glucose_readings_is_incremental_by_its_id(models: dict[str, dict[str, Any]]) -> None:
    config = models["fact_glucose_readings"]["config"]
    assert config["materialized"] == "incremental"
    assert config["unique_key"] == "entry_id"
    assert models["stg_nightscout_glucose"]["config"]["materialized"] == "view"


def test_every_model_is_in_the_reference(models: dict[str, dict[str, Any]]) -> None:
    reference = (REPOSITORY_ROOT / "docs" / "reference" / "models.md").read_text()
    assert [name for name in models if f"`{name}`" not in reference] == []
