"""Our plain metrics against the field's programs: equal where both define a figure, each difference for its reason."""

import math
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from references.plain_metrics import (
    bridged,
    differences,
    high_risk,
    low_risk,
    plain_metrics,
    symmetrized,
)
from references.reference_metrics import Figures, reference_metrics
from references.series import INTERVAL_MINUTES, Series, glucose_series, make_series

Plain = dict[str, float | None]
RELATIVE = 1e-9
CLOSED_FORM = (
    "mean_mg_dl",
    "median_mg_dl",
    "sd_mg_dl",
    "cv_pct",
    "iqr_mg_dl",
    "min_mg_dl",
    "max_mg_dl",
    *(f"p{percent}_mg_dl" for percent in (5, 10, 25, 75, 90, 95)),
    *(
        f"time_{name}_pct"
        for name in (
            "very_low",
            "low",
            "in_range",
            "high",
            "very_high",
            "below_range",
            "above_range",
            "in_tight_range",
        )
    ),
    "gmi_pct",
    "estimated_a1c_adag_pct",
    "gri",
    "lbgi",
    "hbgi",
    "adrr",
    "j_index",
)
# A line across a gap of up to 45 minutes adds its change, its length and its time, just as the pair of its ends does.
GAP_PROOF_IN_IGLU = ("mag_mg_dl_per_hour", "gvp_pct")
PAIRED = ("modd_mg_dl", "conga_1h_mg_dl", "conga_2h_mg_dl", "conga_4h_mg_dl", "conga_24h_mg_dl")
DAILY = ("sd_within_day_mg_dl", "sd_between_day_mg_dl")
RANGE_BOUNDS = {54, 70, 140, 180, 250}
BOUND_METRICS = {name for name in CLOSED_FORM if name.startswith("time_")} | {"gri"}
# The zero of Kovatchev's function is 112.517; both programs part low from high at 112.5.
CENTRE = 112.5
IGLU_ADRR = 22.77 / (10 * 1.509**2)

slow = hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def assert_equal(ours: float | None, theirs: float | None, what: str) -> None:
    if ours is None or theirs is None:
        assert ours == theirs, what
    else:
        # Of a flat series the SDs are rounding in one program and zero in the other.
        assert math.isclose(ours, theirs, rel_tol=RELATIVE, abs_tol=1e-9), f"{what}: ours {ours!r}, theirs {theirs!r}"


@slow
@given(series=glucose_series())
def test_any_series_with_gaps(series: Series) -> None:
    ours = plain_metrics(series.readings, INTERVAL_MINUTES)
    theirs = reference_metrics(series.readings, INTERVAL_MINUTES, ["iglu", "agata"])
    assert_closed_forms_equal(series, ours, theirs)
    assert_steps_and_days_equal(ours, theirs)
    assert_iglus_lines_across_gaps_are_the_whole_difference(series, theirs)


def assert_closed_forms_equal(series: Series, ours: Plain, theirs: Figures) -> None:
    values = [glucose for _, glucose in series.readings]
    at_centre = low_risk(CENTRE) * values.count(CENTRE) / len(values)
    for metric in CLOSED_FORM:
        for program, value in theirs[metric].items():
            what = f"{metric} in {program}"
            if program == "agata" and metric in BOUND_METRICS and RANGE_BOUNDS & set(values):
                continue  # its bounds belong to the outer range: test_agata_counts_the_bounds_outside
            if metric in ("lbgi", "hbgi", "adrr") and CENTRE in values:
                mine = ours[metric]
                assert mine is not None
                assert value is not None
                expected = mine * IGLU_ADRR if (metric, program) == ("adrr", "iglu") else mine
                allowed = at_centre if metric != "adrr" else 2 * low_risk(CENTRE)
                assert abs(expected - value) <= allowed + RELATIVE * mine, what
            elif (metric, program) == ("adrr", "iglu"):
                assert_equal(ours[metric] * IGLU_ADRR, value, what)  # type: ignore[operator]
            else:
                assert_equal(ours[metric], value, what)


def assert_steps_and_days_equal(ours: Plain, theirs: Figures) -> None:
    for metric in GAP_PROOF_IN_IGLU:
        if "iglu" in theirs.get(metric, {}):
            value = theirs[metric]["iglu"]
            # iglu's MAG of a series without a single pair is 0, ours is none.
            assert_equal(ours[metric], None if ours[metric] is None and value == 0 else value, metric)
    for metric in DAILY:
        assert_equal(ours[metric], theirs[metric]["agata"], metric)


@slow
@given(series=glucose_series(largest_days=5))
def test_pairs_equal_agata_with_any_gaps(series: Series) -> None:
    ours = plain_metrics(series.readings, INTERVAL_MINUTES)
    theirs = reference_metrics(series.readings, INTERVAL_MINUTES, ["agata_pairs"])
    for metric, hours in (("modd_mg_dl", 24), ("conga_4h_mg_dl", 4)):
        if len(differences(series.readings, INTERVAL_MINUTES, hours)) >= 2:
            assert_equal(ours[metric], theirs[metric]["agata"], metric)
        else:
            assert ours[metric] is None


@slow
@given(series=glucose_series(with_gaps=False, largest_days=8))
def test_grid_metrics_equal_iglu_without_gaps(series: Series) -> None:
    ours = plain_metrics(series.readings, INTERVAL_MINUTES)
    theirs = reference_metrics(series.readings, INTERVAL_MINUTES, ["iglu"])
    for metric in (*PAIRED, *DAILY, *GAP_PROOF_IN_IGLU):
        if "iglu" in theirs.get(metric, {}):
            assert_equal(ours[metric], theirs[metric]["iglu"], metric)


def assert_iglus_lines_across_gaps_are_the_whole_difference(series: Series, theirs: Figures) -> None:
    with_lines = plain_metrics(bridged(series.readings, INTERVAL_MINUTES), INTERVAL_MINUTES)
    for metric in (*PAIRED, *DAILY):
        if "iglu" not in theirs.get(metric, {}):
            continue
        hours = 24 if metric == "modd_mg_dl" else None
        if hours and len(differences(bridged(series.readings, INTERVAL_MINUTES), INTERVAL_MINUTES, hours)) == 1:
            assert with_lines[metric] is None  # iglu takes the mean of one pair
        else:
            assert_equal(with_lines[metric], theirs[metric]["iglu"], metric)


def test_agata_counts_the_bounds_outside() -> None:
    start = datetime(2024, 3, 1)  # noqa: DTZ001
    values = [53, 53.9, 54, 69, 69.9, 70, 140, 180, 180.1, 181, 250, 250.1, 251]
    readings = [(start + timedelta(minutes=5 * place), float(value)) for place, value in enumerate(values)]
    ours = plain_metrics(readings, 5)
    theirs = reference_metrics(readings, 5, ["iglu", "agata"])
    one = 100 / len(values)
    moved = {"very_low": 1, "low": 0, "in_range": -2, "high": 0, "very_high": 1, "below_range": 1, "above_range": 1}
    for name, readings_more in (moved | {"in_tight_range": -2}).items():
        metric = f"time_{name}_pct"
        assert theirs[metric]["iglu"] == pytest.approx(ours[metric], rel=RELATIVE)
        assert theirs[metric]["agata_our_rule"] == pytest.approx(ours[metric], rel=RELATIVE)
        assert theirs[metric]["agata"] == pytest.approx(ours[metric] + readings_more * one, rel=RELATIVE)  # type: ignore[operator]


def test_a_reading_of_112_5_is_low_risk_here_none_in_iglu_and_both_in_agata() -> None:
    assert symmetrized(112.5) < 0 < symmetrized(112.6)
    readings = [(datetime(2024, 3, 1, 0, 5 * place), 112.5) for place in range(3)]  # noqa: DTZ001
    ours = plain_metrics(readings, 5)
    theirs = reference_metrics(readings, 5, ["iglu", "agata"])
    assert ours["lbgi"] == pytest.approx(low_risk(112.5))
    assert ours["hbgi"] == 0
    assert theirs["lbgi"] == {"iglu": 0, "agata": pytest.approx(low_risk(112.5))}
    assert theirs["hbgi"] == {"iglu": 0, "agata": pytest.approx(low_risk(112.5))}


def test_the_published_points_of_the_risk_function() -> None:
    # Kovatchev 1997 sets the scale so that 20 and 600 mg/dL have the highest risk, 100.
    assert low_risk(20) == pytest.approx(100, abs=0.1)
    assert high_risk(600) == pytest.approx(100, abs=0.1)


def test_a_pair_lies_within_half_an_interval_and_the_earlier_wins_a_tie() -> None:
    start = datetime(2024, 3, 1)  # noqa: DTZ001

    def at(*minutes: float) -> list[tuple[datetime, float]]:
        return [(start + timedelta(minutes=minute), 100.0 + place * 10) for place, minute in enumerate(minutes)]

    assert differences(at(0, 62.5), 5, 1) == [10]
    assert differences(at(0, 62.6), 5, 1) == []
    assert differences(at(2.5, 60), 5, 1) == [10]
    assert differences(at(0, 4, 62), 5, 1) == [20]
    assert differences(at(0, 4, 63), 5, 1) == [10]


def test_days_and_pairs_of_a_clock_change() -> None:
    zone = ZoneInfo("Europe/Berlin")
    start = datetime(2024, 10, 26, 22, 0, tzinfo=ZoneInfo("UTC"))  # midnight of the 25-hour day
    readings = [
        ((start + timedelta(minutes=5 * place)).astimezone(zone), 100.0 + place % 7 + (50 if place >= 300 else 0))
        for place in range(600)
    ]
    ours = plain_metrics(readings, 5)
    # The 25-hour day holds the first 300 readings and nothing of the step that follows.
    assert ours["sd_within_day_mg_dl"] is not None
    assert ours["sd_within_day_mg_dl"] < 3
    assert len(differences(readings, 5, 24)) == 600 - 288


def test_edges() -> None:
    one = make_series(datetime(2024, 3, 1), 1, seed=1, decimals=0, kind="one reading", gaps=())  # noqa: DTZ001
    ours = plain_metrics(one.readings, 5)
    assert [ours[metric] for metric in (*PAIRED, *DAILY, *GAP_PROOF_IN_IGLU, "sd_mg_dl", "cv_pct", "j_index")] == [
        None
    ] * 12
    assert plain_metrics([], 5) == {"reading_count": 0.0}
    flat = make_series(datetime(2024, 3, 1), 3, seed=1, decimals=0, kind="flat", gaps=())  # noqa: DTZ001
    ours = plain_metrics(flat.readings, 5)
    assert [ours[metric] for metric in (*PAIRED, *DAILY, *GAP_PROOF_IN_IGLU, "sd_mg_dl", "cv_pct")] == [0.0] * 11
