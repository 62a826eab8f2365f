"""Intervals by resampling days: against a plain loop, to the last bit; and how often they hold the truth."""

import hashlib
import random
from datetime import date, timedelta

import numpy as np
import pytest

from nightscout_lakehouse.lib.clinical.bootstrap import RESAMPLES, DailyCounts, Intervals, bootstrap_intervals

FIRST_DAY = date(2026, 1, 1)


def made_up_days(count: int, seed: int = 1) -> list[DailyCounts]:
    draw = random.Random(seed)
    days = []
    for number in range(count):
        readings = draw.randint(150, 288)
        bounds = [0, *sorted(draw.randint(0, readings) for _ in range(4)), readings]
        shares = [bounds[place + 1] - bounds[place] for place in range(5)]
        total = round(readings * draw.uniform(100, 200), 1)
        days.append(DailyCounts(FIRST_DAY + timedelta(days=number), readings, *shares, total))
    return days


def plain_intervals(key: str, days: list[DailyCounts]) -> Intervals:
    """The same, one draw at a time: the first draw of every resample, then the second of every resample, and so on."""
    words = np.random.PCG64(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big"))
    drawn = [[(int(words.random_raw()) >> 32) * len(days) >> 32 for _ in range(RESAMPLES)] for _ in days]
    tir, gmi, gri = [], [], []
    for resample in range(RESAMPLES):
        picked = [days[draw[resample]] for draw in drawn]
        readings = sum(day.readings for day in picked)
        total = 0.0
        for day in picked:
            total += day.glucose_sum
        tir.append(100 * sum(day.in_range for day in picked) / readings)
        gmi.append(3.31 + 0.02392 * (total / readings))
        weighted = (
            3.0 * sum(day.very_low for day in picked)
            + 2.4 * sum(day.low for day in picked)
            + 1.6 * sum(day.very_high for day in picked)
            + 0.8 * sum(day.high for day in picked)
        )
        gri.append(min(100 * weighted / readings, 100.0))

    def bound(values: list[float], percent: float) -> float:
        ordered = sorted(values)
        position = (len(ordered) - 1) * percent / 100
        below = int(position)
        return ordered[below] + (position - below) * (ordered[below + 1] - ordered[below])

    return Intervals(*(bound(values, percent) for values in (tir, gmi, gri) for percent in (2.5, 97.5)))


def test_equals_a_plain_loop() -> None:
    days = made_up_days(14)
    found = bootstrap_intervals("anna|14d", days)
    expected = plain_intervals("anna|14d", days)
    assert found is not None
    for name in Intervals.__dataclass_fields__:
        # The percentile's last step may round otherwise; every draw and sum is the same.
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-14)


def test_is_the_same_in_every_run_and_order() -> None:
    days = made_up_days(30)
    shuffled = random.Random(5).sample(days, len(days))
    assert bootstrap_intervals("key", days) == bootstrap_intervals("key", shuffled)
    assert bootstrap_intervals("key", days) != bootstrap_intervals("another key", days)
    # Recorded once: a numpy that draws otherwise would change figures that people have seen.
    first = bootstrap_intervals("anna|14d", made_up_days(14))
    assert first is not None
    assert first.tir_low == pytest.approx(12.821241873339083, rel=1e-12)


def test_needs_seven_days_with_readings() -> None:
    days = made_up_days(7)
    assert bootstrap_intervals("key", days) is not None
    assert bootstrap_intervals("key", days[:6]) is None
    empty = DailyCounts(FIRST_DAY - timedelta(days=1), 0, 0, 0, 0, 0, 0, 0.0)
    assert bootstrap_intervals("key", [*days[:6], empty]) is None
    assert bootstrap_intervals("key", [*days, empty]) == bootstrap_intervals("key", days)


def test_equal_days_leave_nothing_uncertain() -> None:
    days = [DailyCounts(FIRST_DAY + timedelta(days=number), 288, 0, 0, 288, 0, 0, 288 * 120.0) for number in range(14)]
    gmi = 3.31 + 0.02392 * 120
    assert bootstrap_intervals("key", days) == Intervals(100, 100, gmi, gmi, 0, 0)


def test_gri_ends_at_100() -> None:
    days = [DailyCounts(FIRST_DAY + timedelta(days=number), 288, 288, 0, 0, 0, 0, 288 * 45.0) for number in range(7)]
    found = bootstrap_intervals("key", days)
    assert found is not None
    assert (found.gri_low, found.gri_high) == (100, 100)


def test_holds_the_truth_about_as_often_as_it_says() -> None:
    # Days of a person whose time in range varies around 65 %, seen for 30 days, 400 times over.
    generator = np.random.default_rng(11)
    truth = 65.0
    hits = 0
    for trial in range(400):
        in_range = np.clip(np.round(generator.normal(truth, 12, 30) * 2.88), 0, 288)
        days = [
            DailyCounts(FIRST_DAY + timedelta(days=number), 288, 0, 0, float(count), 288 - float(count), 0, 288 * 150.0)
            for number, count in enumerate(in_range)
        ]
        found = bootstrap_intervals(f"trial {trial}", days)
        assert found is not None
        hits += found.tir_low <= truth <= found.tir_high
    # Percentile intervals of 30 days fall a little short of 95 %.
    assert 0.90 <= hits / 400 <= 0.98
