"""The figures of the marts, against a plain count over the documents that were sent."""

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from statistics import fmean, median, stdev
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.publishing import publish
from nightscout_lakehouse.lib.serving import read_query
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import open_warehouse

pytestmark = pytest.mark.postgres

NOW = datetime.now(UTC).replace(microsecond=0)
ZONES = {"anna": "Europe/Berlin", "ben": "America/New_York", "cara": "Asia/Kolkata"}
BOUNDARIES = [53, 53.9, 54, 69, 69.9, 70, 140, 140.1, 180, 180.1, 250, 250.1, 251]


@dataclass(frozen=True)
class Reading:
    """A reading as it was sent."""

    moment: datetime
    glucose_mg_dl: float
    zone: ZoneInfo

    @property
    def local(self) -> datetime:
        return self.moment.astimezone(self.zone)


def made_up(site: str, days: int, missing_share: float) -> list[Reading]:
    """Readings every five minutes with gaps, whole days without any, and every boundary of a range."""
    chance = random.Random(site)
    start = NOW - timedelta(days=days)
    empty_days = {chance.randrange(days) for _ in range(days // 20)}
    readings = []
    for number in range(days * 288):
        if number // 288 in empty_days or chance.random() < missing_share:
            continue
        value = chance.choice(BOUNDARIES) if chance.random() < 0.3 else chance.randint(40, 330)
        readings.append(Reading(start + timedelta(minutes=5 * number), value, ZoneInfo(ZONES[site])))
    return readings


SENT = {"anna": made_up("anna", 120, 0.1), "ben": made_up("ben", 10, 0.5), "cara": made_up("cara", 1, 0)[-1:]}


@pytest.fixture
def marts(settings: Settings, lake: Lake, serving: PostgresConnection) -> PostgresConnection:
    for site, readings in SENT.items():
        texts = [
            json.dumps(
                {
                    "_id": f"{number:024x}",
                    "type": "sgv",
                    "sgv": reading.glucose_mg_dl,
                    "date": int(reading.moment.timestamp() * 1000),
                    "direction": "FortyFiveUp",
                    "device": "sensor",
                }
            )
            for number, reading in enumerate(readings)
        ]
        write_batch(lake, site, 1, documents_from_json(texts), NOW)
    sites = [Site(site, "http://127.0.0.1:1", timezone=zone) for site, zone in ZONES.items()]
    process_sites([*sites, Site("dora", "http://127.0.0.1:1", timezone="UTC")], settings, lake)
    DbtProject(settings).build("duckdb", ["tag:stg", "tag:int", "tag:curated"], data_tests=False)
    with open_warehouse(settings) as warehouse:
        publish(warehouse, serving)
    DbtProject(settings, serving).build("postgres", ["tag:mart"])
    return serving


def rows(connection: PostgresConnection, query: str) -> list[dict[str, Any]]:
    result = read_query(connection, query, max_rows=100_000)
    assert not result.is_cut
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def by_day(site: str) -> dict[date, list[float]]:
    days = defaultdict(list)
    for reading in SENT[site]:
        days[reading.local.date()].append(reading.glucose_mg_dl)
    return days


def ranges(values: list[float]) -> dict[str, int]:
    return {
        "very_low": sum(v < 54 for v in values),
        "low": sum(54 <= v < 70 for v in values),
        "in_range": sum(70 <= v <= 180 for v in values),
        "high": sum(180 < v <= 250 for v in values),
        "very_high": sum(v > 250 for v in values),
        "below_range": sum(v < 70 for v in values),
        "above_range": sum(v > 180 for v in values),
        "tight_range": sum(70 <= v <= 140 for v in values),
    }


def test_the_marts_say_what_was_sent(marts: PostgresConnection) -> None:
    _time_in_range(marts)
    _overview(marts)
    _current(marts)
    _recent(marts)
    _hourly_pattern(marts)
    _profile(marts)
    _patterns(marts)
    _episodes(marts)
    _sensor_sessions(marts)
    _metrics(marts)
    _comparison(marts)


def _time_in_range(marts: PostgresConnection) -> None:
    found = rows(marts, "select * from marts.mart_time_in_range")
    assert {row["site"] for row in found} == set(ZONES)
    for row in found:
        days = by_day(row["site"])
        shown = [
            v for day, values in days.items() if day > max(days) - timedelta(days=row["period_days"]) for v in values
        ]
        counts = ranges(shown)
        count = counts[row["range_name"]]
        assert row["reading_count"] == count, row
        assert row["pct"] == pytest.approx(100 * count / len(shown), rel=1e-9)
        assert row["minutes"] == 5 * count
        limit = {"in_range": (">", 70), "very_high": ("<", 5), "below_range": ("<", 4), "above_range": ("<", 25)}
        limit["very_low"] = ("<", 1)
        if row["range_name"] in limit:
            sign, pct = limit[row["range_name"]]
            share = 100 * count / len(shown)
            assert row["is_target_met"] is (share > pct if sign == ">" else share < pct)
            assert row["target"] == f"{sign} {pct}"
        else:
            assert row["is_target_met"] is None
    assert len(found) == 3 * 5 * 8


def _overview(marts: PostgresConnection) -> None:
    found = rows(marts, "select * from marts.mart_glucose_overview")
    for site in ZONES:
        days = by_day(site)
        shown = {day for day in days if day > max(days) - timedelta(days=90)}
        mine = {row["reading_date"]: row for row in found if row["site"] == site}
        assert set(mine) == shown
        for day, row in mine.items():
            values = days[day]
            mean = fmean(values)
            assert row["reading_count"] == len(values)
            assert row["avg_glucose_mg_dl"] == pytest.approx(mean, rel=1e-9)
            assert row["time_in_range_pct"] == pytest.approx(100 * ranges(values)["in_range"] / len(values), rel=1e-9)
            assert row["estimated_a1c_pct"] == pytest.approx(3.31 + 0.02392 * mean, rel=1e-9)
            if len(values) > 1:
                assert row["sd_glucose_mg_dl"] == pytest.approx(stdev(values), rel=1e-9)
                assert row["cv_pct"] == pytest.approx(100 * stdev(values) / mean, rel=1e-9)
            else:
                assert row["sd_glucose_mg_dl"] is None
                assert row["cv_pct"] is None
            week = [v for back in range(7) for v in days.get(day - timedelta(days=back), [])]
            assert row["reading_count_7d"] == len(week)
            assert row["estimated_a1c_7d_avg"] == pytest.approx(3.31 + 0.02392 * fmean(week), rel=1e-9)


def _current(marts: PostgresConnection) -> None:
    found = {row["site"]: row for row in rows(marts, "select *, now() from marts.mart_glucose_current")}
    assert set(found) == set(ZONES)
    for site, row in found.items():
        last, *before = SENT[site][::-1][:2]
        assert row["reading_timestamp"] == last.moment
        assert row["glucose_mg_dl"] == last.glucose_mg_dl
        assert row["glucose_mmol_l"] == pytest.approx(last.glucose_mg_dl / 18.01559, rel=1e-12)
        assert row["age_minutes"] == pytest.approx((row["now"] - last.moment).total_seconds() / 60, abs=1e-6)
        assert row["trend_arrow"] == "↗"
        near = [reading for reading in before if last.moment - reading.moment <= timedelta(minutes=10)]
        change = last.glucose_mg_dl - near[0].glucose_mg_dl if near else None
        assert row["glucose_change_mg_dl"] == (pytest.approx(change) if near else None)


def _recent(marts: PostgresConnection) -> None:
    found = rows(marts, "select * from marts.mart_glucose_recent order by site, reading_timestamp")
    for site in ZONES:
        days = by_day(site)
        shown = [r for r in SENT[site] if r.local.date() > max(days) - timedelta(days=14)]
        mine = [row for row in found if row["site"] == site]
        assert [row["reading_timestamp"] for row in mine] == [reading.moment for reading in shown]
        assert [row["reading_local_timestamp"] for row in mine] == [r.local.replace(tzinfo=None) for r in shown]


def _hourly_pattern(marts: PostgresConnection) -> None:
    found = rows(marts, "select * from marts.mart_glucose_hourly_pattern")
    for site in ZONES:
        days = by_day(site)
        hours = defaultdict(list)
        for reading in SENT[site]:
            if reading.local.date() > max(days) - timedelta(days=90):
                hours[reading.local.isoweekday(), reading.local.hour].append(reading.glucose_mg_dl)
        mine = {(row["day_of_week"], row["hour_of_day"]): row for row in found if row["site"] == site}
        assert set(mine) == set(hours)
        for hour, values in hours.items():
            assert mine[hour]["reading_count"] == len(values)
            assert mine[hour]["avg_glucose_mg_dl"] == pytest.approx(fmean(values), rel=1e-9)
            assert mine[hour]["median_glucose_mg_dl"] == pytest.approx(median(values), rel=1e-9)


def _profile(marts: PostgresConnection) -> None:
    found = rows(marts, "select * from marts.mart_glucose_agp where period = '30d' and grid_minutes = 15")
    for site in ZONES:
        newest = max(by_day(site))
        slots = defaultdict(list)
        for reading in SENT[site]:
            if reading.local.date() > newest - timedelta(days=30):
                slots[reading.local.hour * 60 + reading.local.minute // 15 * 15].append(reading)
        mine = {row["minute_of_day"]: row for row in found if row["site"] == site}
        assert set(mine) == set(range(0, 1440, 15))
        for minute, row in mine.items():
            readings = slots[minute]
            assert row["time_of_day"] == f"{minute // 60:02d}:{minute % 60:02d}"
            assert row["reading_count"] == len(readings)
            if len({reading.local.date() for reading in readings}) < 5:
                assert row["p50_mg_dl"] is row["smoothed_p50_mg_dl"] is None
            else:
                assert row["p50_mg_dl"] == pytest.approx(median([r.glucose_mg_dl for r in readings]), rel=1e-9)
                assert row["p5_mg_dl"] <= row["smoothed_p50_mg_dl"] <= row["p95_mg_dl"]


def _patterns(marts: PostgresConnection) -> None:
    found = rows(marts, "select * from marts.mart_glucose_patterns")
    assert {row["site"] for row in found} == set(ZONES)
    assert all(row["description"].endswith(".") for row in found)
    hourly = {
        (row["site"], row["day_of_week"], row["hour_of_day"]): row
        for row in rows(marts, "select * from marts.mart_glucose_hourly_pattern")
    }
    mine = [row for row in found if row["pattern"] == "weekday_hour" and row["metric"] == "time_in_range_pct"]
    assert len(mine) == len(hourly)
    for row in mine:
        same = hourly[row["site"], row["day_of_week"], row["start_hour"]]
        assert row["reading_count"] == same["reading_count"]
        assert row["value"] == pytest.approx(same["time_in_range_pct"], rel=1e-9, abs=1e-9)


def _episodes(marts: PostgresConnection) -> None:
    found = rows(marts, "select * from marts.mart_glucose_episodes order by episode_id")
    for site in ZONES:
        dates = {row["start_date"] for row in found if row["site"] == site}
        shown = {day for day in by_day(site) if day > max(by_day(site)) - timedelta(days=90)}
        assert dates <= shown
        # By chance half of the readings are out of range: every day with enough of them has an episode.
        assert dates >= {day for day in shown if len(by_day(site)[day]) > 200}
    for row in found:
        values = [
            reading.glucose_mg_dl
            for reading in SENT[row["site"]]
            if row["start_timestamp"] <= reading.moment and not (row["end_timestamp"] or NOW) <= reading.moment
        ]
        assert row["reading_count"] == len(values), row
        assert row["extreme_mg_dl"] == (min if row["kind"] == "hypoglycemia" else max)(values)
        assert row["extreme_mmol_l"] == pytest.approx(row["extreme_mg_dl"] / 18.01559, rel=1e-12)
        assert row["start_hour"] == row["start_timestamp"].astimezone(ZoneInfo(ZONES[row["site"]])).hour


def _sensor_sessions(marts: PostgresConnection) -> None:
    found = rows(marts, "select * from marts.mart_sensor_sessions order by site, session_start")
    for site, readings in SENT.items():
        mine = [row for row in found if row["site"] == site]
        assert sum(row["reading_count"] for row in mine) == len(readings)
        assert mine[0]["session_start"] == readings[0].moment
        assert mine[-1]["session_end"] == readings[-1].moment
        assert [row["is_newest"] for row in mine] == [False] * (len(mine) - 1) + [True]
        assert mine[-1]["session_end_local"] == readings[-1].local.replace(tzinfo=None)
        after_silence = [
            later.moment
            for earlier, later in pairwise(readings)
            if later.moment - earlier.moment >= timedelta(hours=12)
        ]
        assert [row["session_start"] for row in mine[1:] if row["start_basis"] == "long_silence"] == after_silence
        for row in mine:
            slots = (row["session_end"] - row["session_start"]) / timedelta(minutes=5) + 1
            assert row["expected_reading_count"] == slots
            assert row["coverage_pct"] == pytest.approx(100 * row["reading_count"] / slots, rel=1e-12)
            assert (row["mard_pct"], row["finger_stick_count"]) == (None, 0)


def _metrics(marts: PostgresConnection) -> None:
    found = rows(
        marts,
        "select * from marts.mart_glucose_metrics where metric in ('mean_mg_dl', 'time_in_range_pct', 'coverage_pct')"
        " and day_part = 'whole' and readings_used = 'all'",
    )
    assert {row["site"] for row in found} == set(ZONES)
    for row in found:
        days = by_day(row["site"])
        values = [
            v
            for day, of_day in days.items()
            if row["period_start_date"] <= day <= row["period_end_date"]
            for v in of_day
        ]
        assert row["reading_count"] == len(values)
        if row["metric"] == "coverage_pct":
            assert row["value"] == row["coverage_pct"]
            assert row["is_sufficient"] is (
                row["value"] >= 70 and (row["period_end_date"] - max(row["period_start_date"], min(days))).days >= 13
            )
        elif row["metric"] == "mean_mg_dl":
            assert row["value"] == pytest.approx(fmean(values), rel=1e-9)
            assert row["target"] is None
        else:
            assert row["value"] == pytest.approx(100 * ranges(values)["in_range"] / len(values), rel=1e-9)
            assert row["is_target_met"] is (row["value"] > 70)
    assert {row["period"] for row in found} == {"day", "7d", "14d", "30d", "90d", "all"}


def _comparison(marts: PostgresConnection) -> None:
    found = {
        row["site"]: row
        for row in rows(
            marts,
            "select * from marts.mart_glucose_comparison where metric = 'mean_mg_dl' and readings_used = 'all'",
        )
    }
    assert set(found) == set(ZONES)
    days = by_day("anna")
    sides = [
        [v for day, values in days.items() if 0 <= (max(days) - day).days - back < 14 for v in values]
        for back in (0, 14)
    ]
    assert found["anna"]["difference"] == pytest.approx(fmean(sides[0]) - fmean(sides[1]), rel=1e-9)
    assert found["ben"]["value_before"] is None
    assert found["ben"]["is_comparable"] is False
