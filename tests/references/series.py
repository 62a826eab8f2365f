"""Random series of readings for property tests."""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from hypothesis import strategies as st

INTERVAL_MINUTES = 5
SLOTS_A_DAY = 1440 // INTERVAL_MINUTES
Kind = Literal["curve", "flat", "one reading"]


@dataclass(frozen=True)
class Series:
    """Readings in order, local times on full 5 minutes, and how they were made (shown when a test fails)."""

    readings: tuple[tuple[datetime, float], ...] = field(repr=False)
    description: str


def make_series(
    start: datetime, days: int, *, seed: int, decimals: int, kind: Kind, gaps: tuple[tuple[int, int], ...]
) -> Series:
    """A series of `days` times 24 hours from `start`; `gaps` are (first missing slot, missing slots)."""
    draw = random.Random(seed)
    roughness = draw.choice([1.0, 3.0, 8.0])
    target = draw.uniform(80, 220)
    level = target
    missing = {slot for first, count in gaps for slot in range(first, first + count)}
    readings = []
    for slot in range(1 if kind == "one reading" else days * SLOTS_A_DAY):
        if kind != "flat":
            target = min(max(target + draw.gauss(0, roughness * 3), 40), 300)
            level += 0.05 * (target - level) + draw.gauss(0, roughness)
            level = min(max(level, 40), 400)
        # The first reading stays: a series is never empty.
        if slot == 0 or slot not in missing:
            readings.append((start + timedelta(minutes=slot * INTERVAL_MINUTES), round(level, decimals)))
    description = f"start={start}, days={days}, seed={seed}, decimals={decimals}, kind={kind}, gaps={gaps}"
    return Series(tuple(readings), description)


@st.composite
def glucose_series(draw: st.DrawFn, *, largest_days: int = 20, with_gaps: bool = True) -> Series:
    """3 to `largest_days` days of values from 40 to 400 in integers or tenths.

    Gaps last from one reading to two days; half of them lie across a midnight. Without gaps the series is full days
    from midnight. Some are flat, some a single reading. None starts at 23:55, which iglu would leave out (`worker.py`).
    """
    days = draw(st.integers(3, largest_days))
    first_slot = draw(st.integers(0, SLOTS_A_DAY - 2)) if with_gaps else 0
    midnight = datetime(2024, 1, 1) + timedelta(days=draw(st.integers(0, 700)))  # noqa: DTZ001
    gaps = []
    for _ in range(draw(st.integers(0, 8)) if with_gaps else 0):
        missing = draw(st.one_of(st.integers(1, 12), st.integers(1, 2 * SLOTS_A_DAY)))
        slot = draw(st.integers(1, days * SLOTS_A_DAY - 1))
        if draw(st.booleans()):
            next_midnight = (slot + first_slot) // SLOTS_A_DAY * SLOTS_A_DAY + SLOTS_A_DAY - first_slot
            slot = max(next_midnight - draw(st.integers(1, missing)), 1)
        gaps.append((slot, missing))
    return make_series(
        midnight + timedelta(minutes=first_slot * INTERVAL_MINUTES),
        days,
        seed=draw(st.integers(0, 2**32)),
        decimals=draw(st.sampled_from([0, 1])),
        kind=draw(st.sampled_from(["curve"] * 8 + ["flat", "one reading"])),
        gaps=tuple(gaps),
    )
