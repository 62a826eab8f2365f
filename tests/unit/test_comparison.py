"""Intervals for the difference of two periods."""

import random
from datetime import date, timedelta

import pytest

from nightscout_lakehouse.lib.clinical.comparison import DailySums, difference_intervals


def made_up(first: date, days: int, mean: float, seed: int) -> list[DailySums]:
    chance = random.Random(seed)
    made = []
    for number in range(days):
        values = [chance.gauss(mean, 30) for _ in range(288)]
        counts = (
            sum(v < 54 for v in values),
            sum(54 <= v < 70 for v in values),
            sum(70 <= v <= 180 for v in values),
            sum(180 < v <= 250 for v in values),
            sum(v > 250 for v in values),
        )
        sums = (288.0, *map(float, counts), sum(values), sum(v * v for v in values))
        made.append(DailySums(first + timedelta(days=number), sums))
    return made


NOW, BEFORE = made_up(date(2026, 3, 15), 14, 150, 1), made_up(date(2026, 3, 1), 14, 120, 2)


def test_a_change_of_thirty_is_in_its_interval_and_no_change_is_not() -> None:
    found = {interval.metric: interval for interval in difference_intervals("anna", NOW, BEFORE)}
    assert list(found) == [
        *("mean_mg_dl", "time_in_range_pct", "time_below_range_pct", "time_above_range_pct"),
        *("gmi_pct", "gri", "cv_pct"),
    ]
    assert 25 < found["mean_mg_dl"].low < 30 < found["mean_mg_dl"].high < 35
    assert found["gmi_pct"].low == pytest.approx(0.02392 * found["mean_mg_dl"].low, rel=1e-9)
    assert found["time_in_range_pct"].high < 0 < found["time_above_range_pct"].low
    assert found["cv_pct"].high < 0


def test_order_and_run_do_not_matter_but_the_key_does() -> None:
    once = difference_intervals("anna", NOW, BEFORE)
    assert difference_intervals("anna", NOW[::-1], BEFORE[::-1]) == once
    assert difference_intervals("ben", NOW, BEFORE) != once


def test_seven_days_on_each_side_are_needed() -> None:
    empty = DailySums(date(2026, 4, 1), (0.0,) * 8)
    assert difference_intervals("anna", NOW[:7], BEFORE[:7])
    assert difference_intervals("anna", [*NOW[:6], empty], BEFORE) == ()
    assert difference_intervals("anna", NOW, BEFORE[:6]) == ()
