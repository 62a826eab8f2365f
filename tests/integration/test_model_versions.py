"""After a change of the models' code, no day stays as the old code saw it."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nightscout_lakehouse.lib import dbt_project
from nightscout_lakehouse.lib.dbt_project import DbtError, DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.model_versions import model_versions
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.publishing import PUBLISHED_TABLES, publish
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import open_warehouse

SITE = Site("anna", "http://127.0.0.1:1", timezone="UTC")
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
# As if an older release had doubled every value.
AS_OLD_CODE = "update {table} set glucose_mg_dl = 2 * glucose_mg_dl"


def manifest(**models: tuple[str, list[str]]) -> dict[str, Any]:
    return {
        "metadata": {"project_name": "ours"},
        "macros": {
            "m": {"package_name": "ours", "macro_sql": "select 1"},
            "n": {"package_name": "dbt", "macro_sql": "anything"},
        },
        "nodes": {
            name: {
                "name": name,
                "resource_type": "model",
                "checksum": {"checksum": code},
                "contract": {"checksum": None},
                "depends_on": {"nodes": parents},
            }
            for name, (code, parents) in models.items()
        },
    }


def test_a_version_follows_the_code_upstream_and_the_macros() -> None:
    before = model_versions(manifest(stg=("a", []), fact=("b", ["stg", "source.x"]), other=("c", [])))
    after = model_versions(manifest(stg=("A", []), fact=("b", ["stg", "source.x"]), other=("c", [])))
    assert before["stg"] != after["stg"]
    assert before["fact"] != after["fact"]
    assert before["other"] == after["other"]
    of_other_macros = manifest(stg=("a", []), fact=("b", ["stg"]), other=("c", []))
    of_other_macros["macros"]["n"]["macro_sql"] = "what dbt brings is bound by its version"
    assert model_versions(of_other_macros) == before
    of_other_macros["macros"]["m"]["macro_sql"] = "select 2"
    assert not set(model_versions(of_other_macros).values()) & set(before.values())
    of_another_contract = manifest(stg=("a", []), fact=("b", ["stg"]), other=("c", []))
    of_another_contract["nodes"]["fact"]["contract"]["checksum"] = "of its columns and their types"
    assert model_versions(of_another_contract) == before | {"fact": model_versions(of_another_contract)["fact"]}
    assert model_versions(of_another_contract)["fact"] != before["fact"]


def test_a_version_follows_the_code_of_the_sql_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_versions(manifest(fact=("a", [])))
    monkeypatch.setattr("nightscout_lakehouse.lib.model_versions.functions_version", lambda: "other code")
    assert model_versions(manifest(fact=("a", []))) != before


@pytest.mark.postgres
def test_the_history_is_built_anew_and_published(settings: Settings, lake: Lake, serving: PostgresConnection) -> None:
    texts = [
        json.dumps({"_id": f"{n:024x}", "type": "sgv", "sgv": 100, "date": int(NOON.timestamp() * 1000) - n * 300_000})
        for n in range(1000)
    ]
    write_batch(lake, "anna", 1, documents_from_json(texts), NOON)
    process_sites([SITE], settings, lake)
    project, models = DbtProject(settings), ["+fact_glucose_readings"]
    published = [table for table in PUBLISHED_TABLES if table.name == "fact_glucose_readings"]
    project.build("duckdb", models, data_tests=False)
    tables = ("intermediate.int_glucose_enriched", "curated.fact_glucose_readings")
    with open_warehouse(settings) as warehouse:
        for table in tables:
            warehouse.execute(AS_OLD_CODE.format(table=table))
        publish(warehouse, serving, tables=published)
        changes = warehouse.execute("select count(*) from ops.changes").fetchall()

    project.build("duckdb", models, data_tests=False)
    assert _values(settings) == [(200.0, 1000)]
    with open_warehouse(settings) as warehouse:
        assert warehouse.execute("select count(*) from ops.changes").fetchall() == changes
        warehouse.execute(
            "update ops.model_versions set version = 'of an older release' where model = 'int_glucose_enriched'"
        )

    project.build("duckdb", models, data_tests=False)
    assert _values(settings) == [(100.0, 1000)]
    with open_warehouse(settings) as warehouse:
        report = publish(warehouse, serving, tables=published)
        versions = warehouse.execute("select version from ops.model_versions").fetchall()
    assert not report.is_full
    with serving.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("select distinct glucose_mg_dl from curated.fact_glucose_readings")
        assert cursor.fetchall() == [(100.0,)]
    assert ("of an older release",) not in versions


def _values(settings: Settings) -> list[tuple[Any, ...]]:
    with open_warehouse(settings) as warehouse:
        return warehouse.execute(
            "select glucose_mg_dl, count(*) from curated.fact_glucose_readings group by all"
        ).fetchall()


def test_a_table_that_stands_keeps_its_descriptions_and_its_columns(settings: Settings, lake: Lake) -> None:
    project, models = DbtProject(settings), ["+int_glucose_enriched"]
    process_sites([SITE], settings, lake)
    project.build("duckdb", models, data_tests=False)
    described = (
        "select column_name, comment from duckdb_columns() where table_name = 'int_glucose_enriched' order by all"
    )
    with open_warehouse(settings) as warehouse:
        before = warehouse.execute(described).fetchall()
        warehouse.execute("comment on column intermediate.int_glucose_enriched.site is 'as an older release said it'")
    assert all(comment for _, comment in before)
    project.build("duckdb", models, data_tests=False)
    with open_warehouse(settings) as warehouse:
        assert warehouse.execute(described).fetchall() == before
        warehouse.execute("alter table intermediate.int_glucose_enriched add column stray integer")
    with pytest.raises(DbtError, match="out of sync"):
        project.build("duckdb", models, data_tests=False)
    project.build("duckdb", models, data_tests=False, full_refresh=True)
    with open_warehouse(settings) as warehouse:
        assert warehouse.execute(described).fetchall() == before


def test_models_that_nothing_changed_for_are_left_alone(settings: Settings, lake: Lake) -> None:
    project, models = DbtProject(settings), ["stg_nightscout_glucose", "int_glucose_enriched"]
    site = Site("anna", "http://127.0.0.1:1", timezone="Europe/Berlin")
    process_sites([site], settings, lake)
    assert project.build_if_changed("duckdb", models) is not None
    process_sites([site], settings, lake)
    assert project.build_if_changed("duckdb", models) is None
    # Another selection, another site, another zone of a site, another day: each is a change.
    assert project.build_if_changed("duckdb", models[:1]) is not None
    process_sites([Site("ben", "http://127.0.0.1:1", timezone="UTC")], settings, lake)
    assert project.build_if_changed("duckdb", models) is not None
    process_sites([Site("ben", "http://127.0.0.1:1", timezone="Asia/Kolkata")], settings, lake)
    assert project.build_if_changed("duckdb", models) is not None
    assert project.build_if_changed("duckdb", models) is None
    with open_warehouse(settings) as warehouse:
        warehouse.execute("insert into ops.changes (site, reading_date) values ('anna', '2026-11-01')")
    assert project.build_if_changed("duckdb", models) is not None


def test_a_project_that_does_not_parse_is_said_with_its_file(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DbtProject(settings).prepare_manifest()
    copy = Path(shutil.copytree(dbt_project.DBT_PROJECT_DIR, tmp_path / "dbt"))
    (copy / "models" / "curated" / "dim_site.yml").write_text("models: [{name: dim_site, columns: 7}]\n")
    # What was parsed before is not taken for it.
    monkeypatch.setattr(dbt_project, "DBT_PROJECT_DIR", copy)
    with pytest.raises(DbtError, match=r"dbt cannot parse the project: .*dim_site\.yml"):
        DbtProject(settings).build("duckdb", ["+int_glucose_enriched"])
