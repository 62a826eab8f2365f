"""Our metrics once more: plain Python over readings, written from the papers, with our rules for gaps.

No table library, no SQL, no code in common with what it checks. Pairs that lie hours apart are found by NumPy: a loop
over all readings takes most of a test's time. Sums are exact (`math.fsum`). A reading is (local time,
mg/dL); times with a zone are told apart by instant and put into days by their local date, times without one are taken
as they stand. Readings come in order, one a time.

Rules for gaps: nothing is interpolated. CONGA and MODD pair a reading with the one nearest to n hours before it, if
that lies within half a nominal interval (of two equally near the earlier). MAG and GVP take consecutive readings at
most 45 minutes apart. Figures of days take days with a reading, an SD of a day days with two.
"""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import numpy as np

Reading = tuple[datetime, float]
LARGEST_GAP = timedelta(minutes=45)


def plain_metrics(readings: Sequence[Reading], interval_minutes: float) -> dict[str, float | None]:
    """All figures by our names; None where one is not defined."""
    glucose = [value for _, value in readings]
    if not glucose:
        return {"reading_count": 0.0}
    mean = _mean(glucose)
    sd = _sd(glucose)
    very_low = _share(glucose, lambda g: g < 54)
    low = _share(glucose, lambda g: 54 <= g < 70)
    high = _share(glucose, lambda g: 180 < g <= 250)
    very_high = _share(glucose, lambda g: g > 250)
    hypo = very_low + 0.8 * low
    hyper = very_high + 0.5 * high
    daily = list(by_day(readings).values())
    ordered = sorted(glucose)
    by_instant = [(_instant(at), value) for at, value in readings]
    over = differences_over(by_instant, interval_minutes, (1, 2, 4, 24))
    return {
        "reading_count": float(len(glucose)),
        "mean_mg_dl": mean,
        "sd_mg_dl": sd,
        "cv_pct": None if sd is None else 100 * sd / mean,
        "median_mg_dl": percentile(ordered, 50),
        "iqr_mg_dl": percentile(ordered, 75) - percentile(ordered, 25),
        "min_mg_dl": min(glucose),
        "max_mg_dl": max(glucose),
        **{f"p{p}_mg_dl": percentile(ordered, p) for p in (5, 10, 25, 75, 90, 95)},
        "time_very_low_pct": very_low,
        "time_low_pct": low,
        "time_in_range_pct": _share(glucose, lambda g: 70 <= g <= 180),
        "time_high_pct": high,
        "time_very_high_pct": very_high,
        "time_below_range_pct": _share(glucose, lambda g: g < 70),
        "time_above_range_pct": _share(glucose, lambda g: g > 180),
        "time_in_tight_range_pct": _share(glucose, lambda g: 70 <= g <= 140),
        "gmi_pct": 3.31 + 0.02392 * mean,
        "estimated_a1c_adag_pct": (mean + 46.7) / 28.7,
        "gri": min(3.0 * hypo + 1.6 * hyper, 100.0),
        "gri_hypo_component": hypo,
        "gri_hyper_component": hyper,
        "lbgi": _mean([low_risk(g) for g in glucose]),
        "hbgi": _mean([high_risk(g) for g in glucose]),
        "adrr": _mean([max(map(low_risk, day)) + max(map(high_risk, day)) for day in daily]),
        "j_index": None if sd is None else 0.001 * (mean + sd) ** 2,
        "modd_mg_dl": modd(over[24]),
        **{f"conga_{hours}h_mg_dl": conga(found) for hours, found in over.items()},
        "mag_mg_dl_per_hour": mag(by_instant),
        "gvp_pct": gvp(by_instant),
        "sd_within_day_mg_dl": _mean_or_none([sd for sd in map(_sd, daily) if sd is not None]),
        "sd_between_day_mg_dl": _sd([_mean(day) for day in daily]),
    }


def symmetrized(glucose: float) -> float:
    """Kovatchev 1997: glucose on a scale where the clinical centre (about 112.5 mg/dL) is zero."""
    return float(1.509 * (math.log(glucose) ** 1.084 - 5.381))


def low_risk(glucose: float) -> float:
    f = symmetrized(glucose)
    return 10 * f**2 if f < 0 else 0.0


def high_risk(glucose: float) -> float:
    f = symmetrized(glucose)
    return 10 * f**2 if f > 0 else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between order statistics, position (n - 1) p."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def by_day(readings: Sequence[Reading]) -> dict[date, list[float]]:
    """Glucose of each local day, midnight to midnight."""
    days: dict[date, list[float]] = {}
    for at, glucose in readings:
        days.setdefault(at.date(), []).append(glucose)
    return days


def differences(readings: Sequence[Reading], interval_minutes: float, hours: float) -> list[float]:
    """Each reading less the one `hours` before it, where there is one."""
    return differences_over(readings, interval_minutes, (hours,))[hours]


def differences_over(
    readings: Sequence[Reading], interval_minutes: float, hours: Sequence[float]
) -> dict[float, list[float]]:
    """The differences over each of several times."""
    instants = np.array([round(_instant(at).timestamp() * 1_000_000) for at, _ in readings], dtype=np.int64)
    glucose = np.array([value for _, value in readings], dtype=np.float64)
    found = {}
    for each in hours:
        wanted = instants - round(each * 3_600_000_000)
        # What is wanted lies before the reading itself, so there always is a later one; the first has none before it.
        later = np.searchsorted(instants, wanted)
        earlier = np.maximum(later - 1, 0)
        is_earlier_nearest = wanted - instants[earlier] <= instants[later] - wanted
        nearest = np.where((later > 0) & is_earlier_nearest, earlier, later)
        is_near = np.abs(instants[nearest] - wanted) <= interval_minutes * 30_000_000
        found[each] = list((glucose - glucose[nearest])[is_near].tolist())
    return found


def conga(found: Sequence[float]) -> float | None:
    """McDonnell 2005: SD of the differences."""
    return _sd(found)


def modd(found: Sequence[float]) -> float | None:
    """Molnar 1972: mean of the absolute differences over 24 hours; two pairs at least."""
    return _mean([abs(difference) for difference in found]) if len(found) >= 2 else None


def steps(readings: Sequence[Reading]) -> list[tuple[float, float]]:
    """(minutes, change) between consecutive readings at most 45 minutes apart."""
    found = []
    for (before, earlier), (after, later) in pairwise(readings):
        apart = _instant(after) - _instant(before)
        if apart <= LARGEST_GAP:
            found.append((apart.total_seconds() / 60, later - earlier))
    return found


def mag(readings: Sequence[Reading]) -> float | None:
    """Hermanides 2010: sum of the absolute changes per hour."""
    found = steps(readings)
    hours = math.fsum(minutes for minutes, _ in found) / 60
    return math.fsum(abs(change) for _, change in found) / hours if found else None


def gvp(readings: Sequence[Reading]) -> float | None:
    """Peyser 2018: length of the trace over the length of a flat one, less one, in %; minutes and mg/dL."""
    found = steps(readings)
    flat = math.fsum(minutes for minutes, _ in found)
    return (math.fsum(math.hypot(*step) for step in found) / flat - 1) * 100 if found else None


def bridged(readings: Sequence[Reading], interval_minutes: int) -> list[Reading]:
    """With points on a straight line in gaps of at most 45 minutes: what iglu's grid makes of aligned readings."""
    step = timedelta(minutes=interval_minutes)
    filled = list(readings[:1])
    for (before, earlier), (after, later) in pairwise(readings):
        if after - before <= LARGEST_GAP:
            count = round((after - before) / step)
            for point in range(1, count):
                filled.append((before + point * step, earlier + (later - earlier) * point / count))
        filled.append((after, later))
    return filled


def _instant(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _share(glucose: Sequence[float], belongs: Callable[[float], bool]) -> float:
    return 100 * sum(1 for value in glucose if belongs(value)) / len(glucose)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _mean_or_none(values: Sequence[float]) -> float | None:
    return _mean(values) if values else None


def _sd(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
