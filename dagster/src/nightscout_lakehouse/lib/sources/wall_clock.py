"""From the clock on the wall to UTC, where the file names no zone.

When summer time ends an hour comes twice, and its readings are told apart by what surrounds them: the clock
that jumps back within the hour, the device's own seconds where the export has them, and the reading before or
after that joins without a gap. What stays open is refused, never guessed: a wrong time is worse than none.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from nightscout_lakehouse.lib.sources.base import LeftOut
from nightscout_lakehouse.lib.sources.file_format import Measurement

# A clock that goes back by less has not been set back; the rows are out of order.
_LEAST_JUMP = timedelta(minutes=10)
# Readings no farther apart than this belong to one stretch.
_JOINED = timedelta(minutes=20)


@dataclass(frozen=True)
class Wall:
    """One measurement by the clock on the wall.

    Attributes:
        stream: Whose clock: readings of one stream follow each other.
        local: Time without zone; one that has its offset is taken as it is.
        device_seconds: Seconds of a clock that is never set, or None.
        measurement: What was measured.
    """

    stream: str
    local: datetime
    device_seconds: float | None
    measurement: Measurement


@dataclass(frozen=True)
class Resolved:
    """The time found for a measurement, or why there is none: `ambiguous_time` or `nonexistent_time`."""

    wall: Wall
    time: datetime | None
    reason: str = ""


@dataclass
class _Stream:
    before: Wall | None = None
    before_time: datetime | None = None
    held: list[Wall] = field(default_factory=list)


def resolve(
    walls: Iterable[Wall | LeftOut], zone: ZoneInfo, *, is_descending: bool = False
) -> Iterator[Resolved | LeftOut]:
    """Give every measurement its time.

    Args:
        walls: In the order of the file; streams may be mixed. What was left out passes through.
        zone: The zone that the clock showed.
        is_descending: Whether the newest comes first.

    Yields:
        Each measurement once; those of an hour that comes twice when their stream has left that hour.
    """
    streams: dict[str, _Stream] = {}
    for wall in walls:
        if isinstance(wall, LeftOut):
            yield wall
            continue
        if wall.local.tzinfo is not None:
            yield Resolved(wall, wall.local)
            continue
        stream = streams.setdefault(wall.stream, _Stream())
        first, second = (wall.local.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
        early, late = first.utcoffset(), second.utcoffset()
        if early == late:
            time = first
        elif early is not None and late is not None and early < late:
            yield Resolved(wall, None, "nonexistent_time")
            continue
        else:
            if stream.held and abs(stream.held[-1].local - wall.local) > timedelta(hours=6):
                yield from _release(stream, None, None, zone, is_descending)
            stream.held.append(wall)
            continue
        if stream.held:
            yield from _release(stream, wall, time, zone, is_descending)
        stream.before, stream.before_time = wall, time
        yield Resolved(wall, time)
    for stream in streams.values():
        yield from _release(stream, None, None, zone, is_descending)


def _release(
    stream: _Stream, after: Wall | None, after_time: datetime | None, zone: ZoneInfo, is_descending: bool
) -> Iterator[Resolved]:
    """Resolve the held readings of an hour that comes twice, between the readings around them."""
    held, stream.held = stream.held, []
    if not held:
        return
    around = [(stream.before, stream.before_time), (after, after_time)]
    if is_descending:
        held, around = held[::-1], around[::-1]
    seconds = _by_device_seconds(held, around, zone)
    folds = seconds if seconds is not None else _by_order(held, around[0][1], around[1][1], zone)
    for number, wall in enumerate(held):
        if folds is None:
            yield Resolved(wall, None, "ambiguous_time")
        else:
            yield Resolved(wall, wall.local.replace(tzinfo=zone, fold=folds[number]))
    stream.before, stream.before_time = None, None


def _by_device_seconds(
    held: Sequence[Wall], around: Sequence[tuple[Wall | None, datetime | None]], zone: ZoneInfo
) -> list[int] | None:
    """Folds by a clock that is never set, where it runs through from a reading whose time is certain."""
    for wall, time in around:
        if wall is None or time is None or wall.device_seconds is None:
            continue
        folds = []
        for each in held:
            if each.device_seconds is None:
                break
            expected = time.astimezone(UTC) + timedelta(seconds=each.device_seconds - wall.device_seconds)
            distances = [abs(_utc(each, fold, zone) - expected) for fold in (0, 1)]
            # A new transmitter starts from zero: then the clock says nothing.
            if min(distances) > timedelta(minutes=10):
                break
            folds.append(distances.index(min(distances)))
        else:
            return folds
    return None


def _by_order(
    held: Sequence[Wall], before: datetime | None, after: datetime | None, zone: ZoneInfo
) -> list[int] | None:
    """Folds by order, oldest first: so many readings in the first pass of the hour, the rest in the second."""
    count = len(held)
    steps = [held[number + 1].local - held[number].local for number in range(count - 1)]
    jumps = [number + 1 for number, step in enumerate(steps) if step < timedelta(0)]
    if len(jumps) > 1 or any(-_LEAST_JUMP < step < timedelta(0) for step in steps):
        return None
    if jumps:
        return [0] * jumps[0] + [1] * (count - jumps[0])
    joins_before = before is not None and timedelta(0) <= _utc(held[0], 0, zone) - before.astimezone(UTC) <= _JOINED
    joins_after = after is not None and timedelta(0) <= after.astimezone(UTC) - _utc(held[-1], 1, zone) <= _JOINED
    if joins_before and joins_after:
        # The clock went back in a gap, or one pass of the hour is missing whole.
        gaps = [number + 1 for number, step in enumerate(steps) if step > _JOINED]
        return [0] * gaps[0] + [1] * (count - gaps[0]) if len(gaps) == 1 else None
    if joins_before == joins_after or any(step > _JOINED for step in steps):
        return None
    return [0 if joins_before else 1] * count


def _utc(wall: Wall, fold: int, zone: ZoneInfo) -> datetime:
    return wall.local.replace(tzinfo=zone, fold=fold).astimezone(UTC)
