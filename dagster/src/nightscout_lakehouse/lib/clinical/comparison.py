"""Intervals for the difference of two periods' figures, by resampling the whole days of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray

from nightscout_lakehouse.lib.clinical.bootstrap import FEWEST_DAYS, PERCENTILES, resampled_sums

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, order=True)
class DailySums:
    """One day's readings.

    Attributes:
        day: The local day.
        sums: How many readings; how many very low, low, in range, high and very high; their sum and the sum of their
            squares.
    """

    day: date
    sums: tuple[float, ...]


@dataclass(frozen=True)
class DifferenceInterval:
    """95 % percentile interval of one figure of the later period less that of the earlier.

    Attributes:
        metric: Name of the figure, as in `fact_glucose_metrics`.
        low: Lower bound.
        high: Upper bound.
    """

    metric: str
    low: float
    high: float


def difference_intervals(
    key: str, now: Sequence[DailySums], before: Sequence[DailySums]
) -> tuple[DifferenceInterval, ...]:
    """Intervals of each figure that is compared; none with fewer than 7 days with readings on a side.

    The days of the two periods are drawn apart from each other. The same key and days give the same bits: see
    `bootstrap_intervals`.

    Args:
        key: What names the comparison, such as the site.
        now: Days of the later period, in any order.
        before: Days of the earlier one.
    """
    sides = []
    for name, days in (("now", now), ("before", before)):
        counted = [day.sums for day in sorted(days) if day.sums[0] > 0]
        if len(counted) < FEWEST_DAYS:
            return ()
        sides.append(_figures(resampled_sums(f"{key}/{name}", np.array(counted, dtype=np.float64))))
    intervals = []
    for metric, values in sides[0].items():
        low, high = np.percentile(values - sides[1][metric], PERCENTILES)
        intervals.append(DifferenceInterval(metric, float(low), float(high)))
    return tuple(intervals)


def _figures(totals: FloatArray) -> dict[str, FloatArray]:
    readings, very_low, low, in_range, high, very_high, glucose_sum, square_sum = totals.T
    mean = glucose_sum / readings
    # Below zero only by rounding; a single reading cannot be here.
    variance = np.maximum(square_sum - glucose_sum * mean, 0.0) / (readings - 1)
    return {
        "mean_mg_dl": mean,
        "time_in_range_pct": 100.0 * in_range / readings,
        "time_below_range_pct": 100.0 * (very_low + low) / readings,
        "time_above_range_pct": 100.0 * (high + very_high) / readings,
        "gmi_pct": 3.31 + 0.02392 * mean,
        "gri": np.minimum(100.0 * (3.0 * very_low + 2.4 * low + 1.6 * very_high + 0.8 * high) / readings, 100.0),
        "cv_pct": 100.0 * np.sqrt(variance) / mean,
    }
