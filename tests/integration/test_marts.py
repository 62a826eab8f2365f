"""The figures of the marts, against a plain count over the documents that were sent."""

import json
import random
import re
from bisect import bisect_left
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import cache, cached_property
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
UNITS = {"mg/dL": (1.0, 0), "mmol/L": (18.01559, 1)}
# Postgres rounds what it prints of a number, 15 digits.
HALF_A_STEP = {"mg/dL": 0.5 + 1e-9, "mmol/L": 0.05 + 1e-9}
PERIODS = {"7 days": 7, "14 days": 14, "30 days": 30, "90 days": 90}
BOUNDARIES = [53, 53.9, 54, 69, 69.9, 70, 140, 140.1, 180, 180.1, 250, 250.1, 251]


@dataclass(frozen=True)
class Reading:
    """A reading as it was sent."""

    moment: datetime
    glucose_mg_dl: float
    zone: ZoneInfo

    @cached_property
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


SENT = {"anna": made_up("anna", 100, 0.1), "ben": made_up("ben", 10, 0.5), "cara": made_up("cara", 1, 0)[-1:]}


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


@cache
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


def test_the_marts_say_what_was_sent(marts: PostgresConnection, settings: Settings) -> None:
    _time_in_range(marts)
    _overview(marts)
    _current(marts)
    _recent(marts)
    _hourly_pattern(marts)
    _profile(marts)
    _patterns(marts)
    _episodes(marts)
    _sensor_sessions(marts)
    _descriptions(marts, settings)
    _metrics(marts)
    _comparison(marts)
    _dashboard_current(marts)
    _dashboard_readings(marts)
    _dashboard_ranges(marts)
    _dashboard_summary_and_days(marts)
    _dashboard_hours_and_profile(marts)
    _dashboard_episodes(marts)
    _attention(marts)
    _stale_limit(marts)


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
        sent = SENT[row["site"]]
        first, after = (
            bisect_left(sent, moment, key=lambda reading: reading.moment)
            for moment in (row["start_timestamp"], row["end_timestamp"] or NOW)
        )
        values = [reading.glucose_mg_dl for reading in sent[first:after]]
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


# The marts that dashboards draw from


def shown(mg_dl: float, unit: str) -> float:
    """As a person writes it: whole mg/dL or one decimal of mmol/L, halves upwards."""
    divisor, decimals = UNITS[unit]
    step = Decimal(1).scaleb(-decimals)
    return float((Decimal(repr(mg_dl)) / Decimal(repr(divisor))).quantize(step, ROUND_HALF_UP))


@cache
def of_period(site: str, period: str) -> list[Reading]:
    newest = max(by_day(site))
    return [r for r in SENT[site] if r.local.date() > newest - timedelta(days=PERIODS[period])]


def keyed(found: list[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    by_key = {tuple(row[name] for name in names): row for row in found}
    assert len(by_key) == len(found)
    return by_key


def _dashboard_current(marts: PostgresConnection) -> None:
    found = keyed(rows(marts, "select * from marts.mart_dashboard_current"), "site", "unit")
    assert set(found) == {(site, unit) for site in ZONES for unit in UNITS}
    for (site, unit), row in found.items():
        last = SENT[site][-1]
        assert row["glucose"] == shown(last.glucose_mg_dl, unit)
        assert float(row["glucose_text"]) == row["glucose"]
        assert row["reading_local_timestamp"] == last.local.replace(tzinfo=None)
        assert row["time_text"] == last.local.strftime("%a %H:%M")
        assert (row["trend_arrow"], row["is_stale"]) == ("↗", False)
        assert re.fullmatch(r"\d+ min ago", row["age_text"])
        (name,) = [name for name, count in ranges([last.glucose_mg_dl]).items() if count and name in SHOWN_RANGES]
        assert (row["glucose_range"], row["range_label"]) == (name, SHOWN_RANGES[name])
        if row["glucose_change"] is None:
            assert row["change_text"] == ""
        else:
            assert float(row["change_text"].replace("\N{MINUS SIGN}", "-").replace("±", "")) == row["glucose_change"]


SHOWN_RANGES = {
    "very_low": "Very low",
    "low": "Low",
    "in_range": "In range",
    "high": "High",
    "very_high": "Very high",
}


def _dashboard_readings(marts: PostgresConnection) -> None:
    found = rows(marts, "select * from marts.mart_dashboard_readings where period = '14 days' order by 5")
    for site in ZONES:
        sent = of_period(site, "14 days")
        for unit in UNITS:
            mine = [row for row in found if (row["site"], row["unit"]) == (site, unit)]
            points = [row for row in mine if row["glucose"] is not None]
            assert [row["reading_local_timestamp"] for row in points] == [r.local.replace(tzinfo=None) for r in sent]
            assert [row["glucose"] for row in points] == [shown(r.glucose_mg_dl, unit) for r in sent]
            for row, reading in zip(points, sent, strict=True):
                coloured = {name for name in SHOWN_RANGES if row[f"glucose_{name}"] is not None}
                counts = ranges([reading.glucose_mg_dl])
                assert coloured == {name for name in SHOWN_RANGES if counts[name]}
            # A line would run across every gap but for a point without a value in each.
            breaks = [row["reading_local_timestamp"] for row in mine if row["glucose"] is None]
            gaps = [
                earlier.local.replace(tzinfo=None) + timedelta(minutes=5)
                for earlier, later in pairwise(sent)
                if later.moment - earlier.moment > timedelta(minutes=10)
            ]
            assert breaks == gaps
            assert {(row["target_low"], row["target_high"]) for row in mine} == {(shown(70, unit), shown(180, unit))}
    sizes = {(r["site"], r["period"]): r["count"] for r in rows(marts, _SIZES)}
    assert sizes == {(site, period): len(of_period(site, period)) for site in ZONES for period in PERIODS}


_SIZES = """
select site, period, count(glucose) as count from marts.mart_dashboard_readings
where unit = 'mg/dL' group by site, period
"""


def _dashboard_ranges(marts: PostgresConnection) -> None:
    found = keyed(rows(marts, "select * from marts.mart_dashboard_ranges"), "site", "period", "unit", "range_name")
    assert len(found) == 3 * 4 * 2 * 7
    for (site, period, _, name), row in found.items():
        values = [reading.glucose_mg_dl for reading in of_period(site, period)]
        assert row["pct"] == pytest.approx(100 * ranges(values)[name] / len(values), rel=1e-9, abs=1e-9)
        assert row["is_band"] is (name in SHOWN_RANGES)
        assert (row["target_text"] == "") is (row["target_result"] == "") is (name in ("low", "high"))
    bounds = {(unit, name): row["bounds_text"] for (_, _, unit, name), row in found.items()}
    assert bounds["mg/dL", "low"] == "54 to 69 mg/dL"
    assert bounds["mg/dL", "high"] == "181 to 250 mg/dL"
    assert bounds["mg/dL", "very_high"] == "above 250 mg/dL"
    assert bounds["mmol/L", "in_range"] == "3.9 to 10.0 mmol/L"
    assert bounds["mmol/L", "low"] == "3.0 to 3.8 mmol/L"
    assert bounds["mmol/L", "very_low"] == "below 3.0 mmol/L"
    # The bounds and colours of the report are the same.
    from nightscout_lakehouse.lib.agp_report.content import RANGES, Unit, range_bounds

    for name, (label, *_) in RANGES.items():
        for unit in Unit:
            assert bounds[unit, name].replace("below", "<").replace("above", ">") == range_bounds(name, unit)
        assert SHOWN_RANGES[name] == label


def _dashboard_summary_and_days(marts: PostgresConnection) -> None:
    found = keyed(rows(marts, "select * from marts.mart_dashboard_summary"), "site", "period", "unit")
    assert set(found) == {(site, period, unit) for site in ZONES for period in PERIODS for unit in UNITS}
    for (site, period, unit), row in found.items():
        values = [reading.glucose_mg_dl for reading in of_period(site, period)]
        assert row["mean_glucose"] == pytest.approx(fmean(values) / UNITS[unit][0], abs=HALF_A_STEP[unit])
        assert row["gmi_pct"] == pytest.approx(3.31 + 0.02392 * fmean(values), rel=1e-9)
        assert row["reading_count"] == len(values)
        assert row["period_days"] == PERIODS[period]
    days = keyed(rows(marts, "select * from marts.mart_dashboard_days"), "site", "period", "unit", "reading_date")
    overview = keyed(rows(marts, "select * from marts.mart_glucose_overview"), "site", "reading_date")
    for site in ZONES:
        for period in PERIODS:
            dates = {reading.local.date() for reading in of_period(site, period)}
            for unit in UNITS:
                assert {key[3] for key in days if key[:3] == (site, period, unit)} == dates
    for (site, _, unit, date_), row in days.items():
        same = overview[site, date_]
        assert row["time_in_range_pct"] == same["time_in_range_pct"]
        assert row["estimated_a1c_7d_avg"] == same["estimated_a1c_7d_avg"]
        mean = same["avg_glucose_mg_dl"] / UNITS[unit][0]
        assert row["mean_glucose"] == pytest.approx(mean, abs=HALF_A_STEP[unit])
        assert row["data_sufficiency"] == ("enough" if same["data_sufficiency_pct"] >= 70 else "few readings")


def _dashboard_hours_and_profile(marts: PostgresConnection) -> None:
    hours = keyed(rows(marts, "select * from marts.mart_dashboard_hours"), "site", "unit", "day_of_week", "hour_of_day")
    pattern = rows(marts, "select * from marts.mart_glucose_hourly_pattern")
    assert len(hours) == 2 * len(pattern)
    for row in pattern:
        for unit, (divisor, _) in UNITS.items():
            cell = hours[row["site"], unit, row["day_of_week"], row["hour_of_day"]]
            assert cell["mean_glucose"] == pytest.approx(row["avg_glucose_mg_dl"] / divisor, abs=HALF_A_STEP[unit])
            assert cell["weekday_date"].isoweekday() == row["day_of_week"]
            assert cell["weekday_name"] == cell["weekday_date"].strftime("%a")
            assert cell["hour_text"] == f"{row['hour_of_day']:02d}"
    profile = rows(marts, "select * from marts.mart_dashboard_agp")
    agp = keyed(
        rows(marts, "select * from marts.mart_glucose_agp where grid_minutes = 5"), "site", "period", "minute_of_day"
    )
    assert len(profile) == 3 * 4 * 2 * 288
    for row in profile:
        period = {"7 days": "14d"}.get(row["period"], f"{PERIODS[row['period']]}d")
        same = agp[row["site"], period, row["minute_of_day"]]
        assert row["clock_time"] == datetime(2000, 1, 1) + timedelta(minutes=row["minute_of_day"])  # noqa: DTZ001
        if same["smoothed_p50_mg_dl"] is None:
            assert row["median_glucose"] is None
        else:
            median_ = same["smoothed_p50_mg_dl"] / UNITS[row["unit"]][0]
            assert row["median_glucose"] == pytest.approx(median_, abs=HALF_A_STEP[row["unit"]])
            assert row["p5_glucose"] <= row["p25_glucose"] <= row["median_glucose"] <= row["p75_glucose"]


def _dashboard_episodes(marts: PostgresConnection) -> None:
    found = rows(marts, "select * from marts.mart_dashboard_episodes where unit = 'mg/dL' and period = '90 days'")
    facts = rows(marts, "select * from marts.mart_glucose_episodes")
    assert {row["episode_id"] for row in found} == {row["episode_id"] for row in facts if row["level"] == 1}
    assert {row["kind_label"] for row in found} == {"Low", "Very low", "High", "Very high"}
    severe = [row for row in facts if row["level"] == 2]
    by_id = {row["episode_id"]: row for row in facts}
    for row in found:
        same = by_id[row["episode_id"]]
        end = same["end_timestamp"] or NOW
        within = [
            fact
            for fact in severe
            if (fact["site"], fact["kind"]) == (same["site"], same["kind"])
            and same["start_timestamp"] <= fact["start_timestamp"] < end
        ]
        label = "Low" if same["kind"] == "hypoglycemia" else "High"
        assert row["kind_label"] == (f"Very {label.lower()}" if within else label), row
        assert ("at night" in row["notes"]) is same["is_nocturnal"]
        assert row["extreme_glucose"] == shown(same["extreme_mg_dl"], "mg/dL")


def _attention(marts: PostgresConnection) -> None:
    found = keyed(rows(marts, "select * from marts.mart_site_attention"), "site", "unit")
    # Dora has never sent a reading.
    assert set(found) == {(site, unit) for site in [*ZONES, "dora"] for unit in UNITS}
    for (site, unit), row in found.items():
        if site == "dora":
            assert (row["attention"], row["glucose"], row["reasons"]) == ("No readings", None, _NEVER)
            continue
        values = [reading.glucose_mg_dl for reading in of_period(site, "14 days")]
        shares = {name: 100 * count / len(values) for name, count in ranges(values).items()}
        last = values[-1]
        lows = shares["very_low"] >= 1 or shares["below_range"] >= 4
        highs = shares["in_range"] <= 70 or shares["above_range"] >= 25 or shares["very_high"] >= 5
        rank = 1 if last < 54 else 2 if lows else 4 if highs else 5
        assert row["attention_rank"] == rank, row
        assert row["time_in_range_pct"] == pytest.approx(shares["in_range"], rel=1e-9, abs=1e-9)
        assert row["glucose_text"] == f"{shown_text(last, unit)} ↗"
        assert ("very low" in row["reasons"]) is (shares["very_low"] >= 1)
        assert row["is_stale"] is False
    for unit in UNITS:
        order = sorted((row for row in found.values() if row["unit"] == unit), key=lambda row: row["attention_order"])
        assert [row["attention_order"] for row in order] == [1, 2, 3, 4]
        assert order == sorted(order, key=lambda row: (row["attention_rank"], -(row["gri"] or 0), row["site"]))


_NEVER = "never a reading"


def _stale_limit(marts: PostgresConnection) -> None:
    """What is stale is as the last run was set; nothing of it stays in the database."""
    current = "select distinct is_stale from marts.mart_dashboard_current where site = any(%s)"
    attention = (
        "select distinct is_stale, reasons like '%%newest reading%%' from marts.mart_site_attention"
        " where site = any(%s)"
    )
    with closing(marts.connect()) as opened, opened.cursor() as cursor:
        for number, (stale_minutes, is_stale) in enumerate([(0.0, True), (100_000.0, False)]):
            cursor.execute(
                "insert into ops.pipeline_runs (run_id, job, launched_by, status, started_at, stale_minutes)"
                " values (%s, 'nightscout_pipeline', 'test', 'success', now() + %s * interval '1 second', %s)",
                (str(number), number, stale_minutes),
            )
            cursor.execute(current, (list(ZONES),))
            assert cursor.fetchall() == [(is_stale,)]
            cursor.execute(attention, (list(ZONES),))
            assert cursor.fetchall() == [(is_stale, is_stale)]
        # However long it is set to: what is more than a day old says nothing of now. Cara has one reading.
        cursor.execute(
            "update curated.fact_glucose_readings set reading_timestamp = reading_timestamp - interval '25 hours'"
            " where site = 'cara'"
        )
        cursor.execute(current, (["cara"],))
        assert cursor.fetchall() == [(True,)]
        opened.rollback()


def shown_text(mg_dl: float, unit: str) -> str:
    return f"{shown(mg_dl, unit):.{UNITS[unit][1]}f}"


def _descriptions(marts: PostgresConnection, settings: Settings) -> None:
    """Every table and view says in its database what the YAML says of it, and of its columns; nothing else does."""
    manifest = json.loads(DbtProject(settings).prepare_manifest().read_text())
    models = [node for node in manifest["nodes"].values() if node["resource_type"] == "model"]
    expected = {
        (model["schema"], model["name"], column): described["description"]
        for model in models
        for column, described in [("", model), *model["columns"].items()]
    }
    found = {
        (row["table_schema"], row["table_name"], row["column_name"]): row["description"]
        for row in rows(
            marts,
            """
            select n.nspname as table_schema, c.relname as table_name, coalesce(a.attname, '') as column_name,
                d.description
            from pg_class as c
            inner join pg_namespace as n on c.relnamespace = n.oid
            inner join pg_description as d on d.objoid = c.oid and d.classoid = 'pg_class'::regclass
            left join pg_attribute as a on a.attrelid = c.oid and a.attnum = d.objsubid and d.objsubid > 0
            where n.nspname = 'marts'
            """,
        )
    }
    with open_warehouse(settings) as warehouse:
        described = warehouse.execute(
            """
            select schema_name, table_name, column_name, comment from duckdb_columns() where comment is not null
            union all
            select schema_name, table_name, '', comment from duckdb_tables() where comment is not null
            union all
            select schema_name, view_name, '', comment from duckdb_views() where comment is not null
            """
        ).fetchall()
    found |= {tuple(names): comment for *names, comment in described}
    assert len(expected) > 500
    assert any("'" in description for description in expected.values())
    assert found == expected
