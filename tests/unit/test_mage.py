"""MAGE: equal to the reference implementation where it defines a figure, and hand-made traces."""

import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from references.reference_metrics import ORIGIN, reference_metrics
from references.series import Series, glucose_series, make_series

from nightscout_lakehouse.demo.person import Person
from nightscout_lakehouse.lib.clinical.mage import Direction, Mage, mage


def mage_of(values: list[float], first_minute: float = 0.0) -> Mage:
    return mage(first_minute + 5.0 * np.arange(len(values)), np.array(values))


def waves(count: int, amplitude: float = 60.0, points: int = 60) -> list[float]:
    """Full waves around 150 mg/dL, each of `points` points, from trough to trough."""
    return [150 - amplitude * float(np.cos(2 * np.pi * place / points)) for place in range(count * points + 1)]


def assert_equals_iglu(readings: tuple[tuple[datetime, float], ...]) -> None:
    minutes = np.array([(at - ORIGIN).total_seconds() / 60 for at, _ in readings])
    ours = mage(minutes, np.array([glucose for _, glucose in readings])).mean_amplitude_mg_dl
    theirs = reference_metrics(readings, 5, ["iglu mage"]).get("mage_mg_dl", {}).get("iglu")
    assert ours == (None if theirs is None else pytest.approx(theirs, rel=1e-9))


@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(series=glucose_series(largest_days=5))
def test_any_series_with_gaps_equals_iglu(series: Series) -> None:
    assert_equals_iglu(series.readings)


@pytest.mark.parametrize("seed", [105, 106])
def test_series_on_which_a_small_change_of_the_algorithm_shows(seed: int) -> None:
    # Most series give the same figure with windows of 4 or 31 points, or with n in the SD; 105 and 106 do not.
    start = ORIGIN + timedelta(days=8826, hours=1)
    gaps = ((200, 8), (400, 9), (500, 20))
    assert_equals_iglu(make_series(start, 3, seed=seed, decimals=0, kind="curve", gaps=gaps).readings)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_demo_people_equal_iglu(seed: int) -> None:
    # Their sensors send some seconds after the full five minutes, so the grid lies between the readings.
    start = datetime(2026, 1, 5, tzinfo=UTC)
    readings = tuple(
        (datetime.fromisoformat(entry["dateString"]).replace(tzinfo=None), float(entry["sgv"]))
        for entry in Person(seed=seed).entries(start, start + timedelta(days=30))
        if entry["type"] == "sgv" and entry["sgv"] > 20
    )
    assert len(readings) > 8000
    assert_equals_iglu(readings)


def test_waves_have_their_full_height() -> None:
    found = mage_of(waves(6))
    assert found.mean_amplitude_mg_dl == pytest.approx(120)
    assert found.excursions.amplitude_mg_dl == pytest.approx([120] * 6 + [-120] * 6)
    # From trough to crest is half a wave: 30 points of 5 minutes.
    assert set(found.excursions.end_minutes - found.excursions.start_minutes) == {150.0}
    assert found.excursions.start_minutes.tolist() == [*range(0, 1800, 300), *range(150, 1800, 300)]


def test_a_ripple_below_one_sd_does_not_count() -> None:
    rippled = [value + 5 * (-1) ** (place // 12) for place, value in enumerate(waves(6))]
    assert len(mage_of(rippled).excursions.segment) == len(mage_of(waves(6)).excursions.segment)


@pytest.mark.parametrize(
    "values",
    [[], [120.0], [120.0] * 2000, [100.0, 200.0, 100.0, 200.0], [150.0, 150.4] * 500],
    ids=["empty", "one reading", "all equal", "too short", "SD below 1"],
)
def test_no_excursion_gives_none(values: list[float]) -> None:
    found = mage_of(values)
    assert found.mean_amplitude_mg_dl is None
    assert len(found.excursions.segment) == 0


def test_segments_apart_by_more_than_three_hours_weigh_by_their_length() -> None:
    small, large = waves(4, amplitude=30), waves(8, amplitude=90)
    alone = [mage_of(small).mean_amplitude_mg_dl, mage_of(large).mean_amplitude_mg_dl]
    gap = 185.0
    minutes = np.concatenate([5.0 * np.arange(241), 5.0 * 240 + gap + 5.0 * np.arange(481)])
    found = mage(minutes, np.array(small + large))
    assert found.mean_amplitude_mg_dl == pytest.approx((alone[0] * 240 + alone[1] * 480) / 720)  # type: ignore[operator]
    assert set(found.excursions.segment) == {0, 1}


def test_a_gap_of_45_minutes_is_bridged_and_one_of_three_hours_stays_in_the_segment() -> None:
    whole = np.array(waves(8))
    minutes = 5.0 * np.arange(whole.size)
    for missing, segments in ((8, {0}), (9, {0}), (35, {0}), (36, {0, 1})):
        kept = np.ones(whole.size, dtype=bool)
        kept[200 : 200 + missing] = False
        found = mage(minutes[kept], whole[kept])
        assert set(found.excursions.segment) == segments
        ends = np.concatenate([found.excursions.start_minutes, found.excursions.end_minutes])
        if missing > 8:
            assert not set(ends) & set(minutes[~kept])


def test_45_minutes_as_a_quotient_are_45_minutes() -> None:
    # 263.46349367122707 - 218.46349367122704 is 45.00000000000003.
    minutes = np.array([200.0, 205.0, 210.0, 215.0, 218.46349367122704, 263.46349367122707, 268.0, 273.0])
    glucose = np.array([100.0, 110.0, 120.0, 130.0, 140.0, 240.0, 120.0, 100.0])
    found = mage(minutes, glucose)
    assert found.mean_amplitude_mg_dl == pytest.approx(mage(minutes.round(6), glucose).mean_amplitude_mg_dl, rel=1e-6)
    assert found.excursions.end_minutes.tolist() == [260.0]


def test_directions() -> None:
    values = waves(6)
    found = {}
    for direction in ("avg", "plus", "minus"):
        chosen: Direction = direction  # type: ignore[assignment]
        found[direction] = mage(5.0 * np.arange(len(values)), np.array(values), chosen)
    assert (found["plus"].excursions.amplitude_mg_dl > 0).all()
    assert (found["minus"].excursions.amplitude_mg_dl < 0).all()
    both = [found["plus"].mean_amplitude_mg_dl, found["minus"].mean_amplitude_mg_dl]
    assert found["avg"].mean_amplitude_mg_dl == pytest.approx(sum(both) / 2)  # type: ignore[arg-type]


def test_order_repetitions_and_missing_values_do_not_matter() -> None:
    generator = np.random.default_rng(3)
    glucose = np.array(waves(6)) + generator.normal(0, 3, 361)
    minutes = 5.0 * np.arange(361)
    expected = mage(minutes, glucose).mean_amplitude_mg_dl
    order = generator.permutation(361)
    assert mage(minutes[order], glucose[order]).mean_amplitude_mg_dl == expected
    assert mage(np.append(minutes, 100.0), np.append(glucose, np.nan)).mean_amplitude_mg_dl == expected
    assert mage(np.append(minutes, 100.0), np.append(glucose, 399.0)).mean_amplitude_mg_dl == expected
    with pytest.raises(ValueError, match="of one length"):
        mage(minutes, glucose[:-1])


def test_a_million_readings_take_no_more_than_a_moment() -> None:
    generator = np.random.default_rng(0)
    count = 1_000_000
    ripple = np.convolve(generator.normal(0, 20, count), np.ones(6) / 6, "same")
    glucose = np.round(150 + 50 * np.sin(np.arange(count) / 25) + ripple)
    kept = generator.random(count) > 0.02
    started = time.process_time()
    found = mage((5.0 * np.arange(count))[kept], glucose[kept])
    assert time.process_time() - started < 2
    assert len(found.excursions.segment) > 10_000
