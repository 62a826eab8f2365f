"""What Dagster is given: names that users rely on, one connected graph, no warning of any library."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
import pytest

from nightscout_lakehouse.instance import prepare_environment
from nightscout_lakehouse.lib.settings import Settings


@pytest.fixture(scope="module")
def defs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.Definitions]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("home")))
        from nightscout_lakehouse.definitions import defs

        yield defs


@pytest.fixture(scope="module")
def specs(defs: dg.Definitions) -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_dagster_finds_them_valid_and_nothing_deprecated() -> None:
    # As the command `dagster definitions validate` does, without a second process that serves them.
    code = (
        "import dagster\n"
        "from nightscout_lakehouse.definitions import defs\n"
        "dagster.Definitions.validate_loadable(defs)\n"
    )
    validated = subprocess.run(
        [sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=False, timeout=200
    )
    assert validated.returncode == 0, validated.stderr
    # What libraries import of each other is theirs.
    warnings = [line for line in validated.stderr.splitlines() if "Warning" in line and "sqlglotrs" not in line]
    assert warnings == []


@pytest.mark.parametrize(
    "name",
    [
        "raw_nightscout_entries",
        "processed_nightscout_entries",
        "raw_nightscout_treatments",
        "processed_nightscout_treatments",
        "raw_nightscout_device_status",
        "processed_nightscout_device_status",
        "raw_nightscout_profiles",
        "processed_nightscout_profiles",
        "stg_nightscout_glucose",
        "int_glucose_enriched",
        "fact_glucose_readings",
        "dim_glucose_date",
        "dim_site",
        "mart_glucose_overview",
    ],
)
def test_assets_keep_their_names(name: str, specs: dict[str, dg.AssetSpec]) -> None:
    assert name in specs


def test_jobs_schedule_and_sensor_keep_their_names(defs: dg.Definitions) -> None:
    assert defs.resolve_job_def("nightscout_pipeline")
    assert defs.resolve_job_def("nightscout_backfill").partitions_def is not None
    schedule = defs.resolve_schedule_def("nightscout_every_30_min")
    assert schedule.cron_schedule == "*/30 * * * *"
    assert schedule.execution_timezone == "UTC"
    assert schedule.job_name == "nightscout_pipeline"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    for sensor in ("pipeline_failure_alert", "pipeline_recovery_alert", "glucose_alerts"):
        assert defs.resolve_sensor_def(sensor).default_status is dg.DefaultSensorStatus.RUNNING


def test_every_mart_descends_from_what_was_read_by_way_of_every_layer(
    defs: dg.Definitions, specs: dict[str, dg.AssetSpec]
) -> None:
    graph = defs.resolve_asset_graph()
    marts = [name for name in specs if name.startswith("mart_glucose")]
    assert len(marts) >= 4
    for mart in marts:
        ancestors = {key.to_user_string() for key in graph.get_ancestor_asset_keys(dg.AssetKey(mart))}
        assert {
            "raw_nightscout_entries",
            "processed_nightscout_entries",
            "stg_nightscout_glucose",
            "int_glucose_enriched",
            "fact_glucose_readings",
        } <= ancestors, mart
        assert any(name.startswith("published_") for name in ancestors), mart


def test_the_graph_is_one(defs: dg.Definitions, specs: dict[str, dg.AssetSpec]) -> None:
    graph = defs.resolve_asset_graph()
    found, ahead = set[str](), ["raw_nightscout_entries"]
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            node = graph.get(dg.AssetKey(name))
            ahead += [key.to_user_string() for key in node.parent_keys | node.child_keys]
    assert found == set(specs)


def test_every_asset_says_what_it_is(specs: dict[str, dg.AssetSpec]) -> None:
    for name, spec in specs.items():
        assert spec.description, name
        assert spec.group_name in {"nightscout", "nightscout_quality"}, name
        assert spec.owners, name
        assert spec.kinds, name


@pytest.mark.parametrize("name", ["raw_nightscout_entries", "processed_nightscout_entries", "mart_glucose_overview"])
def test_what_is_read_and_shown_has_a_freshness_policy(name: str, specs: dict[str, dg.AssetSpec]) -> None:
    assert specs[name].freshness_policy == dg.FreshnessPolicy.time_window(
        fail_window=timedelta(hours=24), warn_window=timedelta(minutes=75)
    )


def test_runs_of_one_lake_wait_for_each_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    prepare_environment(settings)
    with dg.DagsterInstance.get() as instance:
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 1
        assert not instance.telemetry_enabled
