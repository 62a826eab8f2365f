"""A made-up person with type 1 diabetes on a Dexcom-like sensor.

Every document follows from the seed and its own calendar day alone, so two servers started at different
times agree on all days that both have. Nothing here was taken from a real person.
"""

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

READING_INTERVAL = timedelta(minutes=5)
SENSOR_DAYS = 10
WARM_UP = timedelta(hours=2)
DEVICE = "xDrip-DexcomG6"

_DIRECTIONS = (
    (-3.0, "DoubleDown"),
    (-2.0, "SingleDown"),
    (-1.0, "FortyFiveDown"),
    (1.0, "Flat"),
    (2.0, "FortyFiveUp"),
    (3.0, "SingleUp"),
)
_TRENDS = {
    "DoubleUp": 1,
    "SingleUp": 2,
    "FortyFiveUp": 3,
    "Flat": 4,
    "FortyFiveDown": 5,
    "SingleDown": 6,
    "DoubleDown": 7,
}

Document = dict[str, Any]


@dataclass(frozen=True)
class Meal:
    """What is eaten, with its insulin and the rise that follows."""

    at: datetime
    carbs_g: int
    insulin_u: float
    rise_mg_dl: float
    peak_minutes: float


@dataclass(frozen=True)
class Dip:
    """A fall below the curve: a low, exercise, or the pressure of lying on the sensor."""

    start: datetime
    minutes: float
    depth_mg_dl: float
    kind: str


@dataclass(frozen=True)
class Plan:
    """What happens on one local day: meals, falls, gaps of the sensor, the rise at dawn, finger-sticks."""

    meals: tuple[Meal, ...]
    dips: tuple[Dip, ...]
    gaps: tuple[tuple[datetime, datetime], ...]
    dawn_mg_dl: float
    finger_sticks: tuple[datetime, ...]


@dataclass(frozen=True)
class Person:
    """One made-up person.

    Attributes:
        seed: Another seed is another person.
        timezone: Where the person lives; meals and nights follow its clock changes.
    """

    seed: int = 1
    timezone: str = "Europe/Berlin"
    zone: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "zone", ZoneInfo(self.timezone))

    def entries(self, start: datetime, end: datetime) -> Iterator[Document]:
        """Sensor readings, finger-sticks and calibrations with `start <= date < end`, oldest first."""
        step = READING_INTERVAL.total_seconds()
        slot = math.ceil(start.timestamp() / step)
        while (moment := datetime.fromtimestamp(slot * step, UTC)) < end:
            slot += 1
            seconds = moment + timedelta(seconds=self._offset_seconds(moment))
            if not start <= seconds < end:
                continue
            yield from self._at(seconds)

    def glucose_mg_dl(self, moment: datetime) -> float:
        """The glucose that a perfect sensor would show."""
        return _glucose_mg_dl(self, moment)

    def local_day(self, moment: datetime) -> date:
        """The wearer's day of a moment."""
        return moment.astimezone(self.zone).date()

    def offset_minutes(self, moment: datetime) -> int:
        """Minutes east of UTC."""
        return int((moment.astimezone(self.zone).utcoffset() or timedelta()).total_seconds() // 60)

    def _at(self, moment: datetime) -> Iterator[Document]:
        local_day = moment.astimezone(self.zone).date()
        plan = self.plan(local_day)
        change = self.sensor_change(local_day)
        if change is not None and change <= moment < change + READING_INTERVAL:
            yield self._entry(moment, "cal", {"slope": 895.8, "intercept": 34281.2, "scale": 1})
        if not self._is_silent(moment, plan, change):
            yield self._sgv(moment)
        for stick in plan.finger_sticks:
            if moment <= stick < moment + READING_INTERVAL:
                yield self._entry(stick, "mbg", {"mbg": self.meter_mg_dl(stick), "device": "contour-next"})

    def meter_mg_dl(self, stick: datetime) -> int:
        """What the meter shows of a finger-stick."""
        return round(self.glucose_mg_dl(stick) * self.chance_of(f"stick/{stick}").gauss(1.0, 0.06))

    def _sgv(self, moment: datetime) -> Document:
        chance = self.chance_of(f"reading/{int(moment.timestamp())}")
        if chance.random() < 0.0006:
            code = chance.choice((5, 9, 10))
            return self._entry(moment, "sgv", {"sgv": code, "direction": "NOT COMPUTABLE", "trend": 8})
        value = self._sensor_mg_dl(moment)
        slope = (value - self._sensor_mg_dl(moment - timedelta(minutes=10))) / 10
        direction = next((name for bound, name in _DIRECTIONS if slope < bound), "DoubleUp")
        extras = {
            "sgv": round(value),
            "delta": round(value - self._sensor_mg_dl(moment - timedelta(minutes=5)), 3),
            "direction": direction,
            "trend": _TRENDS[direction],
            "filtered": round(value) * 1000,
            "unfiltered": round(value) * 1000 + 500,
            "noise": 1,
            "rssi": 100,
        }
        return self._entry(moment, "sgv", extras)

    def _sensor_mg_dl(self, moment: datetime) -> float:
        return self.glucose_mg_dl(moment) + 3.0 * self.noise(moment, 600, "sensor")

    def _entry(self, moment: datetime, kind: str, extras: Document) -> Document:
        text = zulu(moment)
        offset = moment.astimezone(self.zone).utcoffset() or timedelta()
        return {
            "_id": identifier(moment, f"{self.seed}/{kind}/{int(moment.timestamp())}"),
            "sysTime": text,
            "type": kind,
            "date": int(moment.timestamp() * 1000),
            "dateString": text,
            "device": DEVICE,
            "utcOffset": int(offset.total_seconds() // 60),
            **extras,
        }

    def _is_silent(self, moment: datetime, plan: Plan, change: datetime | None) -> bool:
        if change is not None and change <= moment < change + WARM_UP:
            return True
        return any(start <= moment < end for start, end in plan.gaps)

    def sensor_change(self, day: date) -> datetime | None:
        """When a new sensor starts on this day, if one does."""
        if (day.toordinal() + self.seed) % SENSOR_DAYS:
            return None
        return self.local(day, 18, self.chance_of(f"change/{day}").randrange(0, 90))

    def plan(self, day: date) -> Plan:
        """What happens on a local day."""
        return _plan(self, day)

    def local(self, day: date, hour: int, minute: int) -> datetime:
        """A wall-clock time of a local day, in UTC; minutes may go beyond the hour."""
        moment = datetime.combine(day, time(hour), self.zone) + timedelta(minutes=minute)
        return moment.astimezone(UTC)

    def chance_of(self, name: str) -> random.Random:
        """Chance that is the same for the same name."""
        return random.Random(f"{self.seed}/{name}")  # noqa: S311 - a made-up person needs no secrecy

    def _offset_seconds(self, moment: datetime) -> int:
        # A sensor does not send on the full minute; each has its own second.
        session = (moment.date().toordinal() + self.seed) // SENSOR_DAYS
        return int(_unit(f"{self.seed}/phase/{session}") * 240)

    def noise(self, moment: datetime, period_seconds: int, name: str) -> float:
        """Smooth noise between -1 and 1, interpolated between values that are fixed for each period."""
        position = moment.timestamp() / period_seconds
        left = math.floor(position)
        share = position - left
        weight = share * share * (3 - 2 * share)
        low, high = (_unit(f"{self.seed}/{name}/{node}") * 2 - 1 for node in (left, left + 1))
        return low + (high - low) * weight


# A reading asks for those five and ten minutes before it again.
@lru_cache(maxsize=64)
def _glucose_mg_dl(person: Person, moment: datetime) -> float:
    local = moment.astimezone(person.zone)
    hour = local.hour + local.minute / 60
    level = 113.0 + 40.0 * person.noise(moment, 7 * 3600, "day") + 20.0 * person.noise(moment, 2 * 3600, "hours")
    for day in (local.date() - timedelta(days=1), local.date()):
        plan = person.plan(day)
        if day == local.date():
            level += plan.dawn_mg_dl * math.exp(-(((hour - 7.5) / 2.2) ** 2))
        for meal in plan.meals:
            minutes = (moment - meal.at).total_seconds() / 60
            if 0 < minutes < 480:
                share = minutes / meal.peak_minutes
                level += meal.rise_mg_dl * (share * math.exp(1 - share)) ** 1.6
        for dip in plan.dips:
            minutes = (moment - dip.start).total_seconds() / 60
            if 0 < minutes < dip.minutes:
                level -= dip.depth_mg_dl * math.sin(math.pi * minutes / dip.minutes) ** 0.8
    return min(385.0, max(42.0, level if level > 62 else 62 - (62 - level) * 0.45))


@lru_cache(maxsize=4096)
def _plan(person: Person, day: date) -> Plan:
    chance = person.chance_of(f"day/{day}")
    weekend = day.weekday() >= 5
    meals = []
    for hour, carbs, share in ((7 + 2 * weekend, 45, 1.25), (12, 65, 1.0), (19, 75, 0.95)):
        at = person.local(day, hour, chance.randrange(0, 70))
        grams = max(15, round(chance.gauss(carbs, 16)))
        meals.append(_meal(at, grams, share, chance))
    if chance.random() < 0.55:
        meals.append(_meal(person.local(day, 15, chance.randrange(0, 90)), round(chance.uniform(10, 35)), 1.1, chance))
    dips = []
    if chance.random() < 0.30:
        start = person.local(day, 0, chance.randrange(30, 270))
        dips.append(Dip(start, chance.uniform(60, 140), chance.uniform(60, 100), "low"))
    if chance.random() < 0.35:
        start = person.local(day, 10, chance.randrange(0, 60))
        dips.append(Dip(start, chance.uniform(50, 110), chance.uniform(55, 95), "low"))
    if chance.random() < 0.30:
        start = person.local(day, 17, chance.randrange(0, 60))
        dips.append(Dip(start, 140, chance.uniform(40, 80), "exercise"))
    if chance.random() < 0.12:
        start = person.local(day, 2, chance.randrange(0, 180))
        dips.append(Dip(start, chance.uniform(15, 40), chance.uniform(50, 75), "compression"))
    gaps = []
    if chance.random() < 0.30:
        start = person.local(day, chance.randrange(0, 22), chance.randrange(0, 60))
        gaps.append((start, start + timedelta(minutes=chance.choice((10, 15, 25, 40, 90, 180, 300)))))
    sticks = tuple(person.local(day, hour, chance.randrange(0, 60)) for hour in (8, 21) if chance.random() < 0.7)
    return Plan(tuple(meals), tuple(dips), tuple(gaps), chance.uniform(10, 45), sticks)


def _meal(at: datetime, grams: int, share: float, chance: random.Random) -> Meal:
    rise = grams * share * chance.uniform(0.6, 2.9)
    return Meal(at, grams, round(grams / 10, 1), rise, chance.uniform(55, 85))


# Neighbours in time lie between the same two fixed values.
@lru_cache(maxsize=4096)
def _unit(name: str) -> float:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest()) / (1 << 48)


def identifier(moment: datetime, name: str) -> str:
    """Looks and sorts as MongoDB's: the first eight digits are the second of creation."""
    return f"{int(moment.timestamp()):08x}{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"


def zulu(moment: datetime) -> str:
    """The moment as Nightscout stores it: in UTC, to the millisecond."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
