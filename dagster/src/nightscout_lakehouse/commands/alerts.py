"""`lakehouse alerts`: who is told, what goes on, snooze, acknowledge, and watching without Dagster."""

import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from nightscout_lakehouse.commands.shared import EXIT_FAILURE, console, prepare, says_what_went_wrong
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.settings import Settings

if TYPE_CHECKING:
    from nightscout_lakehouse.lib.alerts.store import AlertStore
    from nightscout_lakehouse.lib.alerts.targets import Target

alerts_app = typer.Typer(
    help="Alerts on glucose, silence and failed runs. No substitute for the sensor's own alarms.", no_args_is_help=True
)

# How alerts on runs are called where a site's name is asked for.
PIPELINE_NAME = "pipeline"
LONGEST_SNOOZE = timedelta(hours=24)
LONGEST_URGENT_LOW_SNOOZE = timedelta(hours=2)

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?:in)?)?")


class AlertsFormat(StrEnum):
    """How the list is printed."""

    TABLE = "table"
    JSON = "json"


@alerts_app.command("list")
@says_what_went_wrong
def list_alerts(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many messages to list.")] = 20,
    output: Annotated[AlertsFormat, typer.Option("--format", help="How to print.")] = AlertsFormat.TABLE,
) -> None:
    """Show who is told, how each site is watched, what goes on, and the newest messages with their delivery."""
    settings = prepare()
    from nightscout_lakehouse.lib.alerts.store import AlertStore
    from nightscout_lakehouse.lib.alerts.targets import load_targets

    targets = load_targets(settings)
    with AlertStore(settings.alerts_dir) as store:
        sites = _listed_sites(settings, store)
        content: dict[str, Any] = {
            "targets": [target.name for target in targets],
            "sites": _sites(store, sites),
            "active": _active(store, sites),
            "messages": store.recent_messages(limit),
        }
    if output is AlertsFormat.JSON:
        json.dump(content, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    console.print(f"Told: {', '.join(content['targets']) or 'nobody, LAKEHOUSE_ALERT_URLS is not set'}", markup=False)
    titles = ("site", "looked at", "newest reading", "mg/dL", "snoozed until", "problem")
    _print("Sites", titles, [list(each.values()) for each in content["sites"]])
    titles = ("site", "alert", "since", "told", "acknowledged", "escalated")
    _print("Going on", titles, [list(each.values()) for each in content["active"]])
    rows = [
        [each["created_at"], _shown(each["site"]), each["kind"], each["title"], _delivery_words(each["deliveries"])]
        for each in content["messages"]
    ]
    _print("Messages", ("time (UTC)", "site", "kind", "message", "delivery"), rows)


@alerts_app.command()
@says_what_went_wrong
def test() -> None:
    """Send a test message to every target, and say for each whether it arrived; 1 if one did not."""
    settings = prepare()
    from nightscout_lakehouse.lib.alerts.engine import Kind
    from nightscout_lakehouse.lib.alerts.targets import send
    from nightscout_lakehouse.lib.alerts.wording import NO_SUBSTITUTE, Text

    text = Text("Test of the alerts", f"This is how alerts of your Nightscout Lakehouse arrive.\n{NO_SUBSTITUTE}")
    has_failed = False
    for target in _needed_targets(settings):
        error = send(target, text, Kind.REMINDER)
        has_failed = has_failed or bool(error)
        console.print(f"{target.name}: {f'NOT delivered: {error}' if error else 'delivered'}", markup=False)
    if has_failed:
        raise typer.Exit(EXIT_FAILURE)


@alerts_app.command()
@says_what_went_wrong
def snooze(
    site: Annotated[str, typer.Argument(help="Name of the site, or `pipeline` for alerts on runs.")],
    duration: Annotated[str, typer.Option("--for", help="For how long: 30m, 2h, 1h30m.")] = "2h",
    urgent_low_too: Annotated[
        bool, typer.Option("--urgent-low-too", help="Also urgent lows; for two hours at the most.")
    ] = False,
    off: Annotated[bool, typer.Option("--off", help="End a snooze.")] = False,
) -> None:
    """Tell nobody of a site for a while. Urgent lows go on, unless you say otherwise."""
    settings = prepare()
    from nightscout_lakehouse.lib.alerts.store import AlertStore

    with AlertStore(settings.alerts_dir) as store:
        key = _key(site, settings, store)
        until = None if off else datetime.now(UTC) + _span(duration, is_urgent_low_too=urgent_low_too)
        with store.transaction():
            store.snooze(key, until, is_urgent_low_too=urgent_low_too and not off)
    if until is None:
        console.print(f"{site}: alerts are on.", markup=False)
        return
    still = "" if urgent_low_too or site == PIPELINE_NAME else " Urgent lows still go through."
    console.print(f"{site}: no alerts until {until:%Y-%m-%d %H:%M} UTC.{still}", markup=False)


@alerts_app.command()
@says_what_went_wrong
def ack(
    site: Annotated[str, typer.Argument(help="Name of the site, or `pipeline` for alerts on runs.")],
) -> None:
    """Acknowledge what goes on at a site: no reminders, no escalation. An urgent low comes again after an hour."""
    settings = prepare()
    from nightscout_lakehouse.lib.alerts.store import AlertStore

    with AlertStore(settings.alerts_dir) as store:
        key = _key(site, settings, store)
        with store.transaction():
            acknowledged = store.acknowledge(key, datetime.now(UTC))
    names = ", ".join(rule.value for rule, _ in acknowledged)
    console.print(f"{site}: {f'acknowledged: {names}' if names else 'there is nothing to acknowledge'}.", markup=False)


@alerts_app.command()
@says_what_went_wrong
def watch(
    every: Annotated[int, typer.Option("--every", min=10, max=3600, help="Seconds between two looks.")] = 60,
    once: Annotated[bool, typer.Option("--once", help="Look once and end, as for cron.")] = False,
) -> None:
    """Look at every server each minute and tell, without Dagster; `make dev` does the same by its sensor."""
    settings = prepare()
    from nightscout_lakehouse.lib.alerts.targets import check_targets
    from nightscout_lakehouse.lib.alerts.watch import watch_once

    check_targets(_needed_targets(settings))
    while True:
        started = time.monotonic()
        try:
            console.print(str(watch_once(settings)), markup=False, soft_wrap=True)
        except LakehouseError as error:
            if once:
                raise
            # A full disk or a file in use may be over at the next look; who watches must not leave.
            console.print(f"Error: {error}", markup=False, soft_wrap=True)
        if once:
            return
        time.sleep(max(0.0, every - (time.monotonic() - started)))


def _needed_targets(settings: Settings) -> "list[Target]":
    from nightscout_lakehouse.lib.alerts.targets import load_targets

    targets = load_targets(settings)
    if not targets:
        raise LakehouseError(
            "LAKEHOUSE_ALERT_URLS is not set: nobody would be told.", "See docs/guide/14-alerts.md for what it takes."
        )
    return targets


def _key(site: str, settings: Settings, store: "AlertStore") -> str:
    """What a site's alerts are kept under.

    Raises:
        LakehouseError: There is no such site.
    """
    from nightscout_lakehouse.lib.alerts.store import PIPELINE
    from nightscout_lakehouse.lib.sites import load_sites

    sites = sorted({*(each.name for each in load_sites(settings)), *store.known_sites()} - {PIPELINE})
    if site in sites:
        return site
    if site == PIPELINE_NAME:
        return PIPELINE
    raise LakehouseError(f"There is no site {site!r}.", f"There are: {', '.join([*sites, PIPELINE_NAME])}.")


def _span(text: str, *, is_urgent_low_too: bool) -> timedelta:
    match = _DURATION.fullmatch(text.strip().lower())
    span = timedelta(hours=int(match[1] or 0), minutes=int(match[2] or 0)) if match else timedelta()
    if not span:
        raise LakehouseError(f"--for {text!r} is no duration.", "Write 30m, 2h or 1h30m.")
    longest = LONGEST_URGENT_LOW_SNOOZE if is_urgent_low_too else LONGEST_SNOOZE
    if span > longest:
        raise LakehouseError(f"--for {text} is too long.", f"At most {longest.total_seconds() / 3600:.0f}h.")
    return span


def _listed_sites(settings: Settings, store: "AlertStore") -> list[str]:
    """Those that are configured; where there are none, whatever was looked at, such as the demo person."""
    from nightscout_lakehouse.lib.alerts.store import PIPELINE
    from nightscout_lakehouse.lib.sites import load_sites

    return sorted(site.name for site in load_sites(settings)) or [s for s in store.known_sites() if s != PIPELINE]


def _sites(store: "AlertStore", sites: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for site in sites:
        watched, state = store.watched_site(site), store.site_state(site)
        last = state.last_reading
        snoozed = state.snoozed_until if state.snoozed_until and state.snoozed_until > datetime.now(UTC) else None
        found.append(
            {
                "site": _shown(site),
                "looked_at": _time(watched.looked_at),
                "newest_reading": _time(last.timestamp if last else None),
                "glucose_mg_dl": last.glucose_mg_dl if last else None,
                "snoozed_until": _time(snoozed)
                + (", urgent lows too" if snoozed and state.is_urgent_low_snoozed else ""),
                "problem": watched.error,
            }
        )
    return found


def _active(store: "AlertStore", sites: Sequence[str]) -> list[dict[str, Any]]:
    from nightscout_lakehouse.lib.alerts.store import PIPELINE

    active = [
        (site, rule.value, condition) for site in sites for rule, condition in store.site_state(site).conditions.items()
    ]
    active += [(PIPELINE, f"{each.rule.value}: {each.subject}", each.condition) for each in store.failing()]
    return [
        {
            "site": _shown(site),
            "alert": alert,
            "since": _time(condition.since),
            "told": _time(condition.first_told_at) or "not yet",
            "acknowledged": _time(condition.acknowledged_at),
            "escalated": _time(condition.escalated_at),
        }
        for site, alert, condition in active
        if condition.is_active
    ]


def _delivery_words(deliveries: Sequence[dict[str, Any]]) -> str:
    words = []
    for each in deliveries:
        problem = f" after {each['attempts']} attempts: {each['error']}" if each["error"] else ""
        words.append(f"{each['target']} {each['state']}{problem}")
    return "; ".join(words)


def _shown(site: str) -> str:
    return site or PIPELINE_NAME


def _time(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    console.print()
    if not rows:
        console.print(f"{title}: none")
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape("" if value is None else str(value)) for value in row))
    console.print(table)
