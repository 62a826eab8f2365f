"""Insulin, carbohydrates and meals, against a plain computation minute by minute over the documents that were sent."""

import json
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.nightscout_collections import DEVICE_STATUS, ENTRIES, PROFILES, TREATMENTS, Collection
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.publishing import publish
from nightscout_lakehouse.lib.serving import read_query
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect, open_warehouse

MODELS = ["+fact_daily_insulin", "+fact_meals", "+dim_glucose_date", "+fact_treatments", "+fact_loop_status"]
FETCHED_AT = datetime(2025, 11, 20, tzinfo=UTC)
ZONE = ZoneInfo("Europe/Berlin")
SITES = [
    Site(name, "http://127.0.0.1:1", timezone="Europe/Berlin")
    for name in ("anna", "ben", "ahead-of-its-time", "new-profile", "loop")
]
# The clock goes back on 26 October 2025 at 01:00 UTC.
START = datetime(2025, 10, 23, 22, 0, tzinfo=UTC)
DAYS = 6
MINUTE = timedelta(minutes=1)

Document = dict[str, Any]

PROFILE: Document = {
    "_id": "profile",
    "defaultProfile": "Default",
    # From the second day on: before, no schedule is known.
    "startDate": "2025-10-24T10:00:00.000Z",
    "created_at": "2025-10-24T10:00:00.000Z",
    "store": {
        "Default": {
            "timezone": "Europe/Berlin",
            "basal": [
                {"time": "00:00", "value": "0.8", "timeAsSeconds": 0},
                {"time": "06:00", "value": 1.2, "timeAsSeconds": 21600},
                {"time": "22:00", "value": 0.6},
            ],
        },
        "Sport": {"timezone": "Europe/Berlin", "basal": [{"time": "00:00", "value": 0.5}]},
    },
}


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def land(lake: Lake, number: int, documents: Sequence[Document], collection: Collection, site: str) -> None:
    texts = documents_from_json([json.dumps(document) for document in documents])
    write_batch(lake, site, number, texts, FETCHED_AT, collection)


def process_and_build(settings: Settings, lake: Lake, models: Sequence[str] = MODELS) -> None:
    for collection in (ENTRIES, PROFILES, TREATMENTS, DEVICE_STATUS):
        process_sites(SITES, settings, lake, collection)
    DbtProject(settings).build("duckdb", models, data_tests=False)


def query(settings: Settings, text: str) -> list[dict[str, Any]]:
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        result = warehouse.execute(text)
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def reading(number: int, moment: datetime, sgv: float) -> Document:
    return {"_id": f"r{number}", "type": "sgv", "sgv": sgv, "date": int(moment.timestamp() * 1000), "device": "sensor"}


def made_up_readings(chance: random.Random) -> list[Document]:
    """Every five minutes, with gaps, and with the fourth day missing."""
    readings = []
    for number in range(DAYS * 288):
        if 3 * 288 <= number < 4 * 288 + 12 or number % 97 < 12 or chance.random() < 0.05:
            continue
        moment = START + timedelta(minutes=5 * number)
        readings.append(reading(number, moment, round(150 + 80 * chance.uniform(-1, 1))))
    return readings


def made_up_treatment(chance: random.Random, number: int, moment: datetime) -> Document:
    document: Document = {"_id": f"t{number:04d}", "created_at": iso(moment), "enteredBy": "test"}
    kind = chance.choice(
        ["Temp Basal"] * 6 + ["Bolus", "Meal Bolus", "Combo Bolus", "SMB", "Carbs", "Switch", "Suspend", "Resume"]
    )
    if kind == "Temp Basal":
        rate: Document = chance.choice(
            [
                {"absolute": chance.randrange(0, 40) / 10},
                {"percent": chance.choice([-100, -50, 30]), "rate": 9},
                {"rate": 0.7},
            ]
        )
        return document | rate | {"eventType": "Temp Basal", "duration": chance.choice([0, 30, 30, 60, 240, 2000])}
    if kind == "Combo Bolus":
        split: Document = chance.choice(
            [
                {"insulin": 1.5, "relative": 1.2, "splitNow": 50, "splitExt": 50, "enteredinsulin": "3"},
                {"insulin": None, "splitNow": 0, "splitExt": 100, "enteredinsulin": 2},
            ]
        )
        return document | split | {"eventType": "Combo Bolus", "duration": chance.choice([60, 180])}
    if kind == "Switch":
        switch = {"eventType": "Profile Switch", "profile": chance.choice(["Default", "Sport"])}
        timing = {"duration": chance.choice([0, 120]), "percentage": chance.choice([100, 80]), "timeshift": 5}
        return document | switch | timing
    if kind in ("Suspend", "Resume"):
        return document | {"eventType": f"{kind} Pump"}
    carbs = chance.randrange(10, 80) if kind in ("Meal Bolus", "Carbs") else None
    insulin = None if kind == "Carbs" else chance.randrange(1, 80) / 10
    return document | {"eventType": kind, "insulin": insulin, "carbs": carbs, "isSMB": kind == "SMB"}


def moment_of(document: Document) -> datetime:
    return datetime.fromisoformat(document["created_at"])


def local_date(moment: datetime) -> date:
    return moment.astimezone(ZONE).date()


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), ZONE).astimezone(UTC)


def area_above(base: float, after: Sequence[tuple[float, float]]) -> float | None:
    """Area of the curve above its start value; None with a gap of more than 45 minutes."""
    points = [(0.0, base), *after]
    area = 0.0
    for (t0, g0), (t1, g1) in pairwise(points):
        if t1 - t0 > 45:
            return None
        low, high = sorted((g0 - base, g1 - base))
        if low >= 0:
            area += (low + high) / 2 * (t1 - t0)
        elif high > 0:
            # Similar triangles: the share of the step that lies above.
            area += high / 2 * (t1 - t0) * high / (high - low)
    return area if 180 - points[-1][0] <= 45 else None


@dataclass
class Plain:
    """What the models say, computed in the plainest way: by asking each minute what the pump did."""

    treatments: list[Document]
    readings: list[Document]
    switches: list[Document] = field(init=False)
    events: list[Document] = field(init=False)

    def __post_init__(self) -> None:
        self.treatments = sorted(self.treatments, key=lambda document: (document["created_at"], document["_id"]))
        self.switches = [t for t in self.treatments if t["eventType"] == "Profile Switch"]
        self.events = [t for t in self.treatments if t["eventType"] in ("Temp Basal", "Suspend Pump", "Resume Pump")]
        self._event_times = [moment_of(event) for event in self.events]

    def days(self) -> dict[date, tuple[datetime, datetime]]:
        """Beginning of each day and until when it is known."""
        last: dict[date, datetime] = {}
        seen = [datetime.fromtimestamp(document["date"] / 1000, UTC) for document in self.readings]
        seen += [moment_of(t) for t in self.treatments if t["eventType"] not in ("Carbs", "Profile Switch")]
        for moment in seen:
            day = local_date(moment)
            last[day] = max(moment, last.get(day, moment))
        following = timedelta(days=1)
        return {d: (midnight(d), midnight(d + following) if d + following in last else last[d]) for d in last}

    def scheduled(self, moment: datetime) -> float | None:
        """Rate of the schedule at a moment, units per hour."""
        began = datetime.fromisoformat(PROFILE["startDate"])
        if moment < began:
            return None
        before = [s for s in self.switches if began <= moment_of(s) <= moment]
        active: Document = {}
        if before:
            permanent = [s for s in before if not s["duration"]]
            active = before[-1]
            if active["duration"] and moment >= moment_of(active) + active["duration"] * MINUTE:
                active = permanent[-1] if permanent else {}
        segments = PROFILE["store"][active.get("profile", "Default")]["basal"]
        local = moment.astimezone(ZONE)
        minutes = (local.hour * 60 + local.minute - 60 * active.get("timeshift", 0)) % 1440
        starts = [int(segment["time"][:2]) * 60 for segment in segments]
        return float(segments[bisect_right(starts, minutes) - 1]["value"]) * active.get("percentage", 100) / 100

    def basal(self, moment: datetime) -> float | None:
        """Rate that was given at a moment, units per hour; None if unknown."""
        scheduled = self.scheduled(moment)
        position = bisect_right(self._event_times, moment)
        if not position:
            return scheduled
        event = self.events[position - 1]
        suspended = event["eventType"] == "Suspend Pump"
        minutes = min(1440, 1440 if suspended else event.get("duration", 0))
        if moment >= moment_of(event) + minutes * MINUTE:
            return scheduled
        if suspended:
            return 0.0
        if "absolute" in event:
            return float(event["absolute"])
        if "percent" in event:
            return None if scheduled is None else scheduled * (100 + event["percent"]) / 100
        return float(event["rate"])

    def extended_rate(self, moment: datetime) -> float:
        """Rate of the extended boluses at a moment, units per hour."""
        running = [
            t
            for t in self.treatments
            if t["eventType"] == "Combo Bolus" and moment_of(t) <= moment < moment_of(t) + t["duration"] * MINUTE
        ]
        return sum(float(t.get("relative", 2 / (t["duration"] / 60))) for t in running)

    def meals(self) -> Iterator[Document]:
        """Meals with their bolus and the glucose after them."""
        groups: list[list[Document]] = []
        for entry in (t for t in self.treatments if t.get("carbs")):
            last = moment_of(groups[-1][-1]) if groups else datetime.min.replace(tzinfo=UTC)
            is_same_day = local_date(last + MINUTE) == local_date(moment_of(entry)) if groups else False
            if is_same_day and moment_of(entry) - last <= 15 * MINUTE:
                groups[-1].append(entry)
            else:
                groups.append([entry])
        starts = [moment_of(group[0]) for group in groups]
        owner: dict[str, datetime] = {}
        boluses = [t for t in self.treatments if t["eventType"] in ("Bolus", "Meal Bolus", "Combo Bolus")]
        for bolus in boluses:
            near = [start for start in starts if -30 <= (moment_of(bolus) - start) / MINUTE <= 60]
            if near:
                owner[bolus["_id"]] = min(near, key=lambda start: (abs(moment_of(bolus) - start), start))
        for start, group in zip(starts, groups, strict=True):
            mine = [bolus for bolus in boluses if owner.get(bolus["_id"]) == start]
            window = start + 180 * MINUTE
            curve = [((r["date"] / 1000 - start.timestamp()) / 60, float(r["sgv"])) for r in self.readings]
            curve = sorted(point for point in curve if -10 <= point[0] <= 180)
            before, after = [p for p in curve if p[0] <= 0], [p for p in curve if p[0] > 0]
            near_two_hours = [p for p in after if 110 <= p[0] <= 130]
            base = before[-1][1] if before else None
            days = {local_date(start), local_date(start) + timedelta(days=1)}
            times = [datetime.fromtimestamp(r["date"] / 1000, UTC) for r in self.readings]
            is_over = any(moment >= window and local_date(moment) in days for moment in times)
            is_covered = is_over and len(after) * 5 / 180 >= 0.7
            peak = max((p[1] for p in after), default=None)
            yield {
                "id": group[0]["_id"],
                "carbs_g": sum(entry["carbs"] for entry in group),
                "carb_entry_count": len(group),
                "bolus_units": sum(bolus["insulin"] or 0 for bolus in mine) if mine else None,
                "first_bolus_minutes": min((moment_of(b) - start) / MINUTE for b in mine) if mine else None,
                "has_meal_within_3h": any(start < other <= window for other in starts),
                "has_bolus_within_3h": any(
                    start < moment_of(b) <= window and owner.get(b["_id"]) != start for b in boluses
                ),
                "response_coverage_pct": min(100, 100 * len(after) * 5 / 180),
                "start_glucose_mg_dl": base,
                "peak_glucose_mg_dl": peak if is_covered else None,
                "minutes_to_peak": next(p[0] for p in after if p[1] == peak) if is_covered else None,
                "rise_mg_dl": None if base is None or peak is None or not is_covered else peak - base,
                "two_hour_glucose_mg_dl": (
                    min(near_two_hours, key=lambda p: (abs(p[0] - 120), p[0]))[1] if near_two_hours else None
                ),
                "nadir_glucose_mg_dl": min(p[1] for p in after) if is_covered else None,
                "incremental_area_mg_dl_min": None if base is None or not is_covered else area_above(base, after),
            }

    def daily(self) -> Iterator[tuple[date, Document]]:
        for day, (begin, end) in sorted(self.days().items()):
            minutes = [begin + number * MINUTE for number in range(int((end - begin) / MINUTE))]
            rates = [self.basal(minute) for minute in minutes]
            known = [rate for rate in rates if rate is not None]
            mine = [t for t in self.treatments if local_date(moment_of(t)) == day]
            extended = [self.extended_rate(minute) for minute in minutes]
            boluses = [t["insulin"] or 0 for t in mine if "insulin" in t and t["eventType"] != "Carbs"]
            has_pump_event = any(t in self.events for t in mine)
            carbs = [t["carbs"] for t in mine if t.get("carbs")]
            yield (
                day,
                {
                    "basal_units": sum(known) / 60 if len(known) == len(rates) else None,
                    "bolus_units": (
                        sum(boluses) + sum(extended) / 60 if boluses or any(extended) or has_pump_event else None
                    ),
                    "carbs_g": sum(carbs) if carbs else None,
                    "known_hours": len(minutes) / 60,
                    "treatment_count": len(mine),
                },
            )


class MadeUp:
    """Six days of a person by chance: what comes first, and what comes late, is edited or is deleted."""

    def __init__(self, site: str, seed: int) -> None:
        self.site = site
        chance = random.Random(seed)
        minutes = set(chance.sample(range((DAYS - 1) * 1440), 130))
        # Some stand close together, so that meals are merged and temp basals end each other.
        minutes |= {minute + chance.randrange(1, 25) for minute in chance.sample(sorted(minutes), 40)}
        moments = [START + minute * MINUTE for minute in sorted(minutes)]
        held = {f"t{n:04d}": made_up_treatment(chance, n, moment) for n, moment in enumerate(moments)}
        self._readings = made_up_readings(chance)
        first = chance.sample(sorted(held), 80)
        self._first = [held[name] for name in first]
        edited = [made_up_treatment(chance, int(name[1:]), moments[int(name[1:])]) for name in first[:10]]
        gone = [held[name] | {"isValid": False} for name in first[10:20]]
        self._later = [*(held[name] for name in sorted(set(held) - set(first))), *edited, *gone]
        held |= {document["_id"]: document for document in edited}
        self._left = [document for name, document in held.items() if name not in first[10:20]]

    def land_first(self, lake: Lake) -> None:
        land(lake, 1, [PROFILE], PROFILES, self.site)
        land(lake, 1, self._readings[::2], ENTRIES, self.site)
        land(lake, 1, self._first, TREATMENTS, self.site)

    def land_the_rest(self, lake: Lake) -> None:
        land(lake, 2, self._readings[1::2], ENTRIES, self.site)
        land(lake, 2, self._later, TREATMENTS, self.site)

    def plain(self) -> Plain:
        return Plain(self._left, self._readings)


PEOPLE = {"anna": MadeUp("anna", 1), "ben": MadeUp("ben", 2)}


@dataclass(frozen=True)
class Built:
    """A lakehouse whose documents came in two steps.

    Attributes:
        settings: Of the lakehouse after the second step.
        ahead_of_its_time: That site's days of insulin after the first step.
    """

    settings: Settings
    ahead_of_its_time: list[dict[str, Any]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("treatments")))
        settings = load_settings()
    lake = Lake.open(settings)
    for person in PEOPLE.values():
        person.land_first(lake)
    insulin_ahead = _insulin_ahead_of_its_time()
    land(lake, 1, [PROFILE], PROFILES, "ahead-of-its-time")
    land(lake, 1, [reading(1, NOON + 30 * MINUTE, 100)], ENTRIES, "ahead-of-its-time")
    land(lake, 1, insulin_ahead, TREATMENTS, "ahead-of-its-time")
    land(lake, 1, [PROFILE], PROFILES, "new-profile")
    hourly = [reading(n, START + 60 * n * MINUTE, 100) for n in range(DAYS * 24)]
    land(lake, 1, hourly, ENTRIES, "new-profile")
    land(lake, 1, _loop_states(), DEVICE_STATUS, "loop")
    process_and_build(settings, lake)
    ahead = query(settings, "from curated.fact_daily_insulin where site = 'ahead-of-its-time'")

    for person in PEOPLE.values():
        person.land_the_rest(lake)
    land(lake, 2, [document | {"isValid": False} for document in insulin_ahead], TREATMENTS, "ahead-of-its-time")
    newer = json.loads(json.dumps(PROFILE)) | {"_id": "newer", "startDate": "2025-10-27T23:00:00.000Z"}
    newer["store"]["Default"]["basal"] = 2
    land(lake, 2, [newer], PROFILES, "new-profile")
    process_and_build(settings, lake)
    return Built(settings, ahead)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("site", PEOPLE)
def test_the_figures_equal_a_plain_computation(built: Built, site: str) -> None:
    plain = PEOPLE[site].plain()
    _daily_insulin(built.settings, site, plain)
    _meals(built.settings, site, plain)


def _daily_insulin(settings: Settings, site: str, plain: Plain) -> None:
    rows = query(settings, f"from curated.fact_daily_insulin where site = '{site}'")
    found = {row["reading_date"]: row for row in rows}
    expected = dict(plain.daily())
    assert set(found) == set(expected)
    assert any(row["basal_units"] is None for row in found.values())
    for day, figures in expected.items():
        for name, value in figures.items():
            assert found[day][name] == (value if value is None else pytest.approx(value, abs=1e-9)), (day, name)
        basal, bolus = figures["basal_units"], figures["bolus_units"]
        total = None if basal is None or bolus is None else pytest.approx(basal + bolus, abs=1e-9)
        assert found[day]["total_insulin_units"] == total
    shown = query(settings, f"from curated.dim_glucose_date where site = '{site}'")
    assert {row["reading_date"] for row in shown} < set(found)
    for row in shown:
        for name in ("carbs_g", "bolus_units", "basal_units", "total_insulin_units"):
            assert row[name] == found[row["reading_date"]][name]


def _meals(settings: Settings, site: str, plain: Plain) -> None:
    found = query(settings, f"from curated.fact_meals where site = '{site}' order by meal_timestamp")
    expected = list(plain.meals())
    assert [row["meal_id"] for row in found] == [f"{site}/{meal['id']}" for meal in expected]
    assert any(row["carb_entry_count"] > 1 for row in found)
    assert any(row["incremental_area_mg_dl_min"] for row in found)
    assert any(row["peak_glucose_mg_dl"] is None for row in found)
    for row, meal in zip(found, expected, strict=True):
        for name, value in meal.items():
            if name != "id":
                assert row[name] == (value if value is None else pytest.approx(value, abs=1e-9)), (row, name)


NOON = datetime(2025, 10, 28, 11, 0, tzinfo=UTC)


def _insulin_ahead_of_its_time() -> list[Document]:
    running = {"_id": "a", "created_at": iso(NOON), "eventType": "Temp Basal", "absolute": 6, "duration": 60}
    extended = {"_id": "b", "created_at": iso(NOON), "eventType": "Combo Bolus", "relative": 2, "duration": 120}
    # A note or food of the evening, written ahead of its time, does not make the afternoon known.
    ahead = {"_id": "c", "created_at": iso(NOON + 360 * MINUTE), "eventType": "Carb Correction", "carbs": 20}
    return [running, extended, ahead]


def test_future_insulin_is_not_counted_and_a_deletion_takes_everything_back(built: Built) -> None:
    [day] = built.ahead_of_its_time
    assert day["bolus_units"] == pytest.approx(1)
    assert day["temp_basal_units"] == pytest.approx(3)
    assert day["scheduled_basal_units"] == pytest.approx(6 * 0.8 + 6 * 1.2)
    assert day["known_hours"] == pytest.approx(12.5)
    [day] = query(built.settings, "from curated.fact_daily_insulin where site = 'ahead-of-its-time'")
    assert (day["treatment_count"], day["bolus_units"], day["carbs_g"], day["temp_basal_units"]) == (0, None, None, 0)
    assert query(built.settings, "from curated.fact_treatments where site = 'ahead-of-its-time'") == []
    assert query(built.settings, "from curated.fact_meals where site = 'ahead-of-its-time'") == []


def test_a_new_profile_changes_the_days_since(built: Built) -> None:
    rows = query(built.settings, "from curated.fact_daily_insulin where site = 'new-profile'")
    basal = {row["reading_date"].day: row["basal_units"] for row in rows}
    whole = 6 * 0.8 + 16 * 1.2 + 2 * 0.6
    assert basal[24] is None
    assert basal[25] == pytest.approx(whole)
    # 25 hours: the hour that comes twice is one of the night.
    assert basal[26] == pytest.approx(whole + 0.8)
    assert basal[28] == pytest.approx(48)


def _loop_states() -> list[Document]:
    def status(number: int, seconds: int, iob: float | None, cob: float | None) -> Document:
        loop = {"iob": {"iob": iob}} | ({} if cob is None else {"cob": {"cob": cob}})
        return {"_id": f"d{number}", "created_at": iso(START + timedelta(seconds=seconds)), "loop": loop}

    battery = {"_id": "d9", "created_at": iso(START), "uploader": {"battery": 50}}
    return [status(1, 10, 1.5, 20), status(2, 200, 1.25, None), status(3, 310, -0.5, 0), battery]


def test_the_loop_status_is_the_last_of_five_minutes(built: Built) -> None:
    rows = query(built.settings, "from curated.fact_loop_status where site = 'loop' order by slot_timestamp")
    assert [(row["slot_timestamp"], row["iob_units"], row["cob_g"]) for row in rows] == [
        (START, 1.25, 20),
        (START + 5 * MINUTE, -0.5, 0),
    ]


@pytest.mark.postgres
def test_the_marts_show_treatments_and_meals(settings: Settings, lake: Lake, serving: PostgresConnection) -> None:
    meals = [
        {
            "_id": f"m{n}",
            "created_at": iso(START + n * 1440 * MINUTE),
            "eventType": "Meal Bolus",
            "insulin": 2,
            "carbs": 30,
        }
        for n in (-100, -20, 0)
    ]
    land(lake, 1, [reading(n, START + 5 * n * MINUTE, 100 + n) for n in range(-2, 40)], ENTRIES, "anna")
    land(lake, 1, meals, TREATMENTS, "anna")
    process_and_build(settings, lake, ["tag:stg", "tag:int", "tag:curated"])
    with open_warehouse(settings) as warehouse:
        publish(warehouse, serving)
    marts = ["+mart_treatments_recent", "+mart_meals", "+mart_glucose_overview"]
    DbtProject(settings, serving).build("postgres", marts, data_tests=False)

    def shown(text: str) -> Sequence[Sequence[Any]]:
        return read_query(serving, text, max_rows=100).rows

    assert [
        tuple(row) for row in shown("select nullif(carbs_g, 0), bolus_units from marts.mart_treatments_recent")
    ] == [(30.0, 2.0)]
    found = shown("select meal_id, rise_mg_dl from marts.mart_meals order by meal_timestamp")
    assert [tuple(row) for row in found] == [("anna/m-20", None), ("anna/m0", 36.0)]
    overview = shown(
        "select carbs_g, bolus_units, basal_units, total_insulin_units"
        " from marts.mart_glucose_overview order by reading_date"
    )
    assert tuple(overview[-1]) == (30.0, 2.0, None, None)
