"""The profile by time of day, the patterns and the report's figures, each against a plain computation in Python."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pytest
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.lib.agp_report.content import AgpReport, Unit
from nightscout_lakehouse.lib.agp_report.load import choose_site, display_unit, load_report, period_intervals, risk_zone
from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES, TREATMENTS
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect

MODELS = ["+fact_glucose_profile", "+fact_glucose_patterns"]
MODELS_OF_THE_REPORT = ["+fact_glucose_metrics", "+dim_site"]
PERCENTILES = (5, 10, 25, 50, 75, 90, 95)
NOW = datetime(2026, 12, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Reading:
    moment: datetime
    glucose_mg_dl: float
    local: datetime


@dataclass(frozen=True)
class Person:
    """What was sent of one site: readings, and the interval of its sensor."""

    timezone: str
    interval_minutes: int
    readings: tuple[Reading, ...]

    @property
    def newest_date(self) -> date:
        return self.readings[-1].local.date()

    def last(self, days: int) -> list[Reading]:
        return [r for r in self.readings if r.local.date() > self.newest_date - timedelta(days=days)]


def person(timezone: str, interval_minutes: int, values: Iterator[tuple[datetime, float]]) -> Person:
    zone = ZoneInfo(timezone)
    readings = [Reading(moment, value, moment.astimezone(zone)) for moment, value in values]
    return Person(timezone, interval_minutes, tuple(sorted(readings, key=lambda reading: reading.moment)))


def random_walk(
    seed: int, start: datetime, days: int, interval_minutes: int, missing_share: float
) -> Iterator[tuple[datetime, float]]:
    """Readings some seconds off the grid; single ones are missing, and hours, and most days the hour at 03:00 UTC."""
    chance = random.Random(seed)
    value, quiet_until = 130.0, start
    for number in range(days * 24 * 60 // interval_minutes):
        moment = start + timedelta(minutes=interval_minutes * number, seconds=chance.randint(0, 50))
        value = min(390.0, max(42.0, value + chance.gauss(0, 14) + (135 - value) * 0.03))
        if chance.random() < 0.004:
            quiet_until = moment + timedelta(hours=chance.choice([1, 5, 30]))
        is_often_missing = moment.hour == 3 and moment.day % 5 != 0
        if moment >= quiet_until and chance.random() >= missing_share and not is_often_missing:
            yield moment, round(value)


def engineered() -> Iterator[tuple[datetime, float]]:
    """14 days: lows around midnight on three nights, highs at 12:00 on two days and around 16:00 on three."""
    start = datetime(2026, 9, 1, tzinfo=UTC)
    for number in range(14 * 288):
        moment = start + timedelta(minutes=5 * number)
        day, minute = moment.day, moment.hour * 60 + moment.minute
        value = 110.0
        if minute >= 360 and minute < 390:
            value = 110.0 + (25 if day % 2 else 15)
        if day in (3, 5, 7) and minute >= 23 * 60 + 45:
            value = 60.0
        if day in (4, 6, 8) and minute < 15:
            value = 65.0
        if day in (2, 9) and 12 * 60 <= minute < 13 * 60:
            value = 200.0
        # Ten minutes of an hour are not enough.
        if day in (10, 11, 12, 13) and 18 * 60 <= minute < 18 * 60 + 10:
            value = 200.0
        if day in (2, 4, 9) and 15 * 60 + 45 <= minute < 16 * 60 + 15:
            value = 181.0
        # A night's plunge and back within ten minutes.
        if day in (9, 10, 11, 12) and 2 * 60 <= minute < 2 * 60 + 10:
            value = 62.0
        yield moment, value


PEOPLE = {
    # Summer time ends in Berlin on 25 October 2026, and in New York on 1 November.
    "berlin": person("Europe/Berlin", 5, random_walk(5, datetime(2026, 10, 4, 22, tzinfo=UTC), 33, 5, 0.1)),
    "new-york": person("America/New_York", 5, random_walk(2, datetime(2026, 8, 1, tzinfo=UTC), 100, 5, 0.4)),
    "libre": person("Asia/Kolkata", 15, random_walk(3, datetime(2026, 10, 1, tzinfo=UTC), 16, 15, 0.05)),
    "few": person("UTC", 5, random_walk(4, datetime(2026, 10, 1, tzinfo=UTC), 3, 5, 0.0)),
    "one": person("UTC", 5, iter([(datetime(2026, 10, 1, 12, tzinfo=UTC), 100.0)])),
    "equal": person(
        "UTC", 5, ((datetime(2026, 10, 1, tzinfo=UTC) + timedelta(minutes=5 * n), 111.0) for n in range(2016))
    ),
    "engineered": person("UTC", 5, engineered()),
}
TABLES = ("curated.fact_glucose_profile", "curated.fact_glucose_patterns")


def mealtimes(name: str) -> list[tuple[datetime, float]]:
    """Moments and grams: of the engineered person a low that was eaten against, of berlin four a day by chance."""
    if name == "engineered":
        return [(datetime(2026, 9, 12, 2, 10, tzinfo=UTC), 15.0)]
    if name != "berlin":
        return []
    chance, meals = random.Random(11), []
    for day in range(33):
        for hour in chance.sample([1, 5, 6, 7, 8, 9, 10, 12, 14, 15, 18, 19, 21, 22], 4):
            moment = datetime(2026, 10, 5, tzinfo=UTC) + timedelta(days=day, hours=hour, minutes=chance.randrange(60))
            meals.append((moment, float(chance.randint(10, 90))))
    return meals


def meal_documents(name: str) -> list[str]:
    return [
        json.dumps(
            {
                "_id": f"{n:024x}",
                "eventType": "Meal Bolus",
                "created_at": moment.isoformat(),
                "carbs": grams,
                "insulin": 2,
            }
        )
        for n, (moment, grams) in enumerate(mealtimes(name))
    ]


def documents(readings: list[tuple[int, Reading]], *, change: float = 0.0, is_valid: bool = True) -> list[str]:
    return [
        json.dumps(
            {
                "_id": f"{number:024x}",
                "type": "sgv",
                "sgv": reading.glucose_mg_dl + change,
                "date": int(reading.moment.timestamp() * 1000),
                "device": "sensor",
                "isValid": is_valid,
            }
        )
        for number, reading in readings
    ]


def rows_of(settings: Settings) -> dict[str, list[tuple[Any, ...]]]:
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        return {table: warehouse.execute(f"from {table} order by all").fetchall() for table in TABLES}


def process(sites: list[Site], settings: Settings, lake: Lake) -> None:
    for collection in (ENTRIES, TREATMENTS):
        process_sites(sites, settings, lake, collection)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A warehouse that was built in three steps: wrong and missing readings, then the right ones, then one more day."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("home")))
        settings = Settings()
    lake, project, chance = Lake.open(settings), DbtProject(settings), random.Random(5)
    sites = [Site(name, "http://127.0.0.1:1", timezone=sent.timezone) for name, sent in PEOPLE.items()]
    sites.append(Site("empty", "http://127.0.0.1:1", timezone="UTC"))
    for name, sent in PEOPLE.items():
        numbered = list(enumerate(sent.readings, start=1))
        early = [item for item in numbered if chance.random() < 0.7 and item[1].local.date() < sent.newest_date]
        ghosts = [
            (10_000_000 + number, Reading(r.moment + timedelta(seconds=100), 300.0, r.local))
            for number, r in early[::50]
        ]
        steps = [
            documents(early, change=20.0) + documents(ghosts),
            documents([item for item in numbered if item[1].local.date() < sent.newest_date])
            + documents(ghosts, is_valid=False),
            documents(numbered),
        ]
        for number, texts in enumerate(steps, start=1):
            write_batch(lake, name, number, documents_from_json(texts), NOW)
            meals = meal_documents(name)
            arrived = meals[::2] if number == 1 else meals
            write_batch(lake, name, number, documents_from_json(arrived), NOW, TREATMENTS)
            # Berlin's last step is built with all that the others sent.
            if name == "berlin" and number < len(steps):
                process([site for site in sites if site.name == name], settings, lake)
                project.build("duckdb", MODELS, data_tests=False)
    process(sites, settings, lake)
    project.build("duckdb", [*MODELS, *MODELS_OF_THE_REPORT], data_tests=False)
    return settings


@pytest.fixture
def warehouse(built: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(built, built.warehouse_path, read_only=True) as connection:
        yield connection


def dicts(warehouse: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    cursor = warehouse.execute(query)
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


# The profile


def plain_profile(readings: list[Reading], grid: int) -> dict[int, tuple[int, int, Any, Any]]:
    """By minute of day: readings, days, percentiles and smoothed percentiles; None for percentiles not there."""
    slots = defaultdict[int, list[Reading]](list)
    for reading in readings:
        slots[(reading.local.hour * 60 + reading.local.minute) // grid * grid].append(reading)
    days = {minute: len({r.local.date() for r in slots[minute]}) for minute in range(0, 1440, grid)}
    exact = {
        minute: np.percentile([r.glucose_mg_dl for r in slots[minute]], PERCENTILES)
        for minute in days
        if days[minute] >= 5
    }
    profile = {}
    for minute in days:
        smoothed = None
        if minute in exact:
            near = [minute]
            for direction in (-1, 1):
                for steps in range(1, 30 // grid + 1):
                    other = (minute + direction * steps * grid) % 1440
                    if other not in exact:
                        break
                    near.append(other)
            smoothed = np.average([exact[m] for m in near], axis=0, weights=[len(slots[m]) for m in near])
        profile[minute] = (len(slots[minute]), days[minute], exact.get(minute), smoothed)
    return profile


@pytest.mark.parametrize("name", PEOPLE)
def test_the_profile_equals_numpy(name: str, warehouse: duckdb.DuckDBPyConnection) -> None:
    sent, checked = PEOPLE[name], 0
    for days in (14, 30, 90):
        for grid in (5, 15):
            slots = dicts(
                warehouse,
                f"from curated.fact_glucose_profile where site = '{name}' and period = '{days}d'"
                f" and grid_minutes = {grid}",
            )
            found = {row["minute_of_day"]: row for row in slots}
            expected = plain_profile(sent.last(days), grid)
            assert found.keys() == expected.keys()
            for minute, (reading_count, day_count, exact, smoothed) in expected.items():
                row = found[minute]
                assert row["period_end_date"] == sent.newest_date
                assert row["period_start_date"] == sent.newest_date - timedelta(days=days - 1)
                assert (row["reading_count"], row["day_count"]) == (reading_count, day_count)
                for index, p in enumerate(PERCENTILES):
                    for column, values in ((f"p{p}_mg_dl", exact), (f"smoothed_p{p}_mg_dl", smoothed)):
                        if values is None:
                            assert row[column] is None
                        else:
                            # What is smoothed was rounded to a millionth of a mg/dL before.
                            tolerance = {"abs": 1e-6} if column.startswith("smoothed") else {"rel": 1e-12}
                            assert row[column] == pytest.approx(float(values[index]), **tolerance)
                            checked += 1
    assert (checked > 0) is (name not in ("few", "one"))


def test_gaps_and_clock_changes_are_among_what_was_compared(warehouse: duckdb.DuckDBPyConnection) -> None:
    empty, filled = warehouse.execute(
        "select count(*) filter (p50_mg_dl is null), count(p50_mg_dl) from curated.fact_glucose_profile"
        " where site = 'berlin' and period = '14d' and grid_minutes = 5"
    ).fetchall()[0]
    assert empty > 5
    assert filled > 200
    repeated = [r for r in PEOPLE["berlin"].readings if r.local.date() == date(2026, 10, 25) and r.local.hour == 2]
    assert len({(r.local.minute // 5, r.local.fold) for r in repeated}) > 12


def test_incremental_steps_equal_a_rebuild(built: Settings) -> None:
    incremental = rows_of(built)
    DbtProject(built).build("duckdb", MODELS, full_refresh=True, data_tests=False)
    assert rows_of(built) == incremental
    assert {row[0] for row in incremental["curated.fact_glucose_profile"]} == set(PEOPLE)


# The patterns


def plain_windows(sent: Person, is_outside: Callable[[float], bool]) -> dict[tuple[int, int], tuple[int, float]]:
    """By first and last hour (above 24 after midnight): days it happened on, and minutes it lasted on those days."""
    minutes = defaultdict[tuple[date, int], float](float)
    for reading in sent.last(14):
        if is_outside(reading.glucose_mg_dl):
            minutes[reading.local.date(), reading.local.hour] += sent.interval_minutes
    days_by_hour = defaultdict[int, set[date]](set)
    for (day, hour), spent in minutes.items():
        if spent >= 15:
            days_by_hour[hour].add(day)
    hours = {hour for hour, days in days_by_hour.items() if len(days) >= 3}
    starts = [0] if len(hours) == 24 else [hour for hour in hours if (hour - 1) % 24 not in hours]
    found = {}
    for first in starts:
        window = [first]
        while len(window) < 24 and (window[-1] + 1) % 24 in hours:
            window.append(window[-1] + 1)
        # An hour after midnight belongs to the day before.
        shifts = {hour: timedelta(days=hour // 24) for hour in window}
        happened = {day - shifts[hour] for hour in window for day in days_by_hour[hour % 24]}
        total = [sum(minutes.get((day + shifts[h], h % 24), 0) for h in window) for day in happened]
        found[first, window[-1] + 1] = (len(happened), fmean(total))
    return found


@pytest.mark.parametrize("name", ["berlin", "new-york", "libre"])
@pytest.mark.parametrize("pattern", ["recurring_low", "recurring_high"])
def test_recurring_hours_equal_a_plain_count(name: str, pattern: str, warehouse: duckdb.DuckDBPyConnection) -> None:
    expected = plain_windows(PEOPLE[name], lambda v: v < 70 if pattern == "recurring_low" else v > 180)
    rows = dicts(
        warehouse,
        f"from curated.fact_glucose_patterns where site = '{name}' and pattern = '{pattern}' and pattern_key <> 'none'",
    )
    found = {(row["start_hour"], row["end_hour"]): (row["occurrences"], row["value"]) for row in rows}
    assert found.keys() == expected.keys()
    assert [found[window] for window in expected] == [
        pytest.approx(figures, rel=1e-12) for figures in expected.values()
    ]
    assert all(row["is_recurring"] for row in rows)


def test_windows_merge_over_midnight_and_need_three_days_of_fifteen_minutes(
    warehouse: duckdb.DuckDBPyConnection,
) -> None:
    found = dicts(
        warehouse,
        "from curated.fact_glucose_patterns where site = 'engineered'"
        " and pattern in ('recurring_low', 'recurring_high') order by pattern",
    )
    assert [
        (r["pattern"], r["pattern_key"], r["start_hour"], r["end_hour"], r["occurrences"], r["value"]) for r in found
    ] == [
        ("recurring_high", "15:00-17:00", 15, 17, 3, 30.0),
        ("recurring_low", "23:00-01:00", 23, 25, 3, 30.0),
    ]
    assert found[1]["description"] == (
        "Between 23:00 and 01:00 glucose was below 70 mg/dL (3.9 mmol/L) for 15 minutes of an hour or more"
        " on 3 of 15 days, then for 30 minutes on average."
    )


def test_nothing_found_is_not_the_same_as_too_few_days(warehouse: duckdb.DuckDBPyConnection) -> None:
    found = {
        (row["site"], row["pattern"]): row
        for row in dicts(warehouse, "from curated.fact_glucose_patterns where pattern_key = 'none'")
    }
    for pattern in ("recurring_low", "recurring_high"):
        assert found["equal", pattern]["is_recurring"] is False
        assert found["one", pattern]["is_recurring"] is None
        assert found["one", pattern]["value"] is None


def local_meals(name: str) -> list[datetime]:
    zone = ZoneInfo(PEOPLE[name].timezone)
    return sorted(moment.astimezone(zone) for moment, _ in mealtimes(name))


def plain_dawn(name: str) -> list[float]:
    sent = PEOPLE[name]
    nights = defaultdict[date, list[Reading]](list)
    for reading in sent.last(14):
        nights[reading.local.date()].append(reading)
    rises = []
    for day, readings in nights.items():
        eaten = [m.replace(tzinfo=None) for m in local_meals(name) if m.date() == day and m.hour < 10]
        end = min(eaten, default=datetime.combine(day, time(6, 30)))
        before = [r for r in readings if r.local.replace(tzinfo=None) < end]
        night = [r.glucose_mg_dl for r in before if r.local.hour < 6]
        morning = [r.glucose_mg_dl for r in before if r.local.replace(tzinfo=None) >= end - timedelta(minutes=30)]
        is_low = any(r.glucose_mg_dl < 70 for r in before)
        if len(night) * sent.interval_minutes >= 252 and not is_low and morning:
            rises.append(fmean(morning) - min(night))
    return rises


@pytest.mark.parametrize("name", PEOPLE)
def test_the_dawn_effect_equals_a_plain_count(name: str, warehouse: duckdb.DuckDBPyConnection) -> None:
    rises = plain_dawn(name)
    (row,) = dicts(warehouse, f"from curated.fact_glucose_patterns where site = '{name}' and pattern = 'dawn_effect'")
    assert row["days_observed"] == len(rises)
    assert row["occurrences"] == sum(rise > 20 for rise in rises)
    if len(rises) < 5:
        assert row["value"] is row["is_recurring"] is None
        assert row["description"].startswith("Fewer than 5 nights")
    else:
        assert row["value"] == pytest.approx(median(rises), rel=1e-12)
        assert row["is_recurring"] is (median(rises) > 20)
    if name == "engineered":
        # Seven of the 14 nights had a low; of the others five rose by 25 mg/dL, two by 15.
        assert (row["days_observed"], row["occurrences"], row["value"]) == (7, 5, 25.0)


MEAL_WINDOWS = {"breakfast": (5, 11), "lunch": (11, 15), "dinner": (17, 22)}


def plain_responses(name: str) -> dict[str, list[tuple[float, float]]]:
    """By time of day the rise, mg/dL, and minutes to the peak of each meal that can be read."""
    sent = PEOPLE[name]
    meals: list[datetime] = []
    latest: datetime | None = None
    for moment in sorted(moment for moment, _ in mealtimes(name)):
        zone = ZoneInfo(sent.timezone)
        is_same_day = latest is not None and moment.astimezone(zone).date() == latest.astimezone(zone).date()
        if latest is None or not is_same_day or moment - latest > timedelta(minutes=15):
            meals.append(moment)
        latest = moment
    found = defaultdict[str, list[tuple[float, float]]](list)
    for meal in meals:
        local = meal.astimezone(ZoneInfo(sent.timezone))
        if not sent.newest_date - timedelta(days=14) < local.date() <= sent.newest_date:
            continue
        before = [r for r in sent.readings if meal - timedelta(minutes=10) <= r.moment <= meal]
        after = [r for r in sent.readings if meal < r.moment <= meal + timedelta(hours=3)]
        is_over = sent.readings[-1].moment >= meal + timedelta(hours=3)
        is_alone = not any(meal < other <= meal + timedelta(hours=3) for other in meals)
        if before and is_over and is_alone and len(after) * sent.interval_minutes / 180 >= 0.7:
            peak = max(after, key=lambda r: r.glucose_mg_dl)
            window = next((key for key, (a, b) in MEAL_WINDOWS.items() if a <= local.hour < b), "other")
            minutes = (peak.moment - meal).total_seconds() / 60
            found[window].append((peak.glucose_mg_dl - before[-1].glucose_mg_dl, minutes))
    return found


def test_responses_to_meals_equal_a_plain_count(warehouse: duckdb.DuckDBPyConnection) -> None:
    expected = plain_responses("berlin")
    counts = {window: len(expected[window]) for window in ("breakfast", "lunch", "dinner", "other")}
    assert max(counts.values()) >= 5 > min(counts.values()), counts
    rows = dicts(warehouse, "from curated.fact_glucose_patterns where pattern = 'post_meal' and site = 'berlin'")
    found = {(row["pattern_key"], row["metric"]): row for row in rows}
    assert len(found) == 3 * len(counts)
    for window, count in counts.items():
        assert found[window, "meal_count"]["value"] == count
        rise, peak = found[window, "median_rise_mg_dl"], found[window, "median_minutes_to_peak"]
        if count < 5:
            assert rise["value"] is peak["value"] is None
            assert rise["description"].startswith("Fewer than 5 meals at ")
        else:
            assert rise["value"] == pytest.approx(median(rise for rise, _ in expected[window]), rel=1e-12)
            assert peak["value"] == pytest.approx(median(minutes for _, minutes in expected[window]), rel=1e-9)


def test_sites_without_meals_have_no_rows_of_them(warehouse: duckdb.DuckDBPyConnection) -> None:
    sites = dicts(warehouse, "select distinct site from curated.fact_glucose_patterns where pattern = 'post_meal'")
    assert {row["site"] for row in sites} == {"berlin", "engineered"}


def test_nights_with_compression_lows_are_counted(warehouse: duckdb.DuckDBPyConnection) -> None:
    rows = dicts(
        warehouse,
        "from curated.fact_glucose_patterns where site = 'engineered' and pattern = 'compression_low' order by metric",
    )
    # Three around midnight, and three of four plunges: one was eaten against. The first night begins before the first
    # reading and is observed all the same.
    assert [(row["metric"], row["value"], row["occurrences"], row["days_observed"]) for row in rows] == [
        ("nights", 6.0, 6, 14),
        ("nights_pct", pytest.approx(600 / 14), 6, 14),
    ]
    assert all(row["is_recurring"] for row in rows)
    assert rows[1]["description"] == (
        "On 6 of 14 nights a low fell and recovered as if from lying on the sensor (43 %)."
        " Glucose alone cannot tell: treat a low as a low."
    )
    (one,) = dicts(
        warehouse,
        "from curated.fact_glucose_patterns where site = 'one' and pattern = 'compression_low' and metric = 'nights'",
    )
    assert (one["value"], one["is_recurring"]) == (None, None)


@pytest.mark.parametrize("name", ["berlin", "new-york", "few", "one"])
def test_weekdays_and_weekends_equal_a_plain_count(name: str, warehouse: duckdb.DuckDBPyConnection) -> None:
    parts = defaultdict[str, list[float]](list)
    for reading in PEOPLE[name].last(90):
        parts["weekend" if reading.local.isoweekday() >= 6 else "weekday"].append(reading.glucose_mg_dl)
    expected = {
        part: (fmean(values), 100 * sum(70 <= v <= 180 for v in values) / len(values)) for part, values in parts.items()
    }
    if len(expected) == 2:
        weekend, weekday = expected["weekend"], expected["weekday"]
        expected["difference"] = (weekend[0] - weekday[0], weekend[1] - weekday[1])
    found = {
        (row["part"], row["metric"]): row["value"]
        for row in dicts(
            warehouse, f"from curated.fact_glucose_patterns where site = '{name}' and pattern = 'weekday_weekend'"
        )
    }
    assert len(found) == 2 * len(expected)
    for part, (mean, in_range) in expected.items():
        assert found[part, "mean_mg_dl"] == pytest.approx(mean, rel=1e-9)
        assert found[part, "time_in_range_pct"] == pytest.approx(in_range, rel=1e-9, abs=1e-9)


def test_hours_by_weekday_equal_a_plain_count(warehouse: duckdb.DuckDBPyConnection) -> None:
    hours = defaultdict[tuple[int, int], list[float]](list)
    for reading in PEOPLE["new-york"].last(90):
        hours[reading.local.isoweekday(), reading.local.hour].append(reading.glucose_mg_dl)
    found = dicts(
        warehouse,
        "from curated.fact_glucose_patterns where site = 'new-york' and pattern = 'weekday_hour'"
        " and metric = 'mean_mg_dl'",
    )
    assert {(row["day_of_week"], row["start_hour"]) for row in found} == set(hours)
    for row in found:
        values = hours[row["day_of_week"], row["start_hour"]]
        assert row["reading_count"] == len(values)
        assert row["value"] == pytest.approx(fmean(values), rel=1e-12)
    first = next(row for row in found if (row["day_of_week"], row["start_hour"]) == (1, 23))
    assert first["description"].startswith("Mondays 23:00-24:00: mean glucose ")


# The report


def report(warehouse: duckdb.DuckDBPyConnection, site: str, days: int, until: date | None = None) -> AgpReport:
    return load_report(warehouse, site, days, until, NOW)


@pytest.mark.parametrize(
    ("name", "days", "back"),
    [("berlin", 14, 0), ("berlin", 20, 3), ("new-york", 90, 0), ("libre", 14, 1), ("few", 3, 0)],
)
def test_the_report_says_what_was_sent(name: str, days: int, back: int, warehouse: duckdb.DuckDBPyConnection) -> None:
    sent = PEOPLE[name]
    end = sent.newest_date - timedelta(days=back)
    start = end - timedelta(days=days - 1)
    readings = [r for r in sent.readings if start <= r.local.date() <= end]
    values = [r.glucose_mg_dl for r in readings]
    found = report(warehouse, name, days, end)
    assert (found.start_date, found.end_date, found.days) == (start, end, days)
    assert found.reading_count == len(values)
    assert found.days_with_readings == len({r.local.date() for r in readings})
    mean, sd = fmean(values), stdev(values)
    assert found.mean_mg_dl == pytest.approx(mean, rel=1e-12)
    assert found.sd_mg_dl == pytest.approx(sd, rel=1e-12)
    assert found.cv_pct == pytest.approx(100 * sd / mean, rel=1e-12)
    assert found.gmi_pct == pytest.approx(3.31 + 0.02392 * mean, rel=1e-12)
    pct = {
        "very_low": sum(v < 54 for v in values),
        "low": sum(54 <= v < 70 for v in values),
        "in_range": sum(70 <= v <= 180 for v in values),
        "high": sum(180 < v <= 250 for v in values),
        "very_high": sum(v > 250 for v in values),
    }
    pct = {range_: 100 * count / len(values) for range_, count in pct.items()}
    assert {share.name: share.pct for share in found.ranges} == pytest.approx(pct, rel=1e-12)
    gri = 3 * pct["very_low"] + 2.4 * pct["low"] + 1.6 * pct["very_high"] + 0.8 * pct["high"]
    assert found.gri == pytest.approx(min(100, gri), rel=1e-12)
    zone = ZoneInfo(sent.timezone)
    begins = datetime.combine(start, datetime.min.time(), zone)
    ends = min(
        datetime.combine(end + timedelta(days=1), datetime.min.time(), zone).astimezone(UTC),
        sent.readings[-1].moment + timedelta(minutes=sent.interval_minutes),
    )
    expected = (ends - begins.astimezone(UTC)).total_seconds() / 60 / sent.interval_minutes
    assert found.active_pct == pytest.approx(100 * len(values) / expected, rel=1e-9)
    assert found.is_sufficient is (days >= 14 and 100 * len(values) / expected >= 70)
    grid = 15 if name == "libre" else 5
    profile = plain_profile(readings, grid)
    if name == "few":
        assert found.curve == ()
    else:
        for point in found.curve:
            smoothed = profile[int(point.minute_of_day - grid / 2)][3]
            shown = (point.p5, point.p25, point.p50, point.p75, point.p95)
            if smoothed is None:
                assert shown == (None,) * 5
            else:
                assert shown == pytest.approx(tuple(smoothed[[0, 2, 3, 4, 6]]), abs=1e-6)
    shown_days = {d for d in {r.local.date() for r in readings} if d > end - timedelta(days=14)}
    assert set(found.profiles) == shown_days
    for day, points in found.profiles.items():
        assert [(p.local_time, p.glucose_mg_dl) for p in points] == [
            (r.local.replace(tzinfo=None, fold=0), r.glucose_mg_dl) for r in readings if r.local.date() == day
        ]


@pytest.mark.parametrize("days", [14, 30, 90])
def test_the_report_draws_what_the_model_holds(days: int, warehouse: duckdb.DuckDBPyConnection) -> None:
    rows = warehouse.execute(
        "select minute_of_day + 2.5, smoothed_p5_mg_dl, smoothed_p25_mg_dl, smoothed_p50_mg_dl, smoothed_p75_mg_dl,"
        " smoothed_p95_mg_dl from curated.fact_glucose_profile"
        f" where site = 'new-york' and period = '{days}d' and grid_minutes = 5 order by 1"
    ).fetchall()
    curve = report(warehouse, "new-york", days).curve
    assert [(p.minute_of_day, p.p5, p.p25, p.p50, p.p75, p.p95) for p in curve] == rows


@pytest.mark.parametrize("name", ["berlin", "new-york", "libre"])
@pytest.mark.parametrize("days", [14, 30, 90])
def test_the_report_says_what_the_metrics_say(name: str, days: int, warehouse: duckdb.DuckDBPyConnection) -> None:
    found = report(warehouse, name, days)
    metrics = dict(
        warehouse.execute(
            "select metric, value from curated.fact_glucose_metrics"
            f" where site = '{name}' and period = '{days}d' and day_part = 'whole' and readings_used = 'all'"
        ).fetchall()
    )
    said = {
        "reading_count": found.reading_count,
        "coverage_pct": found.active_pct,
        "mean_mg_dl": found.mean_mg_dl,
        "sd_mg_dl": found.sd_mg_dl,
        "cv_pct": found.cv_pct,
        "gmi_pct": found.gmi_pct,
        "gri": found.gri,
        **{f"time_{share.name}_pct": share.pct for share in found.ranges},
    }
    assert "ABCDE"[int(metrics["gri_zone"]) - 1] == found.gri_zone
    assert {name: metrics[name] for name in said} == pytest.approx(said, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("gri", "zone"), [(0.0, "A"), (20.0, "A"), (20.1, "B"), (40.0, "B"), (79.9, "D"), (80.1, "E"), (100.0, "E")]
)
def test_zones_of_the_risk_index(gri: float, zone: str) -> None:
    assert risk_zone(gri) == zone


def test_one_reading_and_a_period_longer_than_the_history(warehouse: duckdb.DuckDBPyConnection) -> None:
    one = report(warehouse, "one", 14)
    assert (one.days, one.reading_count, one.mean_mg_dl, one.sd_mg_dl, one.cv_pct) == (1, 1, 100.0, None, None)
    assert not one.is_sufficient
    assert report(warehouse, "few", 90, date(2027, 1, 1)).days == 3


@pytest.mark.parametrize(
    ("site", "days", "until", "message"),
    [
        ("empty", 14, None, "no readings yet"),
        ("one", 0, None, "from 1 to 366"),
        ("one", 367, None, "from 1 to 366"),
        ("one", 14, date(2020, 1, 1), "no readings up to 2020-01-01"),
        ("engineered", 1, date(2026, 8, 31), "2026-09-01 to 2026-09-14"),
    ],
)
def test_what_cannot_be_reported_is_said(
    site: str, days: int, until: date | None, message: str, warehouse: duckdb.DuckDBPyConnection
) -> None:
    with pytest.raises(LakehouseError, match=message):
        report(warehouse, site, days, until)


def test_sites_by_name_or_the_only_one(warehouse: duckdb.DuckDBPyConnection) -> None:
    assert choose_site(warehouse, "libre") == "libre"
    with pytest.raises(LakehouseError, match="There are 8 sites: berlin"):
        choose_site(warehouse, None)
    with pytest.raises(LakehouseError, match="no site 'nobody'"):
        choose_site(warehouse, "nobody")


def test_the_unit_is_that_of_the_newest_profile(warehouse: duckdb.DuckDBPyConnection) -> None:
    assert display_unit(warehouse, "one") is Unit.MG_DL
    with duckdb.connect() as other:
        other.execute(
            """
            create schema lake;
            create table lake.profiles as
            select * from (values
                ('a', 'a/1', timestamptz '2026-01-01 00:00:00+00', 'mg/dl', 'profile', false, false),
                ('a', 'a/2', timestamptz '2026-02-01 00:00:00+00', 'mmol', 'profile', false, false),
                ('a', 'a/3', timestamptz '2026-03-01 00:00:00+00', 'mg/dl', 'profile', true, false),
                ('b', 'b/1', timestamptz '2026-01-01 00:00:00+00', null, 'profile', false, false)
            ) as t (site, profile_id, profile_timestamp, units, kind, is_deleted, is_duplicate);
            create view lake.nightscout_profiles as from lake.profiles;
            """
        )
        assert [display_unit(other, site) for site in "abc"] == [Unit.MMOL_L, Unit.MG_DL, Unit.MG_DL]


def test_a_lake_that_is_gone_is_named(tmp_path: Path) -> None:
    file = tmp_path / "profiles.parquet"
    with duckdb.connect() as other:
        other.execute(f"copy (select 'a' as site, 'mmol' as units) to '{file}'")
        other.execute(f"create schema lake; create view lake.nightscout_profiles as from '{file}'")
        file.unlink()
        with pytest.raises(LakehouseError, match="The lake cannot be read"):
            display_unit(other, "a")


def test_intervals_come_from_the_metrics_of_the_same_period() -> None:
    with duckdb.connect() as other:
        assert period_intervals(other, "a", 14, date(2026, 11, 1)) == {}
        other.execute(
            """
            create schema curated;
            create table curated.fact_glucose_metrics as
            select * from (values
                ('a', '14d', date '2026-11-01', 'whole', 'all', 'gri', 20.0, 30.0),
                ('a', '14d', date '2026-11-01', 'whole', 'all', 'mean_mg_dl', null, null),
                ('a', '14d', date '2026-11-01', 'night', 'all', 'gmi_pct', 6.0, 7.0),
                ('a', '14d', date '2026-11-01', 'whole', 'unflagged', 'gmi_pct', 6.0, 7.0),
                ('a', '30d', date '2026-11-01', 'whole', 'all', 'gmi_pct', 6.0, 7.0),
                ('b', '14d', date '2026-11-01', 'whole', 'all', 'gmi_pct', 6.0, 7.0)
            ) as t (site, period, period_end_date, day_part, readings_used, metric, ci_low, ci_high)
            """
        )
        assert period_intervals(other, "a", 14, date(2026, 11, 1)) == {"gri": (20.0, 30.0)}
        assert period_intervals(other, "a", 14, date(2026, 10, 31)) == {}


def test_the_command(built: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAKEHOUSE_HOME", str(built.home))
    runner = CliRunner()
    done = runner.invoke(app, ["report", "berlin", "--unit", "mmol/L"])
    assert done.exit_code == 0, done.output
    folder = built.home / "reports"
    assert {file.suffix for file in folder.iterdir()} == {".pdf", ".html"}
    assert "mmol/L" in next(folder.glob("*.html")).read_text(encoding="utf-8")
    few = runner.invoke(
        app, ["report", "few", "--days", "30", "--until", "2027-01-01", "--output", str(tmp_path / "out")]
    )
    assert few.exit_code == 0, few.output
    assert "no readings before 2026-10-01" in few.output
    assert "no readings after 2026-10-03" in few.output
    assert "Too little data" in few.output
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "agp-few-2026-10-03-3d.html",
        "agp-few-2026-10-03-3d.pdf",
    ]
    for arguments in (["report"], ["report", "nobody"], ["report", "empty"], ["report", "few", "--days", "400"]):
        refused = runner.invoke(app, arguments)
        assert refused.exit_code == 1
        assert refused.output.startswith("Error: ")
        assert "Traceback" not in refused.output


def test_the_command_before_any_run(settings: Settings) -> None:
    refused = CliRunner().invoke(app, ["report"])
    assert refused.exit_code == 1
    assert "There is no warehouse yet" in refused.output
    with duckdb.connect() as empty, pytest.raises(LakehouseError, match="no models yet"):
        choose_site(empty, None)
