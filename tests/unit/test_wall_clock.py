"""From the clock on the wall to UTC: the hour that comes twice, the hour that never is, and what stays open."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightscout_lakehouse.lib.sources.file_format import Measurement
from nightscout_lakehouse.lib.sources.wall_clock import Resolved, Wall, resolve

BERLIN = ZoneInfo("Europe/Berlin")
# Summer time ends at 01:00 UTC: 02:00 to 03:00 comes twice.
TURN = datetime(2026, 10, 25, 1, tzinfo=UTC)


def walls(times: Sequence[datetime], zone: ZoneInfo = BERLIN, *, with_seconds: bool = False) -> list[Wall]:
    """What a device writes at these times: naive, by the clock on the wall."""
    found = []
    for line, time in enumerate(times):
        local = time.astimezone(zone).replace(tzinfo=None, fold=0)
        seconds = (time - times[0]).total_seconds() + 1_000_000 if with_seconds else None
        measurement = Measurement(line, local, "sgv", 100.0, "mg/dL", "d", "d", seconds)
        found.append(Wall("d", local, seconds, measurement))
    return found


def resolved(items: Sequence[Wall], zone: ZoneInfo = BERLIN, *, is_descending: bool = False) -> dict[int, Resolved]:
    found = [each for each in resolve(items, zone, is_descending=is_descending) if isinstance(each, Resolved)]
    assert len(found) == len(items)
    # Python finds no time of an hour that comes twice equal to one of another zone; in UTC it does.
    in_utc = [replace(each, time=each.time and each.time.astimezone(UTC)) for each in found]
    return {each.wall.measurement.line: each for each in in_utc}


def every(minutes: int, hours_before: float, hours_after: float, turn: datetime = TURN) -> list[datetime]:
    start = turn - timedelta(hours=hours_before)
    return [start + timedelta(minutes=minutes * n) for n in range(int((hours_before + hours_after) * 60 / minutes) + 1)]


@pytest.mark.parametrize("is_descending", [False, True])
@pytest.mark.parametrize("with_seconds", [False, True])
@pytest.mark.parametrize("minutes", [1, 5, 15])
def test_an_hour_that_comes_twice_is_told_apart(minutes: int, with_seconds: bool, is_descending: bool) -> None:
    times = every(minutes, 3, 3)
    items = walls(times, with_seconds=with_seconds)
    found = resolved(items[::-1] if is_descending else items, is_descending=is_descending)
    assert [found[line].time for line in range(len(times))] == times


@pytest.mark.parametrize("zone", ["America/New_York", "Australia/Lord_Howe", "Europe/Lisbon"])
def test_in_other_zones_too(zone: str) -> None:
    there = ZoneInfo(zone)
    turn = next(
        time
        for time in (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=30 * n) for n in range(365 * 48))
        if (time.astimezone(there).utcoffset() or timedelta())
        < ((time - timedelta(minutes=30)).astimezone(there).utcoffset() or timedelta())
    )
    times = every(5, 3, 3, turn)
    found = resolved(walls(times, there), there)
    assert [found[line].time for line in range(len(times))] == times


def test_an_export_that_begins_in_the_second_pass() -> None:
    times = [TURN + timedelta(minutes=5 * n) for n in range(3, 30)]
    assert [each.time for each in resolved(walls(times)).values()] == times


def test_an_export_that_ends_in_the_first_pass() -> None:
    times = [TURN - timedelta(minutes=5 * n) for n in range(30, 3, -1)]
    assert [each.time for each in resolved(walls(times)).values()] == times


def test_a_gap_over_the_turn_is_closed_by_both_sides() -> None:
    times = [time for time in every(5, 2, 2) if not TURN - timedelta(minutes=40) < time < TURN + timedelta(minutes=45)]
    assert [each.time for each in resolved(walls(times)).values()] == times


@pytest.mark.parametrize(
    "times",
    [
        pytest.param([TURN - timedelta(minutes=20), TURN - timedelta(minutes=15)], id="nothing around"),
        pytest.param(
            [TURN - timedelta(hours=4), *(TURN - timedelta(minutes=m) for m in (30, 25)), TURN + timedelta(hours=4)],
            id="far from both sides",
        ),
        pytest.param(
            [t for t in every(5, 2, 2) if not TURN <= t < TURN + timedelta(hours=1)], id="one pass is missing whole"
        ),
    ],
)
def test_what_stays_open_is_refused(times: list[datetime]) -> None:
    found = resolved(walls(times))
    for line, time in enumerate(times):
        is_open = abs(time - TURN) < timedelta(hours=1) or time == TURN - timedelta(hours=1)
        expected = (None, "ambiguous_time") if is_open else (time, "")
        assert (found[line].time, found[line].reason) == expected


def test_the_device_clock_decides_where_order_cannot() -> None:
    times = [TURN - timedelta(hours=4), TURN + timedelta(minutes=30), TURN + timedelta(hours=4)]
    assert [each.time for each in resolved(walls(times, with_seconds=True)).values()] == times


def test_an_hour_that_never_is() -> None:
    local = datetime(2026, 3, 29, 2, 30)  # noqa: DTZ001
    (found,) = resolved([Wall("d", local, None, Measurement(0, local, "sgv", 100.0, "mg/dL", "d", "d"))]).values()
    assert (found.time, found.reason) == (None, "nonexistent_time")


@given(st.sets(st.integers(-48, 48), min_size=1), st.booleans())
def test_a_time_is_right_or_refused(steps: set[int], is_descending: bool) -> None:
    """Whatever is missing around the turn: a reading with a device clock is never given a wrong hour."""
    times = [TURN + timedelta(minutes=5 * step) for step in sorted(steps)]
    items = walls(times, with_seconds=True)
    found = resolved(items[::-1] if is_descending else items, is_descending=is_descending)
    for line, time in enumerate(times):
        assert found[line].time in (time, None)
