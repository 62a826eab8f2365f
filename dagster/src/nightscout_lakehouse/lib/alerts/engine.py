"""The rules as a state machine: from a look at a site, its state and the time to a new state and what to tell.

Pure: nothing here reads a clock, a server or a file. For each rule an episode begins when its condition holds, lasts
until the readings are clearly and steadily back (so it re-arms), and is told at most once in each cool-down.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from zoneinfo import ZoneInfo

from nightscout_lakehouse.lib.alerts.rules import (
    COOL_DOWN,
    DEFAULT_RULES,
    ESCALATING,
    FUTURE_TOLERANCE,
    GLUCOSE_RULES,
    LEAST_REARM_SPAN,
    LONGEST_URGENT_LOW_ACKNOWLEDGEMENT,
    OLDEST_PREDICTION,
    PREDICTION_HORIZON,
    REARM_WINDOW,
    REMIND_AFTER,
    WORSE,
    AlertRules,
    Look,
    Prediction,
    Reading,
    Rule,
)

# A fall or rise is measured over a quarter of an hour, with a minute to spare, and from no less than this.
_RATE_WINDOW = timedelta(minutes=16)
_LEAST_RATE_SPAN = timedelta(minutes=9)
# By how much slower than its threshold a change must be for the alert to be over, mg/dL per minute.
_RATE_REARM = 1.0
_LEAST_FRESH = timedelta(minutes=15)


_UTC = ZoneInfo("UTC")


class Signal(StrEnum):
    """What a look says of a rule's condition."""

    HOLDS = "holds"
    BETWEEN = "between"
    OVER = "over"
    UNKNOWN = "unknown"


class Kind(StrEnum):
    """What is told of an episode."""

    RAISED = "raised"
    REMINDER = "reminder"
    ESCALATED = "escalated"
    RECOVERED = "recovered"


@dataclass(frozen=True)
class Condition:
    """What is remembered of one rule at one site.

    Attributes:
        since: When the episode began; None: there is none.
        first_told_at: When someone was told of this episode first; None: nobody was.
        last_told_at: When someone was told last, also of an earlier episode: the cool-down counts from here.
        acknowledged_at: When someone acknowledged this episode.
        escalated_at: When this episode was escalated.
    """

    since: datetime | None = None
    first_told_at: datetime | None = None
    last_told_at: datetime | None = None
    acknowledged_at: datetime | None = None
    escalated_at: datetime | None = None

    @property
    def is_active(self) -> bool:
        """Whether an episode goes on."""
        return self.since is not None


@dataclass(frozen=True)
class SiteState:
    """What is remembered of a site.

    Attributes:
        conditions: Of each rule.
        first_look_at: When it was looked at first.
        last_reading: The newest reading ever seen.
        prediction: The newest prediction seen.
        snoozed_until: Until when nobody wants to be told.
        is_urgent_low_snoozed: Whether that holds for urgent lows as well.
    """

    conditions: Mapping[Rule, Condition] = field(default_factory=dict)
    first_look_at: datetime | None = None
    last_reading: Reading | None = None
    prediction: Prediction | None = None
    snoozed_until: datetime | None = None
    is_urgent_low_snoozed: bool = False

    def condition(self, rule: Rule) -> Condition:
        """The condition of a rule."""
        return self.conditions.get(rule, Condition())


@dataclass(frozen=True)
class Policy:
    """How a site is alerted on.

    Attributes:
        rules: Thresholds and quiet hours.
        timezone: Zone of the quiet hours and of the times in messages.
        stale_minutes: Alert after so long without a reading; 0 for never.
        escalate_minutes: How long nobody may acknowledge; None: nobody else is to be told.
        sensor_interval_minutes: Nominal distance of two readings, if it is configured.
    """

    rules: AlertRules = DEFAULT_RULES
    timezone: ZoneInfo = _UTC
    stale_minutes: int = 60
    escalate_minutes: int | None = 15
    sensor_interval_minutes: float | None = None

    @property
    def fresh_for(self) -> timedelta:
        """How old the newest reading may be for something to be said of glucose now."""
        return max(_LEAST_FRESH, timedelta(minutes=2 * (self.sensor_interval_minutes or 0)))


@dataclass(frozen=True)
class Situation:
    """How a site is now.

    Attributes:
        newest: The newest reading, if it is fresh.
        rate_mg_dl_per_minute: Its change over about 15 minutes, where that is known.
        is_compression_suspect: Whether a low looks like that of a sensor that is lain on.
        prediction: The prediction that counts now.
        signals: What that says of each rule.
    """

    newest: Reading | None
    rate_mg_dl_per_minute: float | None
    is_compression_suspect: bool
    prediction: Prediction | None
    signals: Mapping[Rule, Signal]


@dataclass(frozen=True)
class Event:
    """Something to tell: which rule, and what of it."""

    rule: Rule
    kind: Kind
    is_for_escalation_too: bool = False


def look_at(state: SiteState, look: Look, policy: Policy, now: datetime) -> tuple[SiteState, list[Event], Situation]:
    """Take in what a look at a site found.

    Args:
        state: What is remembered of it.
        look: What was found.
        policy: Its thresholds.
        now: The time, UTC.

    Returns:
        The new state, what is to be told, and how the site is now.
    """
    readings = [reading for reading in look.readings if reading.timestamp <= now + FUTURE_TOLERANCE]
    last = state.last_reading
    if last is not None and last.timestamp > now + FUTURE_TOLERANCE:
        # This machine's clock was ahead when it was seen.
        last = None
    newest = max([*readings, *([last] if last else [])], key=lambda reading: reading.timestamp, default=None)
    state = replace(
        state,
        first_look_at=state.first_look_at or now,
        last_reading=newest,
        prediction=look.prediction or state.prediction,
    )
    situation = _situation(state, readings, look, policy, now)
    conditions, events = dict(state.conditions), list[Event]()
    for rule in (*GLUCOSE_RULES, Rule.STALE):
        signal = situation.signals[rule]
        is_low = (
            conditions.get(Rule.URGENT_LOW, Condition()).is_active or conditions.get(Rule.LOW, Condition()).is_active
        )
        if rule is Rule.FAST_RISE and signal is Signal.HOLDS and is_low:
            # That is what everybody hopes for.
            signal = Signal.BETWEEN
        worse = [conditions[each] for each in WORSE.get(rule, ()) if conditions[each].is_active]
        is_told_by_worse = any(e.kind is Kind.RECOVERED and e.rule in WORSE.get(rule, ()) for e in events)
        conditions[rule], kinds = advance(
            rule,
            state.condition(rule),
            signal,
            now,
            escalate_minutes=policy.escalate_minutes,
            is_muted=is_muted(rule, state, policy, now),
            worse=worse,
            is_recovery_told=is_told_by_worse,
        )
        was_escalated = state.condition(rule).escalated_at is not None
        events += [Event(rule, kind, was_escalated and kind is Kind.RECOVERED) for kind in kinds]
    return replace(state, conditions=conditions), events, situation


def advance(
    rule: Rule,
    before: Condition,
    signal: Signal,
    now: datetime,
    *,
    escalate_minutes: int | None,
    is_muted: bool = False,
    worse: Iterable[Condition] = (),
    is_recovery_told: bool = False,
    may_remind: bool = True,
) -> tuple[Condition, list[Kind]]:
    """One step of one rule.

    Args:
        rule: Which rule: it names the cool-down.
        before: What is remembered.
        signal: What was found.
        now: The time, UTC.
        escalate_minutes: How long nobody may acknowledge; None for no escalation.
        is_muted: Whether nobody is to be told now; what still holds later is told then.
        worse: Active conditions that say this one, too: then nothing is told of it.
        is_recovery_told: Whether the end of a worse one is told now, and says this end, too.
        may_remind: Whether an episode that goes on is worth a reminder.
    """
    worse = tuple(worse)
    if not before.is_active and signal is not Signal.HOLDS:
        return before, []
    if signal is Signal.UNKNOWN:
        # Nobody knows that it is over: whoever was told and did nothing is told again, and then others are.
        if before.first_told_at is None or rule not in ESCALATING:
            return before, []
        may_remind = may_remind and rule is Rule.URGENT_LOW
    if signal is Signal.OVER:
        is_told = before.first_told_at is not None and not (is_muted or worse or is_recovery_told)
        return Condition(last_told_at=before.last_told_at), [Kind.RECOVERED] if is_told else []
    after = replace(before, since=before.since or now)
    if worse:
        return _told_by(after, worse), []
    if signal is Signal.BETWEEN or is_muted or _is_acknowledged(rule, after, now):
        return after, []
    kinds = list[Kind]()
    is_first = after.first_told_at is None
    wait = COOL_DOWN[rule] if is_first else REMIND_AFTER[rule]
    if _has_passed(after.last_told_at, wait, now) and (may_remind or is_first):
        kinds.append(Kind.RAISED if is_first else Kind.REMINDER)
        after = replace(after, first_told_at=after.first_told_at or now, last_told_at=now)
    if (
        escalate_minutes is not None
        and after.first_told_at is not None
        and now - after.first_told_at >= timedelta(minutes=escalate_minutes)
        and after.escalated_at is None
        and rule in ESCALATING
    ):
        kinds.append(Kind.ESCALATED)
        after = replace(after, escalated_at=now)
    return after, kinds


def is_muted(rule: Rule, state: SiteState, policy: Policy, now: datetime) -> bool:
    """Whether nobody is to be told of a rule now: quiet hours, which an urgent low passes, or a snooze."""
    is_snoozed = state.snoozed_until is not None and now < state.snoozed_until
    if rule is Rule.URGENT_LOW:
        return is_snoozed and state.is_urgent_low_snoozed
    return is_snoozed or policy.rules.is_quiet(now.astimezone(policy.timezone).time())


def rate_mg_dl_per_minute(readings: Iterable[Reading]) -> float | None:
    """Slope of the line through the readings of the last quarter of an hour; None if they are too few.

    Args:
        readings: In the order of time.
    """
    points = list(readings)
    points = [each for each in points if each.timestamp >= points[-1].timestamp - _RATE_WINDOW]
    if len(points) < 2 or points[-1].timestamp - points[0].timestamp < _LEAST_RATE_SPAN:
        return None
    minutes = [(each.timestamp - points[0].timestamp).total_seconds() / 60 for each in points]
    middle = sum(minutes) / len(minutes)
    mean = sum(each.glucose_mg_dl for each in points) / len(points)
    covariance = sum((m - middle) * (p.glucose_mg_dl - mean) for m, p in zip(minutes, points, strict=True))
    return covariance / sum((m - middle) ** 2 for m in minutes)


def _situation(state: SiteState, readings: list[Reading], look: Look, policy: Policy, now: datetime) -> Situation:
    is_fresh = bool(readings) and now - readings[-1].timestamp <= policy.fresh_for
    newest = readings[-1] if is_fresh else None
    rate = rate_mg_dl_per_minute(readings) if newest else None
    prediction = _current(state.prediction, now)
    signals = dict.fromkeys(GLUCOSE_RULES, Signal.UNKNOWN)
    if newest is not None:
        signals |= _glucose_signals(readings, rate, prediction, policy.rules)
    signals[Rule.STALE] = _stale_signal(state, look, policy, now)
    # What is switched off while it goes on is over.
    signals |= dict.fromkeys(policy.rules.off, Signal.OVER)
    is_low = newest is not None and newest.glucose_mg_dl < policy.rules.low_mg_dl
    is_suspect = is_low and _may_be_compression(readings, policy)
    return Situation(newest, rate, is_suspect, prediction, signals)


def _glucose_signals(
    readings: list[Reading], rate: float | None, prediction: Prediction | None, rules: AlertRules
) -> dict[Rule, Signal]:
    recent = [each for each in readings if each.timestamp >= readings[-1].timestamp - REARM_WINDOW]
    is_steady = recent[-1].timestamp - recent[0].timestamp >= LEAST_REARM_SPAN
    lowest, highest = min(each.glucose_mg_dl for each in recent), max(each.glucose_mg_dl for each in recent)
    glucose = readings[-1].glucose_mg_dl

    def below(threshold: float) -> Signal:
        is_back = is_steady and lowest >= threshold + rules.rearm_mg_dl
        return Signal.HOLDS if glucose < threshold else Signal.OVER if is_back else Signal.BETWEEN

    def above(threshold: float) -> Signal:
        is_back = is_steady and highest <= threshold - rules.rearm_mg_dl
        return Signal.HOLDS if glucose > threshold else Signal.OVER if is_back else Signal.BETWEEN

    def changing(speed: float | None) -> Signal:
        if speed is None:
            return Signal.UNKNOWN
        threshold = rules.fast_change_mg_dl_per_minute
        return (
            Signal.HOLDS if speed >= threshold else Signal.OVER if speed < threshold - _RATE_REARM else Signal.BETWEEN
        )

    return {
        Rule.URGENT_LOW: below(rules.urgent_low_mg_dl),
        Rule.LOW: below(rules.low_mg_dl),
        Rule.PREDICTED_LOW: (
            # No forecast is no all-clear.
            Signal.UNKNOWN
            if prediction is None
            else Signal.HOLDS
            if prediction.glucose_mg_dl < rules.low_mg_dl
            else Signal.OVER
        ),
        Rule.FAST_FALL: changing(None if rate is None else -rate),
        Rule.URGENT_HIGH: above(rules.urgent_high_mg_dl),
        Rule.HIGH: above(rules.high_mg_dl),
        Rule.FAST_RISE: changing(rate),
    }


def _stale_signal(state: SiteState, look: Look, policy: Policy, now: datetime) -> Signal:
    """A server that cannot be read is silent, too; one that was never read gets the same time from the first look."""
    if policy.stale_minutes == 0:
        return Signal.OVER
    if state.last_reading is None and not look.error:
        return Signal.HOLDS
    heard = state.last_reading.timestamp if state.last_reading else state.first_look_at
    is_silent = heard is not None and now - heard > timedelta(minutes=policy.stale_minutes)
    return Signal.HOLDS if is_silent else Signal.OVER


def _current(prediction: Prediction | None, now: datetime) -> Prediction | None:
    if prediction is None or not now - OLDEST_PREDICTION <= prediction.made_at <= now + FUTURE_TOLERANCE:
        return None
    return prediction if now < prediction.timestamp <= now + PREDICTION_HORIZON else None


def _may_be_compression(readings: list[Reading], policy: Policy) -> bool:
    """A sudden low at night from a level that was held, no longer than half an hour ago: as `int_reading_flags`.

    Whether it comes back at once is not known yet.
    """
    low_mg_dl = policy.rules.low_mg_dl
    first = len(readings) - 1
    while first > 0 and readings[first - 1].glucose_mg_dl < low_mg_dl:
        first -= 1
    start, newest = readings[first].timestamp, readings[-1]
    before = [each for each in readings[:first] if each.timestamp >= start - timedelta(minutes=31)]
    just_before = [each for each in before if each.timestamp >= start - timedelta(minutes=16)]
    stretch = [*before, *readings[first:]]
    if not just_before or any(b.timestamp - a.timestamp > timedelta(minutes=20) for a, b in pairwise(stretch)):
        return False
    held = max(each.glucose_mg_dl for each in before)
    level = max(each.glucose_mg_dl for each in just_before)
    lowest = min(each.glucose_mg_dl for each in readings[first:])
    hour = newest.timestamp.astimezone(policy.timezone).hour
    is_night = hour >= 23 or hour < 7
    is_short = newest.timestamp - start <= timedelta(minutes=31)
    return is_night and is_short and level - lowest >= 30 and level >= held - 10


def _told_by(condition: Condition, worse: tuple[Condition, ...]) -> Condition:
    told = [each.last_told_at for each in worse if each.last_told_at and each.first_told_at]
    if not told:
        return condition
    last = max([*told, *([condition.last_told_at] if condition.last_told_at else [])])
    return replace(condition, first_told_at=condition.first_told_at or last, last_told_at=last)


def _is_acknowledged(rule: Rule, condition: Condition, now: datetime) -> bool:
    if condition.acknowledged_at is None:
        return False
    is_expired = now - condition.acknowledged_at >= LONGEST_URGENT_LOW_ACKNOWLEDGEMENT
    return not (rule is Rule.URGENT_LOW and is_expired)


def _has_passed(moment: datetime | None, span: timedelta, now: datetime) -> bool:
    # A clock that was far ahead must not silence anybody for years.
    return moment is None or abs(now - moment) >= span
