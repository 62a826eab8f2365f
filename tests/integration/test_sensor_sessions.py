"""Sensor sessions: computed again from start to start, equal to a rebuild, and from what was entered."""

import json
import random
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake, sql_text
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES, TREATMENTS
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect

MODELS = ["+dim_sensor_session", "+fact_sensor_gaps"]
TABLES = (
    "curated.dim_sensor_session",
    "curated.fact_sensor_gaps",
    "intermediate.int_sensor_starts",
    "intermediate.int_reading_flags",
)
NOW = datetime(2026, 12, 20, tzinfo=UTC)
# Summer time ends within, on 25 October.
START = datetime(2026, 10, 1, 22, 0, tzinfo=UTC)
DAYS = 60
PER_DAY = 96
SITES = [
    Site(name, "http://127.0.0.1:1", timezone="Europe/Berlin", sensor_interval_minutes=15)
    for name in ("a", "b", "c", "regular")
]


def reading(device: str, slot: int, *, is_valid: bool = True) -> str:
    moment = START + timedelta(minutes=15 * slot, seconds=0 if device == "x" else 30)
    number = slot if device == "x" else 1_000_000 + slot
    described = {"type": "sgv", "sgv": 80 + slot % 70, "device": device, "isValid": is_valid}
    return json.dumps({"_id": f"{number:024x}", "date": int(moment.timestamp() * 1000), **described})


def other(number: int, slot: int, kind: str, glucose: float) -> str:
    """A calibration or a meter's value among the entries."""
    moment = START + timedelta(minutes=15 * slot, seconds=97)
    described = {"type": kind, "mbg": glucose, "slope": 800, "intercept": 30000, "scale": 1, "device": "x"}
    return json.dumps({"_id": f"{number:024x}", "date": int(moment.timestamp() * 1000), **described})


def treatment(number: int, slot: int, kind: str, *, is_valid: bool = True) -> str:
    moment = START + timedelta(minutes=15 * slot, seconds=97)
    described: dict[str, Any] = {"eventType": kind, "isValid": is_valid, "created_at": moment.isoformat()}
    if kind == "BG Check":
        described |= {"glucose": 90 + slot % 60, "glucoseType": "Finger", "units": "mg/dl"}
    return json.dumps({"_id": f"{number:024x}", **described})


Arrival = tuple[list[str], list[str]]


def arrive(settings: Settings, lake: Lake, number: int, sent: dict[str, Arrival]) -> None:
    """Entries and treatments of each site come, and the models take them in."""
    for site, (entries, treatments) in sent.items():
        write_batch(lake, site, number, documents_from_json(entries), NOW)
        write_batch(lake, site, number, documents_from_json(treatments), NOW, TREATMENTS)
    for collection in (ENTRIES, TREATMENTS):
        process_sites([site for site in SITES if site.name in sent], settings, lake, collection)
    DbtProject(settings).build("duckdb", MODELS, data_tests=False)


def rows_of(settings: Settings, sites: Collection[str]) -> dict[str, list[tuple[Any, ...]]]:
    named = f"site in ({', '.join(map(sql_text, sites))})"
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        return {table: warehouse.execute(f"from {table} where {named} order by all").fetchall() for table in TABLES}


class History:
    """What one site sends: 60 days at once, then changes step by step, all by chance."""

    def __init__(self, seed: int) -> None:
        self._chance = chance = random.Random(seed)
        last = DAYS * PER_DAY
        silent = set[int]()
        for _ in range(12):
            begun = chance.randrange(last)
            silent.update(range(begun, begun + chance.choice([4, 5, 9, 50, 100])))
        sent = [reading("x", slot) for slot in range(last) if slot not in silent]
        sent += [reading("y", slot) for slot in range(last) if chance.random() < 0.3 and slot not in silent]
        sent += [other(2_000_000 + n, chance.randrange(last), "mbg", chance.randint(80, 150)) for n in range(60)]
        sent += [other(3_000_000 + n, chance.randrange(last), "cal", 0) for n in range(30)]
        self._starts = {n: (10 + n) * PER_DAY + chance.randrange(PER_DAY) for n in range(0, DAYS - 12, 9)}
        entered = [treatment(n, slot, "Sensor Start") for n, slot in self._starts.items()]
        entered += [treatment(100 + n, chance.randrange(last), "BG Check") for n in range(60)]
        self.first: Arrival = (sent, entered)

    def step(self, number: int) -> Arrival:
        """A stretch around one day vanishes or comes late, in the middle of the history or at its end."""
        chance, last = self._chance, DAYS * PER_DAY
        first = chance.choice([last - 30, chance.randrange(last)])
        device, is_valid = chance.choice("xy"), chance.random() < 0.5
        entries = [reading(device, slot, is_valid=is_valid) for slot in range(first, first + chance.choice([1, 6, 60]))]
        entries.append(other(4_000_000 + number, first, chance.choice(["mbg", "cal"]), 111))
        start, slot = chance.choice(list(self._starts.items()))
        treatments = chance.choice(
            [
                [treatment(200 + number, first, "BG Check")],
                [treatment(start, slot, "Sensor Start", is_valid=False)],
                [treatment(start, slot + chance.randrange(-100, 100), "Sensor Start")],
                [treatment(200 + number, first, "Sensor Change")],
            ]
        )
        return entries, treatments


@dataclass(frozen=True)
class Modelled:
    """A lakehouse with all that came first: histories by chance, and readings without a gap of the site `regular`."""

    settings: Settings
    lake: Lake
    histories: dict[str, History]


@pytest.fixture(scope="module")
def modelled(tmp_path_factory: pytest.TempPathFactory) -> Modelled:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("sessions")))
        settings = load_settings()
    lake = Lake.open(settings)
    histories = {name: History(seed) for seed, name in enumerate("abc", start=1)}
    readings = [reading("x", slot) for slot in range(30 * PER_DAY)]
    starts = [treatment(n, day * PER_DAY, "Sensor Start") for n, day in enumerate((10, 20))]
    sent = {site: history.first for site, history in histories.items()} | {"regular": (readings, starts)}
    arrive(settings, lake, 1, sent)
    return Modelled(settings, lake, histories)


@pytest.mark.timeout(900)
def test_sessions_from_start_to_start_equal_a_rebuild(modelled: Modelled) -> None:
    settings, histories = modelled.settings, modelled.histories
    for number in range(2, 6):
        arrive(settings, modelled.lake, number, {site: history.step(number) for site, history in histories.items()})
        incremental = rows_of(settings, histories)
        DbtProject(settings).build("duckdb", MODELS, data_tests=False, full_refresh=True)
        assert incremental == rows_of(settings, histories), f"step {number}"
    for site in histories:
        sessions = [row for row in incremental["curated.dim_sensor_session"] if row[0] == site]
        assert {row[4] for row in sessions} >= {"treatment"}
        assert len(sessions) > 8


def test_a_tick_leaves_the_sensors_before_alone(modelled: Modelled) -> None:
    settings, lake = modelled.settings, modelled.lake
    # Whoever computes them again takes the mark away.
    mark = "update curated.dim_sensor_session set gap_count = -1"
    with connect(settings, settings.warehouse_path) as warehouse:
        warehouse.execute(mark)
    arrive(settings, lake, 2, {"regular": ([reading("x", 30 * PER_DAY)], [])})
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        found = warehouse.execute(
            "select start_basis, gap_count, reading_count from curated.dim_sensor_session where site = 'regular'"
            " order by session_start"
        ).fetchall()
    assert found == [
        ("long_silence", -1, 10 * PER_DAY + 1),
        ("treatment", -1, 10 * PER_DAY),
        ("treatment", 0, 10 * PER_DAY),
    ]
    # In the middle: from the start before the changed day to the first start after it.
    with connect(settings, settings.warehouse_path) as warehouse:
        warehouse.execute(mark)
    arrive(settings, lake, 3, {"regular": ([reading("x", 15 * PER_DAY, is_valid=False)], [])})
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        counts = warehouse.execute(
            "select gap_count from curated.dim_sensor_session where site = 'regular' order by session_start"
        ).fetchall()
    assert counts == [(-1,), (0,), (-1,)]
