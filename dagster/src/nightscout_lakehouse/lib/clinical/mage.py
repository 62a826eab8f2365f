"""MAGE, the mean amplitude of glycemic excursions, by the crossings of a short and a long moving average.

Sources: Service et al., Diabetes 1970, for the idea (excursions larger than one standard deviation, turning point to
turning point); Fernandes et al., J Diabetes Sci Technol 2022 (doi 10.1177/19322968211061165), for the algorithm, which
finds the turning points a clinician marks by hand. The R package iglu holds its reference implementation; the rules for
gaps are iglu's.

MAGE needs a grid. Readings become points 5 minutes apart; between readings at most 45 minutes apart the points lie on a
straight line, over a larger gap there are none. A gap above 180 minutes starts a new segment, and each segment has
turning points and a standard deviation of its own. No excursion starts or ends on a point that a gap left empty.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

GRID_MINUTES = 5.0
LARGEST_BRIDGED_GAP_MINUTES = 45.0
LARGEST_GAP_IN_SEGMENT_MINUTES = 180.0
SHORT_WINDOW_POINTS = 5
LONG_WINDOW_POINTS = 32
FEWEST_POINTS = 7
SMALLEST_SD_MG_DL = 1.0
# Averages that differ by less are equal: far above rounding, far below what a reading can change.
_EQUAL_MG_DL = 1e-9
# Times in minutes are quotients: 45 minutes can come as 45.00000000000003.
_EQUAL_MINUTES = 1e-6

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Direction = Literal["avg", "plus", "minus"]


@dataclass(frozen=True)
class Excursions:
    """The excursions that count, one array element each, rises before falls within a segment.

    Attributes:
        segment: Number of the segment, from 0.
        start_minutes: Where the excursion starts, on the caller's axis.
        end_minutes: Where it ends.
        amplitude_mg_dl: Glucose at the end less glucose at the start: above zero for a rise, below for a fall.
    """

    segment: IntArray
    start_minutes: FloatArray
    end_minutes: FloatArray
    amplitude_mg_dl: FloatArray


@dataclass(frozen=True)
class Mage:
    """MAGE and what it is the mean of.

    Attributes:
        mean_amplitude_mg_dl: None where no excursion counts.
        excursions: Of all segments.
    """

    mean_amplitude_mg_dl: float | None
    excursions: Excursions


def mage(minutes: FloatArray, glucose: FloatArray, direction: Direction = "avg") -> Mage:
    """Mean amplitude of the excursions of one wearer.

    Args:
        minutes: Time of each reading in minutes, shape (n,); any origin that lies on a full 5 minutes, because the grid
            points are the multiples of 5 of this axis. In any order; of readings at one time the lowest counts.
        glucose: mg/dL, shape (n,). Pairs with a NaN are left out.
        direction: `plus` takes rises, `minus` falls; `avg` the mean of a segment's mean rise and mean fall. Segments
            weigh by their length; a segment with one direction only counts half, as in iglu.
    """
    grid_index, grid_glucose = _to_grid(*_cleaned(minutes, glucose))
    breaks = np.flatnonzero(np.diff(grid_index) * GRID_MINUTES > LARGEST_GAP_IN_SEGMENT_MINUTES) + 1
    bounds = [0, *breaks.tolist(), grid_index.size]

    segments: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    heights: list[float] = []
    weighted_sum = 0.0
    weight_sum = 0.0
    for segment, (first, last) in enumerate(pairwise(bounds)):
        if first == last:
            continue
        origin = int(grid_index[first])
        trace = np.full(int(grid_index[last - 1]) - origin + 1, np.nan)
        trace[grid_index[first:last] - origin] = grid_glucose[first:last]
        length_minutes = (trace.size - 1) * GRID_MINUTES
        rises, falls = _segment_excursions(trace)
        for found, wanted in ((rises, direction != "minus"), (falls, direction != "plus")):
            if not found or not wanted:
                continue
            amplitudes = [float(trace[end] - trace[start]) for start, end in found]
            weighted_sum += abs(float(np.mean(amplitudes))) * length_minutes
            weight_sum += length_minutes
            segments += [segment] * len(found)
            starts += [origin + start for start, _ in found]
            ends += [origin + end for _, end in found]
            heights += amplitudes
    return Mage(
        mean_amplitude_mg_dl=weighted_sum / weight_sum if weight_sum else None,
        excursions=Excursions(
            segment=np.array(segments, dtype=np.int64),
            start_minutes=np.array(starts, dtype=np.float64) * GRID_MINUTES,
            end_minutes=np.array(ends, dtype=np.float64) * GRID_MINUTES,
            amplitude_mg_dl=np.array(heights, dtype=np.float64),
        ),
    )


def _cleaned(minutes: FloatArray, glucose: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Finite pairs by time, one a time.

    Raises:
        ValueError: The arrays are not of one length.
    """
    minutes = np.asarray(minutes, dtype=np.float64)
    glucose = np.asarray(glucose, dtype=np.float64)
    if minutes.shape != glucose.shape or minutes.ndim != 1:
        raise ValueError(f"minutes and glucose must be of one length, not {minutes.shape} and {glucose.shape}")
    is_usable = np.isfinite(minutes) & np.isfinite(glucose)
    minutes, glucose = minutes[is_usable], glucose[is_usable]
    if np.any(np.diff(minutes) <= 0):
        order = np.lexsort((glucose, minutes))
        minutes, glucose = minutes[order], glucose[order]
        is_first = np.append(True, np.diff(minutes) > 0)
        minutes, glucose = minutes[is_first], glucose[is_first]
    return minutes, glucose


def _to_grid(minutes: FloatArray, glucose: FloatArray) -> tuple[IntArray, FloatArray]:
    """The grid points that have a value: their number (time / 5 min), rising, and the value."""
    if minutes.size == 0:
        return np.empty(0, dtype=np.int64), np.empty(0)
    breaks = np.flatnonzero(np.diff(minutes) > LARGEST_BRIDGED_GAP_MINUTES + _EQUAL_MINUTES)
    first = np.ceil((minutes[np.append(0, breaks + 1)] - _EQUAL_MINUTES) / GRID_MINUTES).astype(np.int64)
    last = np.floor((minutes[np.append(breaks, minutes.size - 1)] + _EQUAL_MINUTES) / GRID_MINUTES).astype(np.int64)
    counts = np.maximum(last - first + 1, 0)  # a lone reading between two grid points gives none
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    index = np.repeat(first, counts) + offsets
    return index, np.interp(index * GRID_MINUTES, minutes, glucose)


def _segment_excursions(trace: FloatArray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Rises and falls larger than the segment's SD, each as (index of its start, index of its end)."""
    values = trace[~np.isnan(trace)]
    if trace.size < FEWEST_POINTS:
        return [], []
    sd = float(np.std(values, ddof=1))
    if sd < SMALLEST_SD_MG_DL:
        return [], []
    turning = _turning_points(trace)
    levels = trace[turning].tolist()
    rises = _rises(levels, sd)
    falls = _rises([-level for level in levels], sd)
    return (
        [(turning[start], turning[end]) for start, end in rises],
        [(turning[start], turning[end]) for start, end in falls],
    )


def _moving_average(trace: FloatArray, window: int) -> FloatArray:
    """Trailing mean of the points there are; the first `window` places take the first full one. Shape as `trace`."""
    is_present = ~np.isnan(trace)
    filled = np.where(is_present, trace, 0.0)
    if trace.size < window:
        return np.full(trace.size, filled.sum() / is_present.sum())
    full = trace.size - window + 1
    total = np.zeros(full)
    count = np.zeros(full)
    for lag in range(window):
        total += filled[lag : lag + full]
        count += is_present[lag : lag + full]
    average = np.divide(total, count, out=np.full(full, np.nan), where=count > 0)
    return np.concatenate([np.full(window - 1, average[0]), average])


def _turning_points(trace: FloatArray) -> list[int]:
    """Indices of the highest and lowest points between the crossings of the two averages, in turn."""
    difference = _moving_average(trace, SHORT_WINDOW_POINTS) - _moving_average(trace, LONG_WINDOW_POINTS)
    sign = np.where(np.abs(difference) < _EQUAL_MG_DL, np.nan, np.sign(difference))
    crossings = _crossings(sign, ~np.isnan(trace))
    bounds = [*crossings.tolist(), trace.size - 1]
    is_peak = (sign[crossings] > 0).tolist()

    highest_first = np.where(np.isnan(trace), -np.inf, trace)
    lowest_first = np.where(np.isnan(trace), np.inf, trace)
    turning: list[int] = []
    start = 0
    for peak, stop in zip(is_peak, bounds[1:], strict=True):
        # From the last extremum on, not from the crossing: the averages trail behind the trace.
        if peak:
            start += int(highest_first[start : stop + 1].argmax())
        else:
            start += int(lowest_first[start : stop + 1].argmin())
        turning.append(start)
    return turning


def _crossings(sign: FloatArray, is_present: NDArray[np.bool_]) -> IntArray:
    """Where the short average comes to lie on the other side of the long one, index 0 before all.

    A place without a sign (equal averages, or no points at all) is passed over: the next sign is held against the last.
    """
    signed = np.flatnonzero(~np.isnan(sign))
    changes = signed[1:][sign[signed[1:]] != sign[signed[:-1]]]
    if np.isnan(sign[0]):
        # There is no side to start from until two neighbouring points show one.
        is_known = is_present & ~np.isnan(sign)
        neighbours = np.flatnonzero(is_known[1:] & is_known[:-1] & (sign[1:] != sign[:-1])) + 1
        changes = changes[changes >= neighbours[0]] if neighbours.size else changes[:0]
    return np.append(0, changes)


def _rises(levels: list[float], threshold: float) -> list[tuple[int, int]]:
    """Rises above `threshold` from the lowest level since the last one, each to the last peak before such a fall."""
    found: list[tuple[int, int]] = []
    low = position = 0
    while position < len(levels):
        if levels[position] < levels[low]:
            low = position
        if levels[position] - levels[low] <= threshold:
            position += 1
            continue
        peak = position
        while levels[peak] - levels[position] <= threshold and position < len(levels) - 1:
            position += 1
            if levels[position] >= levels[peak]:
                peak = position
        found.append((low, peak))
        low = position
        if position == len(levels) - 1:
            break
    return found
