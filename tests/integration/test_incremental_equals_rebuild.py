"""Law 3: whatever arrives in whatever order, the incremental models equal a full rebuild, row for row."""

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect

MODELS = ["tag:stg", "tag:int", "tag:curated"]
TABLES = (
    "intermediate.int_glucose_enriched",
    "intermediate.int_glucose_daily_pairs",
    "intermediate.int_glucose_daily_components",
    "intermediate.int_glucose_calendar",
    "intermediate.int_glucose_period_sums",
    "intermediate.int_glucose_hour_figures",
    "curated.fact_glucose_readings",
    "curated.dim_glucose_date",
    "curated.dim_site",
    "curated.fact_glucose_metrics",
    "curated.fact_glucose_comparison",
)
FETCHED_AT = datetime(2026, 11, 20, tzinfo=UTC)
# Around the end of summer time in Berlin (25 October 2026, 01:00 UTC) and in New York (1 November, 06:00 UTC).
START = datetime(2026, 10, 24, 18, 0, tzinfo=UTC)
SITES = {
    "berlin": Site("berlin", "http://127.0.0.1:1", timezone="Europe/Berlin"),
    "new-york": Site("new-york", "http://127.0.0.1:1", timezone="America/New_York"),
}


def tables(settings: Settings) -> dict[str, list[tuple[Any, ...]]]:
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        return {table: warehouse.execute(f"from {table} order by all").fetchall() for table in TABLES}


def document(number: int, slot: int, device: str, sgv: int, shift_seconds: int, *, is_valid: bool = True) -> str:
    moment = START + timedelta(minutes=5 * slot, seconds=shift_seconds)
    return json.dumps(
        {
            "_id": f"{number:024x}",
            "type": "sgv",
            "sgv": sgv,
            "date": int(moment.timestamp() * 1000),
            "device": device,
            "isValid": is_valid,
        }
    )


# Slots reach over eight days; most lie in the night of the clock change, where days meet.
_slots = st.one_of(st.integers(60, 110), st.integers(0, 2300))
_changes = st.tuples(
    st.sampled_from(sorted(SITES)),
    st.integers(0, 25),
    _slots,
    st.sampled_from(["sensor", "second uploader"]),
    st.sampled_from([5, 53, 54, 69, 70, 100, 180, 181, 251]),
    st.sampled_from([0, 40, 140, 160]),
    st.booleans() | st.just(True),
)
_steps = st.lists(st.lists(_changes, min_size=1, max_size=15), min_size=2, max_size=4)


@pytest.mark.timeout(600)
@given(steps=_steps, zone_change=st.booleans())
@hypothesis_settings(
    max_examples=12,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_incremental_equals_rebuild(
    steps: list[list[tuple[Any, ...]]],
    zone_change: bool,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("lakehouse")))
    settings = Settings()
    lake = Lake.open(settings)
    project = DbtProject(settings)
    sites = dict(SITES)
    for number, step in enumerate(steps, start=1):
        for name in sites:
            texts = [
                document(n, slot, device, sgv, shift, is_valid=is_valid)
                for site, n, slot, device, sgv, shift, is_valid in step
                if site == name
            ]
            write_batch(lake, name, number, documents_from_json(texts), FETCHED_AT)
        if zone_change and number == len(steps):
            sites["berlin"] = Site("berlin", "http://127.0.0.1:1", timezone="Asia/Kolkata")
        process_sites(list(sites.values()), settings, lake)
        project.build("duckdb", MODELS)
    incremental = tables(settings)
    project.build("duckdb", MODELS, full_refresh=True)
    assert incremental == tables(settings)


def test_a_day_that_vanishes_leaves_every_model(settings: Settings, lake: Lake) -> None:
    project, site = DbtProject(settings), SITES["berlin"]
    write_batch(
        lake, "berlin", 1, documents_from_json([document(n, n, "sensor", 100, 0) for n in range(5)]), FETCHED_AT
    )
    process_sites([site], settings, lake)
    project.build("duckdb", MODELS)
    assert len(tables(settings)["curated.dim_glucose_date"]) == 1
    gone = [document(n, n, "sensor", 100, 0, is_valid=False) for n in range(5)]
    write_batch(lake, "berlin", 2, documents_from_json(gone), FETCHED_AT)
    process_sites([site], settings, lake)
    project.build("duckdb", MODELS)
    assert {name: len(rows) for name, rows in tables(settings).items()} == {
        name: int(name == "curated.dim_site") for name in TABLES
    }


def test_a_late_reading_mends_its_neighbours_change(settings: Settings, lake: Lake) -> None:
    project, site = DbtProject(settings), SITES["berlin"]
    # 47 and 49 stand on either side of midnight in Berlin (22:00 UTC), ten minutes apart.
    first = [document(1, 47, "sensor", 100, 0), document(2, 49, "sensor", 130, 0)]
    write_batch(lake, "berlin", 1, documents_from_json(first), FETCHED_AT)
    process_sites([site], settings, lake)
    project.build("duckdb", MODELS)
    write_batch(lake, "berlin", 2, documents_from_json([document(3, 48, "sensor", 120, 0)]), FETCHED_AT)
    process_sites([site], settings, lake)
    project.build("duckdb", MODELS)
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        assert warehouse.execute(
            "select glucose_mg_dl, glucose_change_mg_dl, reading_date::varchar"
            " from curated.fact_glucose_readings order by reading_timestamp"
        ).fetchall() == [(100.0, None, "2026-10-24"), (120.0, 20.0, "2026-10-25"), (130.0, 10.0, "2026-10-25")]


def test_the_daily_figures_equal_an_independent_computation(settings: Settings, lake: Lake) -> None:
    chance = random.Random(7)
    values = [chance.choice([40, 53, 54, 69, 70, 180, 181, 250, 251, 300]) for _ in range(200)]
    texts = [document(n, n, "sensor", value, 0) for n, value in enumerate(values)]
    write_batch(lake, "new-york", 1, documents_from_json(texts), FETCHED_AT)
    process_sites([SITES["new-york"]], settings, lake)
    DbtProject(settings).build("duckdb", MODELS)
    by_day: dict[str, list[int]] = {}
    for slot, value in enumerate(values):
        local = START + timedelta(minutes=5 * slot) - timedelta(hours=4)
        by_day.setdefault(local.date().isoformat(), []).append(value)
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        rows = warehouse.execute(
            "select reading_date::varchar, reading_count, avg_glucose_mg_dl, time_in_range_pct, time_very_low_pct,"
            " time_above_range_pct, estimated_a1c_pct from curated.dim_glucose_date order by 1"
        ).fetchall()
    assert [row[0] for row in rows] == sorted(by_day)
    for day, count, mean, in_range, very_low, above, gmi in rows:
        of_day = by_day[day]
        assert count == len(of_day)
        assert mean == pytest.approx(sum(of_day) / count, rel=1e-12)
        assert in_range == pytest.approx(100 * sum(70 <= v <= 180 for v in of_day) / count, rel=1e-12)
        assert very_low == pytest.approx(100 * sum(v < 54 for v in of_day) / count, rel=1e-12)
        assert above == pytest.approx(100 * sum(v > 180 for v in of_day) / count, rel=1e-12)
        assert gmi == pytest.approx(3.31 + 0.02392 * sum(of_day) / count, rel=1e-12)


def test_the_units_of_the_models_hold(settings: Settings, tmp_path: Path) -> None:
    results = DbtProject(settings).unit_test().nodes
    assert len(results) >= 2
    assert {node.status for node in results} == {"pass"}
