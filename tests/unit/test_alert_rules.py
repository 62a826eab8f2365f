"""The state machine of the alerts: what is told, when, and that nobody is flooded, whatever the sensor does."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nightscout_lakehouse.lib.alerts.engine import Event, Kind, Policy, SiteState, Situation, look_at
from nightscout_lakehouse.lib.alerts.policy import policy_of
from nightscout_lakehouse.lib.alerts.rules import (
    COOL_DOWN,
    ESCALATING,
    SITE_RULES,
    WORSE,
    AlertRules,
    Look,
    Prediction,
    Reading,
    Rule,
)
from nightscout_lakehouse.lib.alerts.wording import glucose, site_text
from nightscout_lakehouse.lib.errors import ConfigurationError
from nightscout_lakehouse.lib.settings import load_settings
from nightscout_lakehouse.lib.sites import load_sites

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
Told = list[tuple[int, Rule, Kind]]


def readings(values: Iterable[float], end: datetime, every: int = 5) -> tuple[Reading, ...]:
    held = list(values)
    return tuple(Reading(end - (len(held) - 1 - i) * every * MINUTE, value) for i, value in enumerate(held))


class Watcher:
    """Looks at a made-up sensor and keeps what was told, with the minute of each."""

    def __init__(self, policy: Policy | None = None, start: datetime = NOON) -> None:
        self.policy, self.start, self.now = policy or Policy(), start, start
        self.state, self.seen = SiteState(), list[Reading]()
        self.told: Told = []
        self.last: tuple[Look, Situation, list[Event]] = (Look(), Situation(None, None, False, None, {}), [])

    def sees(
        self, *values: float | None, every: int = 5, error: str = "", prediction: Prediction | None = None
    ) -> Told:
        """Each value is a reading, None a gap; a look follows each. Returns what these looks told."""
        before = len(self.told)
        for value in values:
            self.now += every * MINUTE
            if value is not None:
                self.seen.append(Reading(self.now, value))
            self.look(error=error, prediction=prediction)
        return self.told[before:]

    def look(self, *, error: str = "", prediction: Prediction | None = None) -> None:
        recent = () if error else tuple(each for each in self.seen if each.timestamp > self.now - 60 * MINUTE)
        look = Look(recent, error=error, prediction=prediction)
        self.state, events, situation = look_at(self.state, look, self.policy, self.now)
        minute = round((self.now - self.start) / MINUTE)
        self.told += [(minute, event.rule, event.kind) for event in events]
        self.last = (look, situation, events)

    def text(self) -> str:
        look, situation, events = self.last
        texts = [site_text("anna", e, self.state, situation, look, self.policy, self.now) for e in events]
        return "\n".join(f"{text.title}\n{text.body}" for text in texts)


def kinds(told: Told) -> list[tuple[Rule, Kind]]:
    return [(rule, kind) for _, rule, kind in told]


def falling_to(value: float) -> Sequence[float]:
    """Slowly, so that nothing but the value is told."""
    return [value + 25 - 5 * step for step in range(6)]


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        *((53.9, Rule.URGENT_LOW), (54, Rule.LOW), (69.9, Rule.LOW), (70, None)),
        *((250, None), (250.1, Rule.HIGH), (300, Rule.HIGH), (300.1, Rule.URGENT_HIGH)),
    ],
)
def test_each_threshold_belongs_to_the_better_side(value: float, rule: Rule | None) -> None:
    assert kinds(Watcher().sees(value)) == ([(rule, Kind.RAISED)] if rule else [])


def test_the_worse_alert_says_the_lesser_and_ends_before_it() -> None:
    watcher = Watcher()
    assert kinds(watcher.sees(72, 68)) == [(Rule.LOW, Kind.RAISED)]
    assert kinds(watcher.sees(60, 53)) == [(Rule.URGENT_LOW, Kind.RAISED)]
    assert kinds(watcher.sees(65, 66, 66)) == []
    # The low has been told for half an hour, and nobody has acknowledged it.
    assert kinds(watcher.sees(66)) == [(Rule.URGENT_LOW, Kind.RECOVERED), (Rule.LOW, Kind.ESCALATED)]
    assert "Goes on: low" in watcher.text()
    assert watcher.sees(82, 84, 85) == []
    assert kinds(watcher.sees(88)) == [(Rule.LOW, Kind.RECOVERED)]
    assert watcher.last[2][0].is_for_escalation_too


def test_what_recovers_at_once_is_told_once() -> None:
    watcher = Watcher()
    watcher.sees(50)
    # Nor does anybody have to know that glucose rises fast out of a low.
    assert kinds(watcher.sees(95, 95, 96, 97)) == [(Rule.URGENT_LOW, Kind.RECOVERED)]


def test_swinging_around_a_threshold_is_one_episode() -> None:
    watcher = Watcher()
    told = watcher.sees(*[69, 71] * 30)
    assert kinds(told)[0] == (Rule.LOW, Kind.RAISED)
    assert {kind for _, kind in kinds(told)} <= {Kind.RAISED, Kind.REMINDER, Kind.ESCALATED}
    assert kinds(told).count((Rule.LOW, Kind.RAISED)) == 1


def test_a_lasting_urgent_low_is_told_again_after_the_cool_down_and_escalated() -> None:
    told = Watcher().sees(*[50] * 13)
    assert told == [
        (5, Rule.URGENT_LOW, Kind.RAISED),
        (20, Rule.URGENT_LOW, Kind.REMINDER),
        (20, Rule.URGENT_LOW, Kind.ESCALATED),
        (35, Rule.URGENT_LOW, Kind.REMINDER),
        (50, Rule.URGENT_LOW, Kind.REMINDER),
        (65, Rule.URGENT_LOW, Kind.REMINDER),
    ]


def test_acknowledged_is_neither_told_again_nor_escalated_but_an_urgent_low_only_for_an_hour() -> None:
    watcher = Watcher()
    watcher.sees(50)
    low = watcher.state.condition(Rule.URGENT_LOW)
    held = {
        rule: replace(c, acknowledged_at=watcher.now) for rule, c in watcher.state.conditions.items() if c.is_active
    }
    assert low.is_active
    watcher.state = replace(watcher.state, conditions={**watcher.state.conditions, **held})
    assert watcher.sees(*[50] * 11) == []
    assert kinds(watcher.sees(50)) == [(Rule.URGENT_LOW, Kind.REMINDER), (Rule.URGENT_LOW, Kind.ESCALATED)]
    # The next episode is a new one.
    watcher.sees(100, 100, 100, 100)
    assert (Rule.URGENT_LOW, Kind.RAISED) in kinds(watcher.sees(50, 50))


def test_an_old_reading_is_stale_and_not_low_now() -> None:
    watcher = Watcher()
    watcher.seen = [Reading(NOON - 180 * MINUTE, 45)]
    watcher.seen[0] = Reading(NOON - 50 * MINUTE, 45)
    watcher.look()
    assert watcher.told == []
    assert kinds(watcher.sees(None, None, None)) == [(Rule.STALE, Kind.RAISED)]
    assert "Nothing is known of glucose now" in watcher.text()
    assert "newest reading is 65 min old" in watcher.text()


def test_old_lows_that_a_first_look_or_a_backfill_brings_raise_nothing() -> None:
    watcher = Watcher()
    watcher.seen = list(readings([40, 40, 40, 40, 110, 112, 111, 110], NOON))
    watcher.look()
    assert watcher.told == []


def test_a_reading_of_the_future_is_no_reading() -> None:
    watcher = Watcher()
    watcher.sees(110)
    watcher.seen.append(Reading(watcher.now + 10 * MINUTE, 40))
    watcher.look()
    assert watcher.told == []
    assert watcher.state.last_reading == Reading(watcher.now, 110)


def test_after_a_gap_one_good_reading_is_not_yet_a_recovery() -> None:
    watcher = Watcher()
    watcher.sees(65)
    # Nobody knows that it is over, so others are told; and no reminder says what is not known any more.
    assert watcher.sees(*[None] * 8) == [(20, Rule.LOW, Kind.ESCALATED)]
    assert watcher.sees(120) == []
    assert kinds(watcher.sees(120, 121)) == [(Rule.LOW, Kind.RECOVERED)]


def test_an_urgent_low_whose_readings_stop_is_told_on() -> None:
    watcher = Watcher(Policy(escalate_minutes=30, stale_minutes=60))
    assert watcher.sees(45) == [(5, Rule.URGENT_LOW, Kind.RAISED)]
    told = watcher.sees(*[None] * 12)
    assert (20, Rule.URGENT_LOW, Kind.REMINDER) in told
    assert (35, Rule.URGENT_LOW, Kind.ESCALATED) in told
    assert "min ago" in watcher.text() or told[-1][1] is Rule.STALE
    # A new reading decides.
    assert (Rule.URGENT_LOW, Kind.RECOVERED) in kinds(watcher.sees(120, 121, 122, 122))


def test_a_fast_fall_is_told_with_its_rate_in_both_units_but_not_within_a_low() -> None:
    watcher = Watcher()
    assert kinds(watcher.sees(140, 120, 100)) == [(Rule.FAST_FALL, Kind.RAISED)]
    assert "falling 4.0 mg/dL (0.22 mmol/L) per minute" in watcher.text()
    assert (Rule.LOW, Kind.RAISED) in kinds(watcher.sees(80, 60))
    assert not [rule for rule, kind in kinds(watcher.sees(40)) if rule is Rule.FAST_FALL]


def test_a_rate_needs_a_quarter_of_an_hour_without_a_jump_over_a_gap() -> None:
    assert Watcher().sees(200, 150) == []
    watcher = Watcher()
    watcher.sees(200)
    assert kinds(watcher.sees(100, every=45)) == []


def test_a_predicted_low_is_told_where_there_is_a_forecast_and_only_a_current_one() -> None:
    def forecast(watcher: Watcher, made_ago: int, minutes: int, value: float) -> Told:
        at = watcher.now + 5 * MINUTE
        return watcher.sees(95, prediction=Prediction(at - made_ago * MINUTE, at + minutes * MINUTE, value))

    assert kinds(forecast(Watcher(), 5, 20, 62)) == [(Rule.PREDICTED_LOW, Kind.RAISED)]
    assert forecast(Watcher(), 5, 20, 75) == []
    assert forecast(Watcher(), 90, 20, 62) == []
    assert forecast(Watcher(), 5, 50, 62) == []
    assert forecast(Watcher(), 5, -5, 62) == []
    watcher = Watcher()
    forecast(watcher, 5, 20, 62)
    assert "Forecast: 62 mg/dL (3.4 mmol/L) at 12:25 UTC" in watcher.text()
    # A forecast that ran out is no all-clear.
    silent = Watcher()
    forecast(silent, 5, 20, 62)
    assert silent.sees(*[95] * 12) == []
    # It stays until a newer one or its time comes, also where the table cannot be read for a while.
    assert watcher.sees(95, 94) == []
    assert (Rule.LOW, Kind.RAISED) in kinds(watcher.sees(66))


def test_quiet_hours_hold_back_all_but_an_urgent_low_until_they_end() -> None:
    night = AlertRules(quiet_from=time(22), quiet_to=time(7))
    berlin = Policy(rules=night, timezone=ZoneInfo("Europe/Berlin"), stale_minutes=60)
    # 05:00 in Berlin.
    watcher = Watcher(berlin, datetime(2026, 3, 10, 4, tzinfo=UTC))
    assert watcher.sees(*[260] * 23) == []
    assert kinds(watcher.sees(*[260] * 2)) == [(Rule.HIGH, Kind.RAISED)]
    watcher = Watcher(berlin, datetime(2026, 3, 10, 1, tzinfo=UTC))
    assert kinds(watcher.sees(65, 60, 52)) == [(Rule.URGENT_LOW, Kind.RAISED)]


def test_a_snooze_holds_back_and_then_tells_what_still_goes_on() -> None:
    watcher = Watcher()
    watcher.state = replace(watcher.state, snoozed_until=NOON + 60 * MINUTE)
    assert watcher.sees(*[260] * 11) == []
    assert kinds(watcher.sees(260)) == [(Rule.HIGH, Kind.RAISED)]
    watcher = Watcher()
    watcher.state = replace(watcher.state, snoozed_until=NOON + 60 * MINUTE)
    assert kinds(watcher.sees(50)) == [(Rule.URGENT_LOW, Kind.RAISED)]
    watcher = Watcher()
    watcher.state = replace(watcher.state, snoozed_until=NOON + 60 * MINUTE, is_urgent_low_snoozed=True)
    assert watcher.sees(*[50] * 11) == []


def test_silence_is_told_with_its_reason_and_its_end() -> None:
    watcher = Watcher()
    watcher.sees(110)
    assert kinds(watcher.sees(*[None] * 13, error="Site anna: refused.")) == [(Rule.STALE, Kind.RAISED)]
    assert "Site anna: refused." in watcher.text()
    assert kinds(watcher.sees(110)) == [(Rule.STALE, Kind.RECOVERED)]


def test_a_server_that_was_never_read_gets_its_time_and_one_without_readings_is_silent() -> None:
    watcher = Watcher()
    assert watcher.sees(*[None] * 12, error="unreachable") == []
    assert kinds(watcher.sees(None, None, error="unreachable")) == [(Rule.STALE, Kind.RAISED)]
    watcher = Watcher()
    assert kinds(watcher.sees(None)) == [(Rule.STALE, Kind.RAISED)]
    assert Watcher(Policy(stale_minutes=0)).sees(None) == []


def test_a_rule_that_is_switched_off_tells_nothing_and_ends_what_goes_on() -> None:
    watcher = Watcher()
    watcher.sees(260)
    watcher.policy = Policy(rules=AlertRules(off=(Rule.HIGH,)))
    assert kinds(watcher.sees(270)) == [(Rule.HIGH, Kind.RECOVERED)]
    assert watcher.sees(280) == []


def test_a_sudden_low_at_night_is_told_with_the_suspicion_and_a_slow_one_without() -> None:
    # 03:00, and a drop from a held level.
    watcher = Watcher(start=datetime(2026, 3, 10, 3, tzinfo=UTC))
    watcher.sees(112, 111, 110, 110, 109, 62)
    assert kinds(watcher.told)[-1] == (Rule.LOW, Kind.RAISED)
    assert "May be a compression low" in watcher.text()
    slow = Watcher(start=datetime(2026, 3, 10, 3, tzinfo=UTC))
    slow.sees(*range(110, 64, -5))
    assert "compression" not in slow.text()
    day = Watcher()
    day.sees(112, 111, 110, 110, 109, 62)
    assert "compression" not in day.text()


def test_a_clock_that_was_ahead_silences_nobody() -> None:
    watcher = Watcher(start=NOON + timedelta(days=400))
    watcher.sees(50)
    watcher.now, watcher.start, watcher.seen = NOON, NOON, []
    assert (Rule.URGENT_LOW, Kind.REMINDER) in kinds(watcher.sees(50))


@pytest.mark.parametrize(
    "wrong",
    [
        {"low_mg_dl": 50},
        {"urgent_high_mg_dl": 200},
        {"low_mg_dl": 120, "high_mg_dl": 130},
        {"urgent_low_mg_dl": 3.0},
        {"quiet_from": "22:00"},
        {"off": ["pipeline_failure"]},
        {"lows": 70},
    ],
)
def test_thresholds_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AlertRules.model_validate(wrong)


def test_a_site_has_its_own_thresholds_and_the_settings_where_it_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sites.toml"
    file.write_text(
        '[[sites]]\nname = "anna"\nurl = "https://anna.example.org"\n'
        '[sites.alerts]\nlow_mg_dl = 80\nstale_minutes = 20\nquiet_from = "23:00"\nquiet_to = 06:00:00\n'
        'off = ["fast_rise"]\n[[sites]]\nname = "ben"\nurl = "https://ben.example.org"\n'
    )
    monkeypatch.setenv("LAKEHOUSE_ALERT_QUIET_HOURS", "22:00-07:00")
    monkeypatch.setenv("LAKEHOUSE_ALERT_ESCALATION_URLS", "json://localhost")
    held = load_settings()
    anna, ben = (policy_of(site, held, "Europe/Berlin") for site in load_sites(held))
    assert (anna.rules.low_mg_dl, ben.rules.low_mg_dl) == (80, 70)
    assert (anna.stale_minutes, ben.stale_minutes) == (20, 60)
    assert (anna.rules.quiet_from, anna.rules.quiet_to) == (time(23), time(6))
    assert (ben.rules.quiet_from, ben.rules.quiet_to) == (time(22), time(7))
    assert anna.rules.off == (Rule.FAST_RISE,)
    assert ben.escalate_minutes == 15
    monkeypatch.delenv("LAKEHOUSE_ALERT_ESCALATION_URLS")
    assert policy_of(load_sites(held)[0], load_settings(), "UTC").escalate_minutes is None
    file.write_text(file.read_text().replace("low_mg_dl = 80", "low_mg_dl = 4.4"))
    with pytest.raises(ConfigurationError, match=r"sites\.toml, key sites\.0\.alerts\.low_mg_dl"):
        load_sites(held)


def test_both_units_are_shown() -> None:
    assert glucose(54) == "54 mg/dL (3.0 mmol/L)"


values = st.one_of(st.none(), st.floats(40, 400), st.sampled_from([53.0, 55.0, 69.0, 71.0, 249.0, 251.0]))
walks = st.lists(st.tuples(values, st.integers(1, 20)), min_size=1, max_size=120)


# High is raised and over, then told by an urgent high, whose end is not yet its own.
twice_high = [(251.0, 1), (40.0, 3), (40.0, 16), (301.0, 1), (241.0, 5), (40.0, 13), (40.0, 9)]


@settings(max_examples=150, deadline=None)
@given(walks, st.sets(st.integers(0, 119)), st.booleans())
@example(twice_high, set(), False)
def test_whatever_comes_nobody_is_flooded_and_every_alert_re_arms(
    walk: list[tuple[float | None, int]], acknowledged: set[int], has_quiet_hours: bool
) -> None:
    rules = AlertRules(quiet_from=time(13), quiet_to=time(15)) if has_quiet_hours else AlertRules()
    watcher = Watcher(Policy(rules=rules))
    for step, (value, minutes) in enumerate(walk):
        watcher.sees(value, every=minutes)
        if step in acknowledged:
            held = {rule: replace(c, acknowledged_at=watcher.now) for rule, c in watcher.state.conditions.items()}
            watcher.state = replace(watcher.state, conditions=held)
    for rule in SITE_RULES:
        told = [(minute, kind) for minute, each, kind in watcher.told if each is rule]
        alarms = [minute for minute, kind in told if kind in (Kind.RAISED, Kind.REMINDER)]
        assert all(b - a >= COOL_DOWN[rule] / MINUTE for a, b in pairwise(alarms)), rule
        # Raised, by itself or with a worse one, reminders and at most one escalation, recovered: then raised again.
        episodes = [
            kind
            for _, each, kind in watcher.told
            if (kind is Kind.RAISED and each in (rule, *WORSE.get(rule, ())))
            or (kind is Kind.RECOVERED and each is rule)
        ]
        assert not any(a is b is Kind.RECOVERED for a, b in pairwise(episodes)), rule
        escalations = sum(kind is Kind.ESCALATED for _, kind in told)
        assert escalations <= max(1, len(alarms))
        assert not escalations or rule in ESCALATING
    quiet = [rule for minute, rule, _ in watcher.told if has_quiet_hours and 60 <= minute < 180]
    assert set(quiet) <= {Rule.URGENT_LOW}


@settings(max_examples=100, deadline=None)
@given(walks, st.floats(40, 53.9))
def test_after_whatever_came_an_urgent_low_is_told_within_its_cool_down(
    walk: list[tuple[float | None, int]], glucose_mg_dl: float
) -> None:
    watcher = Watcher()
    for value, minutes in walk:
        watcher.sees(value, every=minutes)
    told = [minute for minute, rule, kind in watcher.told if rule is Rule.URGENT_LOW and kind is not Kind.RECOVERED]
    before = round((watcher.now - NOON) / MINUTE)
    watcher.sees(*[glucose_mg_dl] * 16, every=1)
    after = [minute for minute, rule, kind in watcher.told if rule is Rule.URGENT_LOW and kind is not Kind.RECOVERED]
    assert len(after) > len(told)
    assert after[len(told)] - before <= COOL_DOWN[Rule.URGENT_LOW] / MINUTE
