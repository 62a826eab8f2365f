"""Intervals for a period's figures, by resampling its whole days.

Readings of one day hang together, so single readings cannot be resampled; days are drawn with replacement as blocks
(Efron & Tibshirani, An Introduction to the Bootstrap, 1993; Künsch, Annals of Statistics 1989, for blocks). The
interval says how far the figure of a period of that length moves with which days fell into it. It knows nothing of
sensor error, nor of days that depend on the day before.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
FEWEST_DAYS = 7
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, order=True)
class DailyCounts:
    """One day's readings: how many, how many of them in each range, and their sum.

    Attributes:
        day: The local day.
        readings: All readings of the day.
        very_low: Below 54 mg/dL.
        low: 54 to below 70.
        in_range: 70 to 180.
        high: Above 180 to 250.
        very_high: Above 250.
        glucose_sum: Sum of the readings, mg/dL.
    """

    day: date
    readings: float
    very_low: float
    low: float
    in_range: float
    high: float
    very_high: float
    glucose_sum: float


@dataclass(frozen=True)
class Intervals:
    """95 % percentile intervals of time in range (%), GMI (%) and the glycemia risk index (0-100)."""

    tir_low: float
    tir_high: float
    gmi_low: float
    gmi_high: float
    gri_low: float
    gri_high: float


def bootstrap_intervals(key: str, days: Sequence[DailyCounts]) -> Intervals | None:
    """Intervals of a period from its days, or None with fewer than 7 days that have readings.

    The same key and days give the same bits in every run and in whatever order the days come: the seed is a hash of the
    key, the draws are raw words of PCG64 (numpy keeps their stream from version to version, which it does not promise
    for `Generator.integers`), and every sum is taken draw by draw.

    Args:
        key: What names the period, such as site, period and part of the day.
        days: One element a day; days without readings are left out.
    """
    counted = sorted(day for day in days if day.readings > 0)
    if len(counted) < FEWEST_DAYS:
        return None
    columns = np.array(
        [
            [day.readings, day.very_low, day.low, day.in_range, day.high, day.very_high, day.glucose_sum]
            for day in counted
        ],
        dtype=np.float64,
    )
    totals = resampled_sums(key, columns)
    readings, very_low, low, in_range, high, very_high, glucose_sum = totals.T
    tir = 100.0 * in_range / readings
    gmi = 3.31 + 0.02392 * (glucose_sum / readings)
    gri = np.minimum(100.0 * (3.0 * very_low + 2.4 * low + 1.6 * very_high + 0.8 * high) / readings, 100.0)
    bounds = [float(bound) for values in (tir, gmi, gri) for bound in np.percentile(values, PERCENTILES)]
    return Intervals(*bounds)


def resampled_sums(key: str, columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the days' columns over as many days as there are, drawn with replacement; shape (RESAMPLES, columns).

    Args:
        key: What the draws follow from: see `bootstrap_intervals`.
        columns: One row a day.
    """
    days = len(columns)
    words = np.random.PCG64(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big"))
    totals = np.zeros((RESAMPLES, columns.shape[1]))
    for _ in range(days):
        # The upper half of a word, scaled: of n days each comes up within n / 2**32 of equally often.
        upper_half = words.random_raw(RESAMPLES) >> np.uint64(32)
        totals += columns[(upper_half * np.uint64(days)) >> np.uint64(32)]
    return totals
