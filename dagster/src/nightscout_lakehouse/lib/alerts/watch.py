"""One look at every site: read its newest entries, decide, remember, tell."""

import logging
import time as clock
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import rmtree

from filelock import FileLock, Timeout

from nightscout_lakehouse.lib.alerts.delivery import Send, deliver
from nightscout_lakehouse.lib.alerts.engine import Event, Kind, Policy, look_at
from nightscout_lakehouse.lib.alerts.live_readings import POLICY, judge, read_newest
from nightscout_lakehouse.lib.alerts.policy import policy_of
from nightscout_lakehouse.lib.alerts.predictions import lowest_predictions
from nightscout_lakehouse.lib.alerts.rules import Look, Rule
from nightscout_lakehouse.lib.alerts.runs import runs_to_tell
from nightscout_lakehouse.lib.alerts.store import PIPELINE, AlertStore, Draft, WatchedSite
from nightscout_lakehouse.lib.alerts.targets import Target, load_targets, send, targets_of
from nightscout_lakehouse.lib.alerts.wording import Text, site_text, stale_texts_as_one
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.ingestion import load_state
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import AuthenticationError, NightscoutClient
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site, canonical_timezone, load_sites

logger = logging.getLogger(__name__)

# Sites that are not begun by then come first at the next look: a look has to end within its minute.
_READ_SECONDS = 20
_SITES_AT_ONCE = 8
# Nightscout delays every request after a refused login, for everybody at this address.
_AFTER_REFUSAL = timedelta(minutes=30)
# From so many sites on that fall silent at one look, one message tells of all.
_MANY_SITES = 4


@dataclass(frozen=True)
class Watched:
    """What one look did.

    Attributes:
        sites: Sites that were looked at.
        unreadable: Those whose server could not be read.
        told: Titles of the messages that followed.
        delivered: Deliveries that went through, of these messages or older ones.
        undelivered: Deliveries that failed, by target, with the reason.
        skipped: Why nothing was done; empty if something was.
    """

    sites: int = 0
    unreadable: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    delivered: int = 0
    undelivered: tuple[str, ...] = ()
    skipped: str = ""

    def __str__(self) -> str:
        if self.skipped:
            return self.skipped
        parts = [f"{self.sites} sites looked at"]
        if self.unreadable:
            parts.append(f"not readable: {', '.join(self.unreadable)}")
        parts.append(f"alerts: {'; '.join(self.told)}" if self.told else "nothing to tell")
        if self.delivered:
            parts.append(f"{self.delivered} delivered")
        return ", ".join([*parts, *(f"NOT delivered to {each}" for each in self.undelivered)])


@dataclass(frozen=True)
class _Found:
    site: Site
    look: Look
    watched: WatchedSite
    policy: Policy


def watch_once(
    settings: Settings,
    *,
    sites: Sequence[Site] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    deliver_by: Send = send,
) -> Watched:
    """Look at every site once and tell what follows; does nothing where nobody would be told.

    Args:
        settings: Whose sites and targets.
        sites: The sites; those of the settings if None.
        now: The clock.
        deliver_by: What sends a message.

    Raises:
        LakehouseError: The configuration is wrong, or the state cannot be kept. A site that cannot be read and a
            message that cannot be delivered are no errors.
    """
    targets = load_targets(settings)
    if not targets:
        return Watched(skipped="LAKEHOUSE_ALERT_URLS is not set: nobody would be told.")
    with AlertStore(settings.alerts_dir) as store:
        lock = FileLock(settings.alerts_dir / "watch.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return Watched(skipped="Another look is under way.")
        try:
            with _scratch(settings.alerts_dir) as scratch:
                found = _look_at_sites(
                    settings, scratch, load_sites(settings) if sites is None else sites, store, now()
                )
            found = _with_predictions(found, settings, now())
            with store.transaction():
                drafts = _decide(found, store, targets, now())
                drafts += runs_to_tell(settings, store, targets, now())
                store.put(drafts, now())
            for draft in drafts:
                logger.warning("alert: %s", draft.text.title)
            delivered, undelivered = deliver(store, targets, now=now, deliver_by=deliver_by)
        finally:
            lock.release()
    return Watched(
        sites=len(found),
        unreadable=tuple(each.site.name for each in found if each.look.error),
        told=tuple(draft.text.title for draft in drafts),
        delivered=delivered,
        undelivered=undelivered,
    )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for files of a moment; what a killed look left there is removed."""
    scratch = folder / "looks"
    rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    yield scratch
    rmtree(scratch, ignore_errors=True)


def _look_at_sites(
    settings: Settings, scratch: Path, sites: Sequence[Site], store: AlertStore, now: datetime
) -> list[_Found]:
    """Read the sites, the one that has waited longest first; what is not begun in time is left for the next look."""
    deadline = clock.monotonic() + _READ_SECONDS
    remembered = {site.name: store.watched_site(site.name) for site in sites}
    never = datetime.min.replace(tzinfo=UTC)
    by_wait = sorted(sites, key=lambda site: remembered[site.name].looked_at or never)
    resting = {
        name
        for name, each in remembered.items()
        if each.resume_at is not None and now < each.resume_at <= now + _AFTER_REFUSAL
    }

    def look(site: Site) -> _Found | None:
        if clock.monotonic() > deadline:
            return None
        watched = _with_timezone(site, remembered[site.name], settings, now)
        policy = policy_of(site, settings, watched.timezone or "UTC")
        if site.name in resting:
            return _Found(site, Look(error=watched.error), watched, policy)
        span = timedelta(minutes=policy.stale_minutes)
        try:
            with NightscoutClient(site, POLICY) as client:
                documents = read_newest(client, span, now)
            found = judge(documents, site, watched.timezone or "UTC", now, scratch)
            resume_at = None
        except LakehouseError as error:
            found = Look(error=str(error))
            resume_at = now + _AFTER_REFUSAL if isinstance(error, AuthenticationError) else None
        except Exception as error:
            # A fault of ours with one person's data must not silence the others' alerts.
            logger.exception("site %s: looking at it failed", site.name)
            found, resume_at = Look(error=f"Site {site.name}: {type(error).__name__} while looking at it."), None
        return _Found(site, found, replace(watched, error=found.error, resume_at=resume_at, looked_at=now), policy)

    with ThreadPoolExecutor(max_workers=_SITES_AT_ONCE, thread_name_prefix="look") as pool:
        return [found for found in pool.map(look, by_wait) if found is not None]


def _with_timezone(site: Site, watched: WatchedSite, settings: Settings, now: datetime) -> WatchedSite:
    """With the zone of the configuration, else that of the profile as the pipeline read it; asked for once an hour."""
    if site.timezone is not None:
        return replace(watched, timezone=site.timezone)
    if watched.timezone and watched.looked_at is not None and watched.looked_at.hour == now.hour:
        return watched
    try:
        profile_zone = load_state(Lake.open(settings), site.name).timezone
    except (LakehouseError, OSError):
        # A lake that is down or cannot be read is no reason to look away.
        return watched
    return replace(watched, timezone=(canonical_timezone(profile_zone) if profile_zone else None) or watched.timezone)


def _with_predictions(found: Sequence[_Found], settings: Settings, now: datetime) -> list[_Found]:
    wanted = {each.site.name for each in found if Rule.PREDICTED_LOW not in each.policy.rules.off}
    lowest = lowest_predictions(settings, wanted, now)
    return [replace(each, look=replace(each.look, prediction=lowest.get(each.site.name))) for each in found]


def _decide(found: Sequence[_Found], store: AlertStore, targets: Sequence[Target], now: datetime) -> list[Draft]:
    """Take every look in, within the caller's transaction: what was acknowledged meanwhile counts."""
    drafts = list[Draft]()
    for each in found:
        before = store.site_state(each.site.name)
        after, events, situation = look_at(before, each.look, each.policy, now)
        store.keep_site(each.site.name, after, each.watched)
        for event in events:
            text = site_text(each.site.name, event, after, situation, each.look, each.policy, now)
            drafts.append(_draft(each.site.name, event, text, targets))
    return _merged(drafts)


def _draft(site: str, event: Event, text: Text, targets: Sequence[Target]) -> Draft:
    names = targets_of(event.kind, targets, is_for_escalation_too=event.is_for_escalation_too)
    return Draft(site, event.rule, event.kind, text, names)


def _merged(drafts: list[Draft]) -> list[Draft]:
    """One message in place of many on sites that fall silent, or come back, at the same look."""
    merged = [draft for draft in drafts if draft.rule is not Rule.STALE]
    silent: dict[tuple[Kind, tuple[str, ...]], list[Draft]] = {}
    for draft in drafts:
        if draft.rule is Rule.STALE:
            silent.setdefault((draft.kind, draft.targets), []).append(draft)
    for (kind, targets), group in silent.items():
        if len(group) < _MANY_SITES:
            merged += group
            continue
        text = stale_texts_as_one([(draft.site, draft.text) for draft in group], kind)
        # Its own subject, or what is told of other sites would take its place before it is sent.
        subject = f"{kind.value}: {', '.join(draft.site for draft in group)}"
        merged.append(Draft(PIPELINE, Rule.STALE, kind, text, targets, subject=subject))
    return merged
