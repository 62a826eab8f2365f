"""What the made-up person's pump, phone and hands write to Nightscout: treatments, device status, profiles.

The forms are those that AAPS, Loop and Nightscout's own page write. As the readings, every document follows from the
seed and its own day.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from nightscout_lakehouse.demo.person import READING_INTERVAL, Document, Person, Plan, identifier, zulu

_PHONE = "openaps://AndroidAPS"
_BASAL = ((0, 0.75), (5, 1.0), (11, 0.85), (22, 0.7))
_INSULIN_HOURS = 5
_CARBS_HOURS = 3
_RESERVOIR_UNITS = 180
_MMOL_FACTOR = 18.01559


@dataclass(frozen=True)
class Therapy:
    """The therapy of one made-up person.

    Attributes:
        person: Whose.
        is_loop: Whether the device status is in Loop's form; else in that of AAPS.
    """

    person: Person
    is_loop: bool = False
    _days: dict[date, list[Document]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def treatments(self, start: datetime, end: datetime) -> Iterator[Document]:
        """Treatments with `start <= created_at < end`, oldest first."""
        day = self.person.local_day(start) - timedelta(days=1)
        while day <= self.person.local_day(end):
            for document in self._day(day):
                if start <= datetime.fromisoformat(document["created_at"]) < end:
                    yield document
            day += timedelta(days=1)

    def device_status(self, start: datetime, end: datetime) -> Iterator[Document]:
        """One document every five minutes with `start <= created_at < end`, oldest first."""
        step = READING_INTERVAL.total_seconds()
        number = -int(-start.timestamp() // step)
        while (moment := datetime.fromtimestamp(number * step, UTC)) < end:
            yield self._loop_status(moment) if self.is_loop else self._openaps_status(moment)
            number += 1

    def profiles(self) -> list[Document]:
        """The profiles that Nightscout holds, newest first: settings change, and old ones stay."""
        return [self._profile("2026-06-01", 1.1, 9, 42), self._profile("2025-01-01", 1.0, 10, 45)]

    def scheduled_rate(self, moment: datetime) -> float:
        """The profile's basal rate at a moment, units per hour."""
        hour = (moment + timedelta(minutes=self.person.offset_minutes(moment))).hour
        return next(rate for start, rate in reversed(_BASAL) if hour >= start)

    def _day(self, day: date) -> list[Document]:
        if day not in self._days:
            plan = self.person.plan(day)
            events = [
                *self._meals(day, plan),
                *self._corrections(day, plan),
                *self._temp_basals(day),
                *self._activity(day, plan),
                *self._care(day),
            ]
            documents = [self._document(at, kind, extras) for at, kind, extras in events]
            # A server holds one document of a type and time.
            unique = {document["_id"]: document for document in documents}
            self._days[day] = sorted(unique.values(), key=lambda d: str(d["created_at"]))
        return self._days[day]

    def _document(self, at: datetime, kind: str, extras: Document) -> Document:
        name = f"{self.person.seed}/{kind}/{int(at.timestamp())}"
        return {
            "_id": identifier(at, name),
            "eventType": kind,
            "created_at": zulu(at),
            "utcOffset": self.person.offset_minutes(at),
            "enteredBy": _PHONE,
            **extras,
        }

    def _meals(self, day: date, plan: Plan) -> Iterator[tuple[datetime, str, Document]]:
        chance = self.person.chance_of(f"meals/{day}")
        for number, meal in enumerate(plan.meals):
            dose: Document = {"carbs": meal.carbs_g, "insulin": meal.insulin_u}
            if number == 2 and day.toordinal() % 5 == 0:
                # A fat dinner: 60 % at once, the rest as a rate over two hours.
                hours, total = 2, meal.insulin_u
                yield (
                    meal.at,
                    "Combo Bolus",
                    {
                        "carbs": meal.carbs_g,
                        "insulin": round(total * 0.6, 2),
                        "enteredinsulin": str(total),
                        "splitNow": "60",
                        "splitExt": "40",
                        "duration": hours * 60,
                        "relative": round(total * 0.4 / hours, 3),
                        "fat": 30,
                        "protein": 25,
                        "enteredBy": "demo",
                    },
                )
            elif number == 0 and day.toordinal() % 3 == 0:
                # Insulin a quarter of an hour before breakfast: the server makes two documents of it.
                early = {"insulin": meal.insulin_u, "preBolus": 15, "enteredBy": "demo"}
                yield meal.at - timedelta(minutes=15), "Meal Bolus", early
                yield meal.at, "Meal Bolus", {"carbs": meal.carbs_g, "enteredBy": "demo"}
            else:
                yield meal.at, "Meal Bolus", {**dose, "type": "NORMAL", "pumpType": "OMNIPOD_DASH", "isSMB": False}
            for minutes in (25, 40, 60, 95):
                if chance.random() < 0.6:
                    units = round(chance.uniform(0.05, 0.35), 2)
                    smb = {"insulin": units, "isSMB": True, "type": "SMB", "pumpType": "OMNIPOD_DASH"}
                    yield meal.at + timedelta(minutes=minutes), "Correction Bolus", smb

    def _corrections(self, day: date, plan: Plan) -> Iterator[tuple[datetime, str, Document]]:
        for dip in plan.dips:
            if dip.kind == "low":
                at = dip.start + timedelta(minutes=dip.minutes * 0.45)
                yield at, "Carb Correction", {"carbs": 15, "notes": "juice"}
        at = self.person.local(day, 22, day.toordinal() * 7 % 40)
        glucose = self.person.glucose_mg_dl(at)
        if glucose > 170:
            units = round((glucose - 120) / 45, 1)
            extras = {"insulin": units, "glucose": round(glucose), "glucoseType": "Sensor", "units": "mg/dl"}
            yield at, "Correction Bolus", {**extras, "enteredBy": "demo"}
        for stick in plan.finger_sticks:
            value = self.person.glucose_mg_dl(stick)
            # The meter at home shows mmol/L, the one in the bag mg/dL.
            is_mmol = stick.minute % 2 == 0
            shown = {"glucose": round(value / _MMOL_FACTOR, 1), "units": "mmol"} if is_mmol else {}
            yield (
                stick,
                "BG Check",
                {"glucose": round(value), "units": "mg/dl", "glucoseType": "Finger", "enteredBy": "demo"} | shown,
            )

    def _temp_basals(self, day: date) -> Iterator[tuple[datetime, str, Document]]:
        chance = self.person.chance_of(f"basal/{day}")
        at, end = self.person.local(day, 0, 5), self.person.local(day, 23, 55)
        while at < end:
            rate = round(self.scheduled_rate(at) * chance.choice((0.0, 0.4, 0.7, 1.3, 1.6, 2.0)), 2)
            exact = timedelta(minutes=30)
            yield (
                at,
                "Temp Basal",
                {
                    "duration": 30,
                    "durationInMilliseconds": int(exact.total_seconds() * 1000),
                    "absolute": rate,
                    "rate": rate,
                    "automatic": True,
                    "type": "NORMAL",
                },
            )
            # The next one mostly begins before this one has run out; now and then it is cancelled, or the scheduled
            # basal runs for a while.
            at += timedelta(minutes=chance.choice((15, 20, 25, 30, 60)))
            if chance.random() < 0.08 and at < end:
                yield at, "Temp Basal", {"duration": 0, "automatic": True}
                at += timedelta(minutes=40)
        if day.toordinal() % 4 == 0:
            at = self.person.local(day, 16, 7)
            yield at, "Temp Basal", {"duration": 60, "percent": -50, "enteredBy": "demo", "reason": "gardening"}

    def _activity(self, day: date, plan: Plan) -> Iterator[tuple[datetime, str, Document]]:
        for dip in plan.dips:
            if dip.kind != "exercise":
                continue
            before = dip.start - timedelta(minutes=30)
            is_mmol = day.toordinal() % 2 == 0
            target, units = (8.0, "mmol") if is_mmol else (144, "mg/dl")
            temporary = {"targetBottom": target, "targetTop": target, "units": units, "duration": 120}
            yield before, "Temporary Target", {**temporary, "reason": "Activity"}
            yield dip.start, "Exercise", {"duration": 45, "notes": "Running", "enteredBy": "demo"}
            if is_mmol:
                yield before + timedelta(minutes=95), "Temporary Target", {"duration": 0}
            else:
                profile = {"profile": "Default", "percentage": 80, "timeshift": 0, "duration": 180}
                yield dip.start, "Profile Switch", profile

    def _care(self, day: date) -> Iterator[tuple[datetime, str, Document]]:
        number = day.toordinal()
        change = self.person.sensor_change(day)
        if change is not None:
            yield change, "Sensor Change", {"notes": "", "enteredBy": "demo"}
            yield change + timedelta(minutes=4), "Sensor Start", {"enteredBy": "xDrip"}
        if number % 3 == 0:
            at = self.person.local(day, 19, 5)
            # While the pod is changed no insulin is given.
            yield at - timedelta(minutes=6), "Suspend Pump", {}
            yield at, "Site Change", {"notes": "", "enteredBy": "demo"}
            yield at + timedelta(minutes=3), "Resume Pump", {}
        if number % 21 == 0:
            yield self.person.local(day, 9, 12), "Pump Battery Change", {"enteredBy": "demo"}
        if number % 14 == 0:
            switch = {"profile": "Default", "percentage": 100 if number % 28 else 110, "timeshift": 0, "duration": 0}
            yield self.person.local(day, 6, 30), "Profile Switch", switch
        if number % 9 == 0:
            yield self.person.local(day, 13, 45), "Note", {"notes": "Restaurant, carbs guessed", "enteredBy": "demo"}
        if number % 30 == 0:
            text = {"notes": "Appointment at the clinic", "isAnnouncement": True, "enteredBy": "demo"}
            yield self.person.local(day, 8, 0), "Announcement", text

    def _profile(self, start: str, factor: float, ratio: float, sensitivity: float) -> Document:
        moment = datetime.fromisoformat(start).replace(tzinfo=UTC)
        day = self._settings(factor, ratio, sensitivity, "mg/dl")
        sport = self._settings(factor * 0.8, ratio * 1.2, sensitivity * 1.2, "mg/dl")
        return {
            "_id": identifier(moment, f"{self.person.seed}/profile"),
            "defaultProfile": "Default",
            "startDate": zulu(moment),
            "mills": 0,
            "units": "mg/dl",
            "created_at": zulu(moment),
            "store": {"Default": day, "Sport": sport},
        }

    def _settings(self, factor: float, ratio: float, sensitivity: float, units: str) -> Document:
        def schedule(*values: tuple[int, float]) -> list[Document]:
            return [
                {"time": f"{hour:02d}:00", "value": round(value, 2), "timeAsSeconds": hour * 3600}
                for hour, value in values
            ]

        return {
            "dia": _INSULIN_HOURS,
            "carbratio": schedule((0, ratio)),
            "sens": schedule((0, sensitivity)),
            "basal": schedule(*((hour, rate * factor) for hour, rate in _BASAL)),
            "target_low": schedule((0, 90)),
            "target_high": schedule((0, 130)),
            "timezone": self.person.timezone,
            "units": units,
            "carbs_hr": 20,
            "delay": 20,
        }

    def _state(self, moment: datetime) -> "_State":
        """Insulin and carbohydrates on board and the running temporary basal, from the treatments before."""
        iob = cob = 0.0
        rate, reservoir_used = None, 0.0
        day = self.person.local_day(moment)
        for document in itertools.chain(self._day(day - timedelta(days=1)), self._day(day)):
            at = datetime.fromisoformat(document["created_at"])
            if at > moment:
                break
            hours = (moment - at).total_seconds() / 3600
            units, grams = float(document.get("insulin") or 0), float(document.get("carbs") or 0)
            reservoir_used += units
            iob += units * max(0.0, 1 - hours / _INSULIN_HOURS) ** 1.6
            cob += grams * max(0.0, 1 - hours / _CARBS_HOURS)
            if document["eventType"] == "Temp Basal":
                runs = hours * 60 < float(document["duration"])
                rate = document.get("absolute") if runs else None
        used = (reservoir_used + 20 * (moment.hour / 24)) % _RESERVOIR_UNITS
        return _State(
            iob=round(iob, 2),
            cob=round(cob, 1),
            rate=rate,
            glucose=round(self.person.glucose_mg_dl(moment)),
            reservoir=round(_RESERVOIR_UNITS - used, 1),
            pump_battery=100 - day.toordinal() % 21 * 4,
            phone_battery=30 + int(moment.timestamp() // 600) % 70,
        )

    def _openaps_status(self, moment: datetime) -> Document:
        state = self._state(moment)
        eventual = max(39, round(state.glucose + state.cob * 2.5 - state.iob * 42))
        suggested: dict[str, Any] = {
            "bg": state.glucose,
            "eventualBG": eventual,
            "targetBG": 110,
            "insulinReq": round(max(0.0, (eventual - 110) / 42), 2),
            "IOB": state.iob,
            "COB": state.cob,
            "sensitivityRatio": 1,
            "timestamp": zulu(moment),
            "predBGs": {"IOB": state.predicted(eventual), "COB": state.predicted(eventual)},
        }
        openaps: dict[str, Any] = {
            "iob": {"iob": state.iob, "basaliob": round(state.iob * 0.1, 2), "time": zulu(moment)},
            "suggested": suggested,
        }
        if state.rate is not None:
            openaps["enacted"] = {**suggested, "rate": state.rate, "duration": 30, "received": True}
        status = self._status(moment, _PHONE, {"openaps": openaps})
        clock = {"clock": zulu(moment), "reservoir": state.reservoir, "battery": {"percent": state.pump_battery}}
        return {
            **status,
            "pump": {**clock, "status": {"status": "normal", "timestamp": zulu(moment)}},
            "uploader": {"battery": state.phone_battery},
        }

    def _loop_status(self, moment: datetime) -> Document:
        state = self._state(moment)
        eventual = max(39, round(state.glucose + state.cob * 2.5 - state.iob * 42))
        loop: dict[str, Any] = {
            "name": "Loop",
            "version": "3.4",
            "timestamp": zulu(moment),
            "iob": {"iob": state.iob, "timestamp": zulu(moment)},
            "cob": {"cob": state.cob, "timestamp": zulu(moment)},
            "predicted": {"startDate": zulu(moment), "values": state.predicted(eventual)},
            "recommendedBolus": round(max(0.0, (eventual - 110) / 42), 2),
        }
        if state.rate is not None:
            loop["enacted"] = {"rate": state.rate, "duration": 30, "received": True, "timestamp": zulu(moment)}
        status = self._status(moment, "loop://iPhone", {"loop": loop})
        pump = {"clock": zulu(moment), "reservoir": state.reservoir, "suspended": False, "bolusing": False}
        return {**status, "pump": pump, "uploader": {"name": "iPhone", "battery": state.phone_battery}}

    def _status(self, moment: datetime, device: str, content: Document) -> Document:
        return {
            "_id": identifier(moment, f"{self.person.seed}/status/{int(moment.timestamp())}"),
            "device": device,
            "created_at": zulu(moment),
            "utcOffset": 0,
            **content,
        }


@dataclass(frozen=True)
class _State:
    """What a loop knows at a moment; glucose in mg/dL, insulin in units, carbohydrates in grams."""

    iob: float
    cob: float
    rate: float | None
    glucose: int
    reservoir: float
    pump_battery: int
    phone_battery: int

    def predicted(self, eventual: int) -> list[int]:
        """The next hour, every five minutes, on the way to the eventual glucose."""
        return [round(self.glucose + (eventual - self.glucose) * step / 24) for step in range(13)]
