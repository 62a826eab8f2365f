"""Law 3: whatever arrives in whatever order, the incremental models equal a full rebuild, row for row."""

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS, DEVICE_STATUS, PROFILES, TREATMENTS
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect

MODELS = ["tag:stg", "tag:int", "tag:curated"]
TABLES = (
    "intermediate.int_glucose_enriched",
    "intermediate.int_sensor_starts",
    "intermediate.int_reading_flags",
    "curated.fact_glucose_readings",
    "curated.dim_glucose_date",
    "curated.dim_site",
    "intermediate.int_treatments",
    "intermediate.int_basal_schedule",
    "intermediate.int_temp_basals",
    "intermediate.int_basal_delivery",
    "curated.fact_treatments",
    "curated.fact_daily_insulin",
    "curated.fact_meals",
    "curated.fact_loop_status",
    "curated.fact_glucose_profile",
    "curated.fact_glucose_patterns",
    "curated.fact_glucose_episodes",
    "curated.fact_sensor_gaps",
    "curated.dim_sensor_session",
    "intermediate.int_glucose_daily_pairs",
    "intermediate.int_glucose_daily_components",
    "intermediate.int_glucose_calendar",
    "intermediate.int_glucose_period_sums",
    "intermediate.int_glucose_hour_figures",
    "curated.fact_glucose_metrics",
    "curated.fact_glucose_comparison",
)
FETCHED_AT = datetime(2026, 11, 20, tzinfo=UTC)
# Around the end of summer time in Berlin (25 October 2026, 01:00 UTC) and in New York (1 November, 06:00 UTC).
START = datetime(2026, 10, 24, 18, 0, tzinfo=UTC)
ZONES = {
    "berlin": "Europe/Berlin",
    "berlin-too": "Europe/Berlin",
    "new-york": "America/New_York",
    "new-york-too": "America/New_York",
    "on-a-journey": "Europe/Berlin",
    "sydney": "Australia/Sydney",
    "kathmandu": "Asia/Kathmandu",
    "utc": "UTC",
}
SITES = {name: Site(name, "http://127.0.0.1:1", timezone=zone) for name, zone in ZONES.items()}
# Whose readings are not by chance: of one a day vanishes, of one a late reading comes, of one every day is figured out.
CERTAIN = {
    name: Site(name, "http://127.0.0.1:1", timezone=zone)
    for name, zone in {"gone": "America/New_York", "late": "Europe/Berlin", "figures": "America/New_York"}.items()
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


def treatment(number: int, slot: int, kind: str, amount: float, minutes: int, *, is_valid: bool = True) -> str:
    content: dict[str, Any] = {
        "Temp Basal": {"absolute": amount} if number % 2 else {"percent": 10 * amount - 50},
        "Combo Bolus": {"insulin": amount, "relative": 1.3},
        "Meal Bolus": {"insulin": amount, "carbs": 7 * amount},
        "Profile Switch": {"profile": "Default" if number % 2 else "Night", "percentage": 100 + amount},
        "Carb Correction": {"carbs": 10 * amount},
        "BG Check": {"glucose": 100 + amount, "units": "mg/dl", "glucoseType": "Finger"},
        "Sensor Start": {},
        "Sensor Change": {},
    }.get(kind, {"insulin": amount})
    described = {"eventType": kind, "duration": minutes, "isValid": is_valid, **content}
    created_at = (START + timedelta(minutes=5 * slot, seconds=number)).isoformat()
    return json.dumps({"_id": f"{number:024x}", "created_at": created_at, **described})


def profile(number: int, slot: int, rate: float, *, is_valid: bool = True) -> str:
    start = (START + timedelta(minutes=5 * slot)).isoformat()
    store = {
        "Default": {"basal": [{"time": "00:00", "value": rate}, {"time": "02:30", "value": 0.9}]},
        "Night": {"basal": [{"time": "00:00", "value": 0.3}, {"time": "22:10", "value": 1.1}], "timezone": "ETC/GMT+5"},
    }
    described = {"startDate": start, "created_at": start, "defaultProfile": "Default", "store": store}
    return json.dumps({"_id": f"{number:024x}", "isValid": is_valid, **described})


def loop_status(number: int, slot: int, iob: float, *, is_valid: bool = True) -> str:
    created_at = (START + timedelta(minutes=5 * slot)).isoformat()
    loop = {"iob": {"iob": iob}, "cob": {"cob": 3 * iob}}
    return json.dumps({"_id": f"{number:024x}", "created_at": created_at, "isValid": is_valid, "loop": loop})


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
_treatments = st.tuples(
    st.sampled_from(sorted(SITES)),
    st.integers(0, 25),
    _slots,
    st.sampled_from(
        [
            *("Temp Basal", "Temp Basal", "Combo Bolus", "Meal Bolus", "SMB", "Profile Switch", "Suspend Pump"),
            *("Carb Correction", "BG Check", "Sensor Start", "Sensor Start", "Sensor Change"),
        ]
    ),
    st.sampled_from([0.1, 0.7, 2, 5, -1]),
    st.sampled_from([0, 30, 50, 400, 2000]),
    st.booleans() | st.just(True),
)
# A build of the models for each step is what costs: one example of many sites, with much in each step.
_treatment_steps = st.lists(st.lists(_treatments, min_size=16, max_size=48), min_size=3, max_size=3)
_steps = st.lists(st.lists(_changes, min_size=16, max_size=60), min_size=3, max_size=3)


@pytest.mark.timeout(1200)
@given(steps=_steps, treatment_steps=_treatment_steps)
@hypothesis_settings(
    max_examples=1,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_incremental_equals_rebuild(
    steps: list[list[tuple[Any, ...]]],
    treatment_steps: list[list[tuple[Any, ...]]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The first example of Hypothesis is the simplest one.
    assume(len({change[0] for step in steps for change in step}) > 5)
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
            mine = [values[1:] for values in treatment_steps[number - 1] if values[0] == name]
            texts_of = {
                TREATMENTS.name: [treatment(*values[:-1], is_valid=values[-1]) for values in mine],
                # A few of each: the first profile comes late, and changes days that were computed without one.
                PROFILES.name: [profile(n % 3, slot, rate, is_valid=v) for n, slot, _, rate, _, v in mine if n > 20],
                DEVICE_STATUS.name: [loop_status(n, slot, iob, is_valid=v) for n, slot, _, iob, _, v in mine],
            }
            for collection in (TREATMENTS, PROFILES, DEVICE_STATUS):
                documents = documents_from_json(texts_of[collection.name])
                write_batch(lake, name, number, documents, FETCHED_AT, collection)
        for name, texts in certain_readings(number).items():
            write_batch(lake, name, number, documents_from_json(texts), FETCHED_AT)
        if number == len(steps):
            sites["on-a-journey"] = Site("on-a-journey", "http://127.0.0.1:1", timezone="Asia/Kolkata")
        for collection in COLLECTIONS:
            process_sites([*sites.values(), *CERTAIN.values()], settings, lake, collection)
        project.build("duckdb", MODELS, data_tests=False)
        if number == 1:
            assert_the_daily_figures_equal_an_independent_computation(settings)
        if number <= 2:
            assert_a_vanished_day_leaves_every_model_and_a_late_reading_mends_its_neighbours_change(settings, number)
    incremental = tables(settings)
    project.build("duckdb", MODELS, full_refresh=True)
    assert incremental == tables(settings)


FIGURED_OUT = random.Random(7).choices([40, 53, 54, 69, 70, 180, 181, 250, 251, 300], k=200)


def certain_readings(number: int) -> dict[str, list[str]]:
    """What comes in each step of the sites whose readings are not by chance."""
    if number == 1:
        return {
            "gone": [document(n, n, "sensor", 100, 0) for n in range(5)],
            # On either side of midnight (22:00 UTC), ten minutes apart.
            "late": [document(1, 47, "sensor", 100, 0), document(2, 49, "sensor", 130, 0)],
            "figures": [document(n, n, "sensor", value, 0) for n, value in enumerate(FIGURED_OUT)],
        }
    if number == 2:
        return {
            "gone": [document(n, n, "sensor", 100, 0, is_valid=False) for n in range(5)],
            "late": [document(3, 48, "sensor", 120, 0)],
        }
    return {}


def assert_a_vanished_day_leaves_every_model_and_a_late_reading_mends_its_neighbours_change(
    settings: Settings, number: int
) -> None:
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        if number == 1:
            days = "select site from curated.dim_glucose_date where site in ('gone', 'late') order by all"
            assert warehouse.execute(days).fetchall() == [("gone",), ("late",), ("late",)]
            return
        rows = {
            table: warehouse.execute(f"select count(*) from {table} where site = 'gone'").fetchall()[0][0]
            for table in TABLES
        }
        assert rows == {name: int(name == "curated.dim_site") for name in TABLES}
        assert warehouse.execute(
            "select glucose_mg_dl, glucose_change_mg_dl, reading_date::varchar"
            " from curated.fact_glucose_readings where site = 'late' order by reading_timestamp"
        ).fetchall() == [(100.0, None, "2026-10-24"), (120.0, 20.0, "2026-10-25"), (130.0, 10.0, "2026-10-25")]


def assert_the_daily_figures_equal_an_independent_computation(settings: Settings) -> None:
    by_day: dict[str, list[int]] = {}
    for slot, value in enumerate(FIGURED_OUT):
        local = START + timedelta(minutes=5 * slot) - timedelta(hours=4)
        by_day.setdefault(local.date().isoformat(), []).append(value)
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        rows = warehouse.execute(
            "select reading_date::varchar, reading_count, avg_glucose_mg_dl, time_in_range_pct, time_very_low_pct,"
            " time_above_range_pct, estimated_a1c_pct from curated.dim_glucose_date where site = 'figures' order by 1"
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
    # Some models read the sites from the bookkeeping, which a unit test cannot replace.
    process_sites([Site("a", "http://127.0.0.1:1", timezone="Europe/Berlin")], settings, Lake.open(settings))
    results = DbtProject(settings).unit_test().nodes
    assert len(results) >= 2
    assert {node.status for node in results} == {"pass"}
