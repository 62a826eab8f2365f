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
class _Meal:
    at: datetime
    carbs_g: int
    insulin_u: float
    rise_mg_dl: float
    peak_minutes: float


@dataclass(frozen=True)
class _Dip:
    """A fall below the curve: a low, exercise, or the pressure of lying on the sensor."""

    start: datetime
    minutes: float
    depth_mg_dl: float
    kind: str


@dataclass(frozen=True)
class _Day:
    meals: tuple[_Meal, ...]
    dips: tuple[_Dip, ...]
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
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_zone", ZoneInfo(self.timezone))

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

    def treatments(self, start: datetime, end: datetime) -> Iterator[Document]:
        """Boluses, carbohydrates, corrections, exercise, sensor changes and notes in the window, oldest first."""
        day = start.astimezone(self._zone).date() - timedelta(days=1)
        while day <= end.astimezone(self._zone).date():
            for document in self._treatments_of(day):
                if start <= datetime.fromisoformat(document["created_at"]) < end:
                    yield document
            day += timedelta(days=1)

    def profile(self) -> Document:
        """The profile that Nightscout would hold."""
        schedule = [
            {"time": "00:00", "value": 0.75, "timeAsSeconds": 0},
            {"time": "05:00", "value": 1.0, "timeAsSeconds": 18000},
        ]
        return {
            "_id": _identifier(datetime(2025, 1, 1, tzinfo=UTC), f"{self.seed}/profile"),
            "defaultProfile": "Default",
            "startDate": "2025-01-01T00:00:00.000Z",
            "mills": 0,
            "units": "mg/dl",
            "created_at": "2025-01-01T00:00:00.000Z",
            "store": {
                "Default": {
                    "dia": 5,
                    "carbratio": [{"time": "00:00", "value": 10, "timeAsSeconds": 0}],
                    "sens": [{"time": "00:00", "value": 45, "timeAsSeconds": 0}],
                    "basal": schedule,
                    "target_low": [{"time": "00:00", "value": 90, "timeAsSeconds": 0}],
                    "target_high": [{"time": "00:00", "value": 130, "timeAsSeconds": 0}],
                    "timezone": self.timezone,
                    "units": "mg/dl",
                    "carbs_hr": 20,
                    "delay": 20,
                }
            },
        }

    def glucose_mg_dl(self, moment: datetime) -> float:
        """The glucose that a perfect sensor would show."""
        local = moment.astimezone(self._zone)
        hour = local.hour + local.minute / 60
        level = 113.0 + 40.0 * self._noise(moment, 7 * 3600, "day") + 20.0 * self._noise(moment, 2 * 3600, "hours")
        for day in (local.date() - timedelta(days=1), local.date()):
            plan = self._day(day)
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

    def _at(self, moment: datetime) -> Iterator[Document]:
        local_day = moment.astimezone(self._zone).date()
        plan = self._day(local_day)
        change = self._sensor_change(local_day)
        if change is not None and change <= moment < change + READING_INTERVAL:
            yield self._entry(moment, "cal", {"slope": 895.8, "intercept": 34281.2, "scale": 1})
        if not self._is_silent(moment, plan, change):
            yield self._sgv(moment)
        for stick in plan.finger_sticks:
            if moment <= stick < moment + READING_INTERVAL:
                value = round(self.glucose_mg_dl(stick) * self._random(f"stick/{stick}").gauss(1.0, 0.06))
                yield self._entry(stick, "mbg", {"mbg": value, "device": "contour-next"})

    def _sgv(self, moment: datetime) -> Document:
        chance = self._random(f"reading/{int(moment.timestamp())}")
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
        return self.glucose_mg_dl(moment) + 3.0 * self._noise(moment, 600, "sensor")

    def _entry(self, moment: datetime, kind: str, extras: Document) -> Document:
        text = _zulu(moment)
        offset = moment.astimezone(self._zone).utcoffset() or timedelta()
        return {
            "_id": _identifier(moment, f"{self.seed}/{kind}/{int(moment.timestamp())}"),
            "sysTime": text,
            "type": kind,
            "date": int(moment.timestamp() * 1000),
            "dateString": text,
            "device": DEVICE,
            "utcOffset": int(offset.total_seconds() // 60),
            **extras,
        }

    def _is_silent(self, moment: datetime, plan: _Day, change: datetime | None) -> bool:
        if change is not None and change <= moment < change + WARM_UP:
            return True
        return any(start <= moment < end for start, end in plan.gaps)

    def _sensor_change(self, day: date) -> datetime | None:
        if (day.toordinal() + self.seed) % SENSOR_DAYS:
            return None
        return self._local(day, 18, self._random(f"change/{day}").randrange(0, 90))

    def _treatments_of(self, day: date) -> Iterator[Document]:
        plan = self._day(day)
        found: list[tuple[datetime, str, Document]] = []
        for meal in plan.meals:
            found.append((meal.at, "Meal Bolus", {"carbs": meal.carbs_g, "insulin": meal.insulin_u}))
        for dip in plan.dips:
            if dip.kind == "exercise":
                found.append((dip.start, "Exercise", {"duration": 45, "notes": "Running"}))
            elif dip.kind == "low":
                at = dip.start + timedelta(minutes=dip.minutes * 0.45)
                found.append((at, "Carb Correction", {"carbs": 15, "insulin": None}))
        change = self._sensor_change(day)
        if change is not None:
            found.append((change, "Sensor Change", {"notes": ""}))
        if day.toordinal() % 3 == 0:
            found.append((self._local(day, 19, 5), "Site Change", {"notes": ""}))
        for at, kind, extras in sorted(found, key=lambda item: item[0]):
            yield {
                "_id": _identifier(at, f"{self.seed}/{kind}/{int(at.timestamp())}"),
                "eventType": kind,
                "created_at": _zulu(at),
                "utcOffset": int((at.astimezone(self._zone).utcoffset() or timedelta()).total_seconds() // 60),
                "enteredBy": "demo",
                "carbs": None,
                "insulin": None,
                **extras,
            }

    def _day(self, day: date) -> _Day:
        return _plan(self, day)

    def _local(self, day: date, hour: int, minute: int) -> datetime:
        moment = datetime.combine(day, time(hour), self._zone) + timedelta(minutes=minute)
        return moment.astimezone(UTC)

    def _random(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{name}")  # noqa: S311 - a made-up person needs no secrecy

    def _offset_seconds(self, moment: datetime) -> int:
        # A sensor does not send on the full minute; each has its own second.
        session = (moment.date().toordinal() + self.seed) // SENSOR_DAYS
        return int(_unit(f"{self.seed}/phase/{session}") * 240)

    def _noise(self, moment: datetime, period_seconds: int, name: str) -> float:
        """Smooth noise between -1 and 1, interpolated between values that are fixed for each period."""
        position = moment.timestamp() / period_seconds
        left = math.floor(position)
        share = position - left
        weight = share * share * (3 - 2 * share)
        low, high = (_unit(f"{self.seed}/{name}/{node}") * 2 - 1 for node in (left, left + 1))
        return low + (high - low) * weight


@lru_cache(maxsize=4096)
def _plan(person: Person, day: date) -> _Day:
    chance = person._random(f"day/{day}")
    weekend = day.weekday() >= 5
    meals = []
    for hour, carbs, share in ((7 + 2 * weekend, 45, 1.25), (12, 65, 1.0), (19, 75, 0.95)):
        at = person._local(day, hour, chance.randrange(0, 70))
        grams = max(15, round(chance.gauss(carbs, 16)))
        meals.append(_meal(at, grams, share, chance))
    if chance.random() < 0.55:
        meals.append(_meal(person._local(day, 15, chance.randrange(0, 90)), round(chance.uniform(10, 35)), 1.1, chance))
    dips = []
    if chance.random() < 0.30:
        start = person._local(day, 0, chance.randrange(30, 270))
        dips.append(_Dip(start, chance.uniform(60, 140), chance.uniform(60, 100), "low"))
    if chance.random() < 0.35:
        start = person._local(day, 10, chance.randrange(0, 60))
        dips.append(_Dip(start, chance.uniform(50, 110), chance.uniform(55, 95), "low"))
    if chance.random() < 0.30:
        start = person._local(day, 17, chance.randrange(0, 60))
        dips.append(_Dip(start, 140, chance.uniform(40, 80), "exercise"))
    if chance.random() < 0.12:
        start = person._local(day, 2, chance.randrange(0, 180))
        dips.append(_Dip(start, chance.uniform(15, 40), chance.uniform(50, 75), "compression"))
    gaps = []
    if chance.random() < 0.30:
        start = person._local(day, chance.randrange(0, 22), chance.randrange(0, 60))
        gaps.append((start, start + timedelta(minutes=chance.choice((10, 15, 25, 40, 90, 180, 300)))))
    sticks = tuple(person._local(day, hour, chance.randrange(0, 60)) for hour in (8, 21) if chance.random() < 0.7)
    return _Day(tuple(meals), tuple(dips), tuple(gaps), chance.uniform(10, 45), sticks)


def _meal(at: datetime, grams: int, share: float, chance: random.Random) -> _Meal:
    rise = grams * share * chance.uniform(0.6, 2.9)
    return _Meal(at, grams, round(grams / 10, 1), rise, chance.uniform(55, 85))


def _unit(name: str) -> float:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest()) / (1 << 48)


def _identifier(moment: datetime, name: str) -> str:
    """Looks and sorts as MongoDB's: the first eight digits are the second of creation."""
    return f"{int(moment.timestamp()):08x}{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"


def _zulu(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
