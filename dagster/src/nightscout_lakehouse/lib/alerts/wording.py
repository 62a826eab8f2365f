"""What an alert says: a title that is enough on a locked screen, and a few lines below it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from nightscout_lakehouse.lib.alerts.engine import Event, Kind, Policy, SiteState, Situation
from nightscout_lakehouse.lib.alerts.rules import GLUCOSE_RULES, Look, Reading, Rule

# Nightscout's own factor.
MG_DL_PER_MMOL_L = 18.01559
NO_SUBSTITUTE = "No substitute for the sensor's own alarms. Not for dosing decisions."

_NAMES = {
    Rule.URGENT_LOW: "URGENT LOW",
    Rule.LOW: "Low",
    Rule.PREDICTED_LOW: "Low predicted",
    Rule.FAST_FALL: "Falling fast",
    Rule.URGENT_HIGH: "URGENT HIGH",
    Rule.HIGH: "High",
    Rule.FAST_RISE: "Rising fast",
    Rule.STALE: "No readings",
    Rule.PIPELINE_FAILURE: "Pipeline failed",
    Rule.DATA_QUALITY: "Data quality check failed",
}
_PREFIX = {Kind.RAISED: "", Kind.REMINDER: "Still: ", Kind.ESCALATED: "NOT ACKNOWLEDGED: ", Kind.RECOVERED: "Over: "}


@dataclass(frozen=True)
class Text:
    """A message: its title and the lines below."""

    title: str
    body: str


def site_text(
    site: str, event: Event, state: SiteState, situation: Situation, look: Look, policy: Policy, now: datetime
) -> Text:
    """The text for an event of a site."""
    if event.rule is Rule.STALE:
        return _stale_text(site, event, state, look, policy, now)
    newest = situation.newest or state.last_reading
    value = _value(newest) if newest else "no reading"
    title = f"{_PREFIX[event.kind]}{_NAMES[event.rule]}: {site} {value}"
    lines = [] if newest is None else [_reading_line(newest, situation, policy, now)]
    lines.append(_threshold_line(event.rule, policy))
    if event.rule is Rule.PREDICTED_LOW and situation.prediction is not None:
        expected = situation.prediction
        lines.append(
            f"Forecast: {glucose(expected.glucose_mg_dl)} at {_local(expected.timestamp, policy)}. "
            "Forecasts are often wrong."
        )
    if situation.is_compression_suspect and event.kind is not Kind.RECOVERED:
        lines.append("May be a compression low (the sensor is lain on): a sudden drop at night. Check all the same.")
    if event.kind is Kind.RECOVERED:
        going_on = [_NAMES[rule].lower() for rule in GLUCOSE_RULES if state.condition(rule).is_active]
        if going_on:
            lines.append(f"Goes on: {', '.join(going_on)}.")
    return Text(title, "\n".join([*lines, *_what_to_do(event, site), NO_SUBSTITUTE]))


def stale_texts_as_one(texts: Sequence[tuple[str, Text]], kind: Kind) -> Text:
    """One message for many sites that went silent, or came back, at the same look: their cause is most often one.

    Args:
        texts: Site and message of each.
        kind: What is told of all of them.
    """
    sites = [site for site, _ in texts]
    shown = ", ".join(sites[:10]) + (f" and {len(sites) - 10} more" if len(sites) > 10 else "")
    title = f"{_PREFIX[kind]}{_NAMES[Rule.STALE]}: {len(sites)} sites"
    return Text(title, f"{shown}.\n`lakehouse alerts list` shows each.\n{NO_SUBSTITUTE}")


def pipeline_text(rule: Rule, kind: Kind, job: str, detail: str, link: str) -> Text:
    """The text for a run that failed, or for a job that succeeds again.

    Args:
        rule: Whether a step or a critical check failed.
        kind: What is told.
        job: Name of the job.
        detail: What failed and why, in one line; empty where it is over.
        link: Address of the run; empty for none.
    """
    title = f"{_PREFIX[kind]}{_NAMES[rule]}: {job}"
    lines = [detail] if kind is not Kind.RECOVERED else [f"{job} succeeds again. It had failed by: {detail}"]
    if link:
        lines.append(f"Run: {link}")
    if kind is not Kind.RECOVERED:
        lines.append("Acknowledge: lakehouse alerts ack pipeline")
    return Text(title, "\n".join(lines))


def delayed(text: Text, late: timedelta) -> Text:
    """A message that could not be delivered when it was due says so."""
    return Text(f"[{duration(late)} late] {text.title}", text.body)


def glucose(mg_dl: float) -> str:
    """A value in both units."""
    return f"{mg_dl:.0f} mg/dL ({mg_dl / MG_DL_PER_MMOL_L:.1f} mmol/L)"


def duration(span: timedelta) -> str:
    """A span as people say it."""
    minutes = max(0, round(span.total_seconds() / 60))
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} days"


def _value(reading: Reading) -> str:
    return reading.said or glucose(reading.glucose_mg_dl)


def _reading_line(reading: Reading, situation: Situation, policy: Policy, now: datetime) -> str:
    line = f"{_value(reading)} at {_local(reading.timestamp, policy)}, "
    line += f"{duration(now - reading.timestamp)} ago"
    if reading.said:
        return f"{line}: {'below' if reading.said == 'LOW' else 'above'} what the sensor measures."
    rate = situation.rate_mg_dl_per_minute
    if rate is None:
        return f"{line}; its trend is not known."
    if abs(rate) < 0.5:
        return f"{line}; steady."
    word = "falling" if rate < 0 else "rising"
    return f"{line}; {word} {abs(rate):.1f} mg/dL ({abs(rate) / MG_DL_PER_MMOL_L:.2f} mmol/L) per minute."


def _threshold_line(rule: Rule, policy: Policy) -> str:
    rules = policy.rules
    rate = rules.fast_change_mg_dl_per_minute
    speed = f"{rate:g} mg/dL ({rate / MG_DL_PER_MMOL_L:.2f} mmol/L) per minute over 15 minutes or faster"
    threshold = {
        Rule.URGENT_LOW: f"below {glucose(rules.urgent_low_mg_dl)}",
        Rule.LOW: f"below {glucose(rules.low_mg_dl)}",
        Rule.PREDICTED_LOW: f"below {glucose(rules.low_mg_dl)} within half an hour",
        Rule.FAST_FALL: speed,
        Rule.URGENT_HIGH: f"above {glucose(rules.urgent_high_mg_dl)}",
        Rule.HIGH: f"above {glucose(rules.high_mg_dl)}",
        Rule.FAST_RISE: speed,
    }[rule]
    return f"Alert: {threshold}."


def _stale_text(site: str, event: Event, state: SiteState, look: Look, policy: Policy, now: datetime) -> Text:
    title = f"{_PREFIX[event.kind]}{_NAMES[Rule.STALE]}: {site}"
    last = state.last_reading
    if event.kind is Kind.RECOVERED:
        line = (
            f"The newest reading is from {_local(last.timestamp, policy)}." if last else "It is not watched any more."
        )
        return Text(title, line)
    if last is None:
        lines = [f"No reading within the last {duration(timedelta(minutes=policy.stale_minutes))}."]
    else:
        ago = duration(now - last.timestamp)
        lines = [f"The newest reading is {ago} old ({_local(last.timestamp, policy, with_date=True)})."]
    if look.error:
        lines.append(look.error)
    if look.refused:
        lines.append(f"Newer documents are no readings: {', '.join(look.refused)}.")
    lines.append("Nothing is known of glucose now: no alert on it can come.")
    return Text(title, "\n".join([*lines, *_what_to_do(event, site), NO_SUBSTITUTE]))


def _what_to_do(event: Event, site: str) -> list[str]:
    return [] if event.kind is Kind.RECOVERED else [f"Acknowledge: lakehouse alerts ack {site}"]


def _local(moment: datetime, policy: Policy, *, with_date: bool = False) -> str:
    form = "%Y-%m-%d %H:%M" if with_date else "%H:%M"
    return f"{moment.astimezone(policy.timezone):{form}} {policy.timezone.key}"
