"""The figures of the models against plain Python, iglu-python and py-agata: periods, days and parts of the day."""

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from statistics import fmean, stdev
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from references.plain_metrics import differences_over, plain_metrics, steps
from references.reference_metrics import Figures, reference_metrics
from references.series import glucose_series

from nightscout_lakehouse.demo.person import Person
from nightscout_lakehouse.lib.clinical.bootstrap import DailyCounts, bootstrap_intervals
from nightscout_lakehouse.lib.clinical.mage import mage
from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.summary import site_summaries
from nightscout_lakehouse.lib.warehouse import connect

MODELS = ["+fact_glucose_metrics", "+fact_glucose_comparison", "+dim_glucose_date"]
FETCHED_AT = datetime(2026, 11, 20, tzinfo=UTC)
DAY = timedelta(days=1)
BERLIN = ZoneInfo("Europe/Berlin")
Readings = Sequence[tuple[datetime, float]]
# (period, its last day, part of the day, choice of readings) -> metric -> row
Rows = dict[tuple[str, date, str, str], dict[str, dict[str, Any]]]
# (first day, last day, part of the day) -> readings that the figures are of, with those that they look back at; figures
Known = dict[tuple[date, date, str], tuple[Readings, dict[str, float | None]]]
ONLY_WHOLE_DAYS = (
    "mage_mg_dl",
    "modd_mg_dl",
    "conga_24h_mg_dl",
    "adrr",
    "sd_within_day_mg_dl",
    "sd_between_day_mg_dl",
)


def build(settings: Settings, lake: Lake, people: dict[str, Readings], models: Sequence[str] = MODELS) -> None:
    """Land and model what people sent; the zone of the first reading's time is the site's."""
    for site, readings in people.items():
        texts = [
            json.dumps(
                {
                    "_id": f"{number:024x}",
                    "type": "sgv",
                    "sgv": glucose,
                    "date": int(at.timestamp() * 1000),
                    "device": "sensor",
                }
            )
            for number, (at, glucose) in enumerate(readings)
        ]
        write_batch(lake, site, 1, documents_from_json(texts), FETCHED_AT)
    sites = [Site(site, "http://127.0.0.1:1", timezone=str(sent[0][0].tzinfo)) for site, sent in people.items()]
    process_sites(sites, settings, lake)
    DbtProject(settings).build("duckdb", models, data_tests=False)


def query(settings: Settings, statement: str) -> list[dict[str, Any]]:
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        result = warehouse.execute(statement)
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def metric_rows(settings: Settings, site: str) -> Rows:
    rows: Rows = {}
    for row in query(settings, f"select * from curated.fact_glucose_metrics where site = '{site}'"):
        key = (row["period"], row["period_end_date"], row["day_part"], row["readings_used"])
        rows.setdefault(key, {})[row["metric"]] = row
    return rows


def assert_figures(found: dict[str, dict[str, Any]], wanted: dict[str, float | None], what: str) -> None:
    for metric, value in wanted.items():
        if value is None:
            assert metric not in found, f"{what}: {metric}"
        else:
            ours = found[metric]["value"]
            # Of a flat series the spreads are rounding on one side and zero on the other.
            assert math.isclose(ours, value, rel_tol=1e-9, abs_tol=1e-9), f"{what}: {metric} {ours!r}, not {value!r}"


def of_part(readings: Readings, part: str) -> list[tuple[datetime, float]]:
    if part == "whole":
        return list(readings)
    return [(at, glucose) for at, glucose in readings if (at.hour < 6) == (part == "night")]


def of_days(readings: Readings, first: date, last: date) -> list[tuple[datetime, float]]:
    begin = bisect_left(readings, first, key=lambda reading: reading[0].date())
    return list(readings[begin : bisect_right(readings, last, key=lambda reading: reading[0].date())])


def plain_parts(readings: Readings) -> dict[str, float | None]:
    """The pair metrics where both readings are of the same night or day: each stretch by itself, then pooled."""
    stretches: dict[date, list[tuple[datetime, float]]] = {}
    for at, glucose in readings:
        stretches.setdefault(at.date(), []).append((at, glucose))
    figures: dict[str, float | None] = {}
    found = [differences_over(stretch, 5, (1, 2, 4)) for stretch in stretches.values()]
    for hours in (1, 2, 4):
        figures[f"conga_{hours}h_mg_dl"] = sample_sd([value for of_stretch in found for value in of_stretch[hours]])
    return figures | step_figures([step for stretch in stretches.values() for step in steps(stretch)])


def assert_everything(settings: Settings, site: str, readings: Readings) -> None:
    """Every period, day and part of the day of one person, as if the sums had never been merged from days."""
    rows = metric_rows(settings, site)
    flagged = {
        row["entry_id"]
        for row in query(settings, f"select entry_id from intermediate.int_reading_flags where site = '{site}'")
    }
    unflagged = [reading for number, reading in enumerate(readings) if f"{site}/{number:024x}" not in flagged]
    known: Known = {}
    assert_figures_of(rows, site, "all", readings, readings, known)
    assert_figures_of(rows, site, "unflagged", unflagged, readings, known)


def assert_figures_of(
    rows: Rows, site: str, readings_used: str, used: Readings, readings: Readings, known: Known
) -> None:
    first, newest = readings[0][0].date(), readings[-1][0].date()
    starts = {"7d": newest - 6 * DAY, "14d": newest - 13 * DAY, "30d": newest - 29 * DAY, "90d": newest - 89 * DAY}
    spans = [(name, start, newest) for name, start in (starts | {"all": first}).items()]
    spans += [("day", day, day) for day in (newest - number * DAY for number in range(90)) if day >= first]
    for period, start, end in spans:
        for part in ("whole", "night", "day"):
            counted = of_part(of_days(used, start, end), part)
            found = rows.get((period, end, part, readings_used), {})
            what = f"{site} {period} {end} {part} {readings_used}"
            if not found:
                assert not counted, what  # the newest day has not come to this part
                continue
            assert found["reading_count"]["value"] == len(counted), what
            readings_expected = expected(readings, start, end, part)
            assert found["expected_reading_count"]["value"] == round(readings_expected), what
            coverage = min(100, 100 * len(counted) / readings_expected)
            days = (end - max(start, first)).days + 1
            for row in found.values():
                assert row["coverage_pct"] == pytest.approx(coverage, rel=1e-9), what
                assert row["is_sufficient"] is (row["coverage_pct"] >= 70 and days >= 14), what
            if not counted:
                assert set(found) == {"reading_count", "expected_reading_count", "coverage_pct"}, what
                assert found["coverage_pct"]["value"] == 0
                continue
            assert_figures(found, plain_figures(used, start, end, part, known), what)


def plain_figures(used: Readings, start: date, end: date, part: str, known: Known) -> dict[str, float | None]:
    """The figures of a period; on most days no reading is flagged, and they are known already."""
    # Pairs look back over the period's start.
    with_before = of_days(used, start - 2 * DAY, end)
    if (start, end, part) in known and known[start, end, part][0] == with_before:
        return known[start, end, part][1]
    counted = of_part(of_days(used, start, end), part)
    wanted = plain_metrics(counted, 5)
    if part != "whole":
        wanted |= plain_parts(counted) | dict.fromkeys(ONLY_WHOLE_DAYS)
    else:
        if len(with_before) > len(counted):
            wanted |= pairs_that_end_in(with_before, start)
        wanted["mage_mg_dl"] = mage_of(counted)
    known[start, end, part] = (with_before, wanted)
    return wanted


def pairs_that_end_in(readings: Readings, start: date) -> dict[str, float | None]:
    """Pair metrics of the readings from `start` on; pairs come in the order of their later reading."""
    number = sum(at.date() < start for at, _ in readings)
    figures: dict[str, float | None] = {}
    found, found_before = (differences_over(some, 5, (1, 2, 4, 24)) for some in (readings, readings[:number]))
    for hours in (1, 2, 4, 24):
        values = found[hours][len(found_before[hours]) :]
        figures[f"conga_{hours}h_mg_dl"] = sample_sd(values)
        if hours == 24:
            figures["modd_mg_dl"] = math.fsum(map(abs, values)) / len(values) if len(values) >= 2 else None
    # The step into the first reading is one of the period's.
    return figures | step_figures(steps(readings[max(number - 1, 0) :]))


def sample_sd(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def step_figures(pairs: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    if not pairs:
        return {"mag_mg_dl_per_hour": None, "gvp_pct": None}
    minutes = math.fsum(step[0] for step in pairs)
    return {
        "mag_mg_dl_per_hour": 60 * math.fsum(abs(step[1]) for step in pairs) / minutes,
        "gvp_pct": 100 * (math.fsum(math.hypot(*step) for step in pairs) / minutes - 1),
    }


def mage_of(readings: Readings) -> float | None:
    minutes = np.array([at.timestamp() / 60 for at, _ in readings])
    return mage(minutes, np.array([glucose for _, glucose in readings])).mean_amplitude_mg_dl


def expected(readings: Readings, start: date, end: date, part: str) -> float:
    """Readings from the first day's midnight to the newest reading, five minutes apart."""
    zone = readings[0][0].tzinfo
    hours = {"whole": (0, 24), "night": (0, 6), "day": (6, 24)}[part]
    minutes = 0.0
    day = max(start, readings[0][0].date())
    while day <= end:
        begins, ends = (
            datetime.combine(day + (DAY if hour == 24 else 0 * DAY), time(hour % 24), zone).timestamp()
            for hour in hours
        )
        ends = min(ends, readings[-1][0].timestamp() + 300)
        minutes += max(0.0, ends - begins) / 60
        day += DAY
    return minutes / 5


def shared_with_programs(readings: Readings, theirs: Figures) -> dict[str, float]:
    """The figures that iglu-python or py-agata define as we do, on any series: see test_reference_metrics."""
    names = [
        *("mean_mg_dl", "median_mg_dl", "sd_mg_dl", "cv_pct", "iqr_mg_dl", "min_mg_dl", "max_mg_dl"),
        *(f"p{percent}_mg_dl" for percent in (5, 10, 25, 75, 90, 95)),
        *("time_very_low_pct", "time_low_pct", "time_in_range_pct", "time_high_pct", "time_very_high_pct"),
        *("time_below_range_pct", "time_above_range_pct", "time_in_tight_range_pct"),
        *("gmi_pct", "estimated_a1c_adag_pct", "gri", "lbgi", "hbgi", "j_index", "gvp_pct"),
    ]
    wanted = {name: theirs[name].get("iglu") for name in names if name in theirs}
    wanted |= {name: theirs[name]["agata"] for name in ("sd_within_day_mg_dl", "sd_between_day_mg_dl", "adrr")}
    if any(glucose == 112.5 for _, glucose in readings):
        # Where Kovatchev's function changes its sign, both programs round.
        wanted = {name: value for name, value in wanted.items() if name not in ("lbgi", "hbgi", "adrr")}
    return {name: value for name, value in wanted.items() if value is not None}


@pytest.mark.timeout(600)
@given(people=st.lists(glucose_series(), min_size=8, max_size=8))
@hypothesis_settings(
    max_examples=1,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_random_series_with_gaps(
    people: list[Any], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first example of Hypothesis is the simplest one, eight times.
    assume(len({series.description for series in people}) > 4)
    monkeypatch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("lakehouse")))
    settings = load_settings()
    readings = {
        f"person-{number}": [(at.replace(tzinfo=UTC), glucose) for at, glucose in series.readings]
        for number, series in enumerate(people)
    }
    build(settings, Lake.open(settings), readings, ["+fact_glucose_metrics"])
    for (site, of_person), series in zip(readings.items(), people, strict=True):
        assert_everything(settings, site, of_person)
        found = metric_rows(settings, site)["all", of_person[-1][0].date(), "whole", "all"]
        theirs = reference_metrics(series.readings, 5, ["iglu", "iglu_mage", "agata"])
        assert_figures(found, shared_with_programs(of_person, theirs), f"{site} in the programs, {series.description}")
        if theirs.get("mage_mg_dl", {}).get("iglu") is not None:
            assert found["mage_mg_dl"]["value"] == pytest.approx(theirs["mage_mg_dl"]["iglu"], rel=1e-9)


def demo_readings(seed: int, days: int) -> list[tuple[datetime, float]]:
    """Days of a demo person in Berlin up to November 2026, from seven in the morning; one of them has 25 hours."""
    end = datetime(2026, 11, 10, 12, tzinfo=UTC)
    entries = Person(seed).entries(end - days * DAY - timedelta(hours=6), end)
    sent = sorted((entry["date"], float(entry["sgv"])) for entry in entries if entry["type"] == "sgv")
    return [(datetime.fromtimestamp(ms / 1000, BERLIN), sgv) for ms, sgv in sent if sgv >= 39]


def nights_missing_at_last() -> Readings:
    """High nights, low days, the same throughout; in the last 14 days the sensor is off at night."""
    start = datetime(2026, 10, 1, tzinfo=UTC)
    readings = []
    for slot in range(28 * 288):
        at = start + timedelta(minutes=5 * slot)
        if slot < 14 * 288 or at.hour >= 6:
            readings.append((at, (220.0 if at.hour < 6 else 120.0) + slot % 7))
    return readings


def on_the_targets() -> Readings:
    """70 % in range exactly, 25 % above 180, 5 % above 250, 4 % below 70 and 1 % below 54."""
    start = datetime(2026, 10, 1, tzinfo=UTC)
    values = [100] * 70 + [200] * 21 + [260] * 5 + [60] * 3 + [50]
    return [(start + timedelta(minutes=5 * slot), float(values[slot % 100])) for slot in range(1400)]


@cache
def demo_people() -> dict[str, Readings]:
    """Two of them; a second of computing, which only the process that runs these tests shall take."""
    return {"anna": demo_readings(1, 100), "ben": demo_readings(2, 20)}


NOON = datetime(2026, 10, 25, 11, tzinfo=UTC)
PEOPLE: dict[str, Readings] = {
    "one": [(NOON.astimezone(BERLIN), 100.0)],
    # Nothing for ten minutes around midnight, then a reading that is the newest day's only one.
    "midnight": [(datetime(2026, 10, 30, 22, 50 + 5 * n, tzinfo=UTC).astimezone(BERLIN), 100.0 + n) for n in (0, 1)]
    + [(datetime(2026, 10, 30, 23, 5, tzinfo=UTC).astimezone(BERLIN), 110.0)],
    "nights": nights_missing_at_last(),
    "targets": on_the_targets(),
    # Over two hours twice the same fall; in doubles the sums of it and of its square do not cancel out.
    "falls": [
        (
            NOON.astimezone(BERLIN) + timedelta(minutes=5 * slot),
            {0: 342.6, 1: 343.5, 24: 278.0, 25: 278.9}.get(slot, 300.0),
        )
        for slot in range(26)
    ],
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One lakehouse of all these people."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("lakehouse")))
        settings = load_settings()
        build(settings, Lake.open(settings), demo_people() | PEOPLE)
    return settings


def test_differences_that_are_all_the_same_have_no_spread(built: Settings) -> None:
    (found,) = [
        row["conga_2h_mg_dl"]["value"]
        for (period, _, part, used), row in metric_rows(built, "falls").items()
        if (period, part, used) == ("all", "whole", "all")
    ]
    assert found == 0


def test_demo_people(built: Settings) -> None:
    settings, people = built, demo_people()
    for site, readings in people.items():
        assert_everything(settings, site, readings)
        assert_intervals(metric_rows(settings, site), site, readings)
        assert_comparison(settings, site, readings)
    by_site = {summary.site: summary for summary in site_summaries(settings)}
    daily = query(settings, "select * from curated.dim_glucose_date")
    for site, readings in people.items():
        newest = readings[-1][0].date()
        rows = metric_rows(settings, site)
        figures = {metric: row["value"] for metric, row in rows["14d", newest, "whole", "all"].items()}
        summary = by_site[site]
        assert (summary.mean_mg_dl, summary.time_in_range_pct, summary.time_below_range_pct, summary.gmi_pct) == (
            pytest.approx(figures["mean_mg_dl"], rel=1e-12),
            pytest.approx(figures["time_in_range_pct"], rel=1e-12),
            pytest.approx(figures["time_below_range_pct"], rel=1e-12),
            pytest.approx(figures["gmi_pct"], rel=1e-12),
        )
        assert summary.sufficiency_pct == figures["coverage_pct"]
        for day in (row for row in daily if row["site"] == site and row["reading_date"] > newest - 90 * DAY):
            of_day = {m: row["value"] for m, row in rows["day", day["reading_date"], "whole", "all"].items()}
            for column in ("gri", "lbgi", "hbgi", "j_index", "mage_mg_dl", "gmi_mmol_mol", "time_in_range_pct"):
                wanted = of_day.get(column)
                assert day[column] == (None if wanted is None else pytest.approx(wanted, rel=1e-12)), column


def assert_intervals(rows: Rows, site: str, readings: Readings) -> None:
    newest = readings[-1][0].date()
    for period, length in (("7d", 7), ("14d", 14), ("30d", 30), ("90d", 90)):
        for part in ("whole", "night", "day"):
            counts = daily_counts(of_part(of_days(readings, newest - (length - 1) * DAY, newest), part))
            wanted = bootstrap_intervals(f"{site}/{period}/{part}", counts)
            assert wanted is not None
            found = rows[period, newest, part, "all"]
            bounds = {metric: (found[metric]["ci_low"], found[metric]["ci_high"]) for metric in found}
            assert bounds["time_in_range_pct"] == pytest.approx((wanted.tir_low, wanted.tir_high), rel=1e-9)
            assert bounds["gmi_pct"] == pytest.approx((wanted.gmi_low, wanted.gmi_high), rel=1e-9)
            assert bounds["gri"] == pytest.approx((wanted.gri_low, wanted.gri_high), rel=1e-9, abs=1e-9)
            mmol_mol = [12.71 + 4.70587 * (gmi - 3.31) / 0.02392 / 18.01559 for gmi in bounds["gmi_pct"]]
            assert bounds["gmi_mmol_mol"] == pytest.approx(mmol_mol, rel=1e-9)
            for metric in ("time_in_range_pct", "gmi_pct", "gmi_mmol_mol", "gri"):
                assert found[metric]["ci_low"] <= found[metric]["value"] <= found[metric]["ci_high"]
            assert bounds["mean_mg_dl"] == (None, None)


def daily_counts(readings: Readings) -> list[DailyCounts]:
    days: dict[date, list[float]] = {}
    for at, glucose in readings:
        days.setdefault(at.date(), []).append(glucose)
    return [
        DailyCounts(
            day,
            len(values),
            sum(g < 54 for g in values),
            sum(54 <= g < 70 for g in values),
            sum(70 <= g <= 180 for g in values),
            sum(180 < g <= 250 for g in values),
            sum(g > 250 for g in values),
            math.fsum(values),
        )
        for day, values in days.items()
    ]


COMPARED = (
    "mean_mg_dl",
    "time_in_range_pct",
    "time_below_range_pct",
    "time_above_range_pct",
    "gmi_pct",
    "gri",
    "cv_pct",
)


def assert_comparison(settings: Settings, site: str, readings: Readings) -> None:
    newest = readings[-1][0].date()
    first = readings[0][0].date()
    now, before = of_days(readings, newest - 13 * DAY, newest), of_days(readings, newest - 27 * DAY, newest - 14 * DAY)
    ours_now, ours_before = plain_metrics(now, 5), plain_metrics(before, 5)
    found = query(
        settings, f"select * from curated.fact_glucose_comparison where site = '{site}' and readings_used = 'all'"
    )
    assert {row["metric"] for row in found} == set(COMPARED)
    for row in found:
        metric = row["metric"]
        assert row["value_now"] == pytest.approx(ours_now[metric], rel=1e-9)
        assert row["value_before"] == pytest.approx(ours_before[metric], rel=1e-9)
        assert row["difference"] == pytest.approx(row["value_now"] - row["value_before"])
        assert row["difference_ci_low"] <= row["difference"] <= row["difference_ci_high"]
        days = [full_day_values(side, metric) for side in (now, before)]
        assert row["effect_size_hedges_g"] == pytest.approx(hedges_g(*days), rel=1e-9)
        assert row["is_comparable"] is (
            first <= newest - 27 * DAY and row["coverage_now_pct"] >= 70 and row["coverage_before_pct"] >= 70
        )
        assert (row["now_start_date"], row["before_start_date"]) == (newest - 13 * DAY, newest - 27 * DAY)
        assert row["before_end_date"] == newest - 14 * DAY


def full_day_values(readings: Readings, metric: str) -> list[float]:
    values = []
    for day in sorted({at.date() for at, _ in readings}):
        of_day = of_days(readings, day, day)
        midnights = [datetime.combine(day + extra, time(), BERLIN).timestamp() for extra in (0 * DAY, DAY)]
        value = plain_metrics(of_day, 5)[metric]
        if len(of_day) >= 0.7 * (midnights[1] - midnights[0]) / 300 and value is not None:
            values.append(value)
    return values


def hedges_g(now: list[float], before: list[float]) -> float | None:
    if min(len(now), len(before)) < 5:
        return None
    freedom = len(now) + len(before) - 2
    pooled = math.sqrt(((len(now) - 1) * stdev(now) ** 2 + (len(before) - 1) * stdev(before) ** 2) / freedom)
    return (fmean(now) - fmean(before)) / pooled * (1 - 3 / (4 * freedom - 1))


def test_missing_nights_do_not_pose_as_a_change(built: Settings) -> None:
    found = {
        row["metric"]: row
        for row in query(
            built, "select * from curated.fact_glucose_comparison where site = 'nights' and readings_used = 'all'"
        )
    }
    tir = found["time_in_range_pct"]
    assert (tir["value_now"], tir["value_before"]) == (100, 75)
    assert (tir["adjusted_value_now"], tir["adjusted_value_before"], tir["hours_compared"]) == (100, 100, 18)
    assert tir["coverage_now_pct"] == 75
    mean = found["mean_mg_dl"]
    assert mean["difference"] < -20
    assert abs(mean["adjusted_difference"]) < 0.1
    # Every day of a side has the same share in range: there is no spread to hold the difference against.
    assert tir["effect_size_hedges_g"] is None


def test_edges(built: Settings) -> None:
    settings = built
    for site in ("one", "midnight"):
        assert_everything(settings, site, PEOPLE[site])
    alone = metric_rows(settings, "one")["all", date(2026, 10, 25), "whole", "all"]
    assert "sd_mg_dl" not in alone
    assert alone["time_in_range_pct"]["value"] == 100
    # Noon of the day that has two hours from two to three: 13 hours of readings, and the one.
    assert alone["expected_reading_count"]["value"] == 13 * 12 + 1
    rows = metric_rows(settings, "midnight")
    # The step over midnight belongs to the day of its later reading, and is no step of the night.
    newest = date(2026, 10, 31)
    assert rows["day", newest, "whole", "all"]["mag_mg_dl_per_hour"]["value"] == pytest.approx(9 * 6)
    assert "mag_mg_dl_per_hour" not in rows["day", newest, "night", "all"]
    assert ("day", newest, "day", "all") not in rows
    [comparison] = query(
        settings,
        "select * from curated.fact_glucose_comparison where site = 'one' and metric = 'gri' and readings_used = 'all'",
    )
    assert comparison["value_before"] is None
    assert comparison["is_comparable"] is False


def test_targets_are_strict_where_the_consensus_is(built: Settings) -> None:
    # None is met but by more.
    rows, newest = metric_rows(built, "targets"), PEOPLE["targets"][-1][0].date()
    found = rows["all", newest, "whole", "all"]
    met = {metric: row["is_target_met"] for metric, row in found.items() if row["target"]}
    assert met == {
        "time_in_range_pct": False,
        "time_below_range_pct": False,
        "time_very_low_pct": False,
        "time_above_range_pct": False,
        "time_very_high_pct": False,
        "cv_pct": False,
    }
    night = rows["all", newest, "night", "all"]
    assert {row["target"] for row in night.values()} == {None}
