"""What alerts remember, in one SQLite file: the state of every rule, and an outbox of messages.

A state and the messages that follow from it are written in one transaction, before anything is sent. A message counts
as delivered when its service took it. So a process that is killed between the two sends it again: at least once.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nightscout_lakehouse.lib.alerts.engine import Condition, Kind, SiteState
from nightscout_lakehouse.lib.alerts.rules import Prediction, Reading, Rule
from nightscout_lakehouse.lib.alerts.targets import Target
from nightscout_lakehouse.lib.alerts.wording import Text
from nightscout_lakehouse.lib.errors import LakehouseError

# Alerts on runs are kept under this name, which no site can have.
PIPELINE = ""
_FILE = "alerts.sqlite3"
_LAYOUT = 1
_TABLES = """
create table sites (
    site text primary key,
    looked_at text,
    resume_at text,
    error text not null default '',
    timezone text,
    first_look_at text,
    last_reading text,
    prediction text,
    snoozed_until text,
    is_urgent_low_snoozed integer not null default 0
);
create table conditions (
    site text not null,
    rule text not null,
    subject text not null default '',
    since text,
    first_told_at text,
    last_told_at text,
    acknowledged_at text,
    escalated_at text,
    job text not null default '',
    detail text not null default '',
    link text not null default '',
    primary key (site, rule, subject)
);
create table messages (
    id integer primary key,
    created_at text not null,
    site text not null,
    rule text not null,
    subject text not null,
    kind text not null,
    title text not null,
    body text not null
);
create table deliveries (
    message_id integer not null references messages (id) on delete cascade,
    target text not null,
    state text not null default 'pending',
    attempts integer not null default 0,
    next_attempt_at text not null,
    delivered_at text,
    error text not null default '',
    primary key (message_id, target)
);
create table runs (run_id text primary key, seen_at text not null);
create index pending on deliveries (state, next_attempt_at);
"""
_LONGEST_BACK_OFF_MINUTES = 10
_GIVE_UP_AFTER = timedelta(hours=24)
_KEEP_FOR = timedelta(days=90)
_WAIT_SECONDS = 10.0
_CONDITION_TIMES = tuple(field.name for field in fields(Condition))


@dataclass(frozen=True)
class Draft:
    """A message to be put into the outbox, for the targets it names."""

    site: str
    rule: Rule
    kind: Kind
    text: Text
    targets: tuple[str, ...]
    subject: str = ""


@dataclass(frozen=True)
class Due:
    """A delivery whose time has come."""

    message_id: int
    target: str
    kind: Kind
    text: Text
    created_at: datetime


@dataclass(frozen=True)
class WatchedSite:
    """What is remembered of looking at a site, beside its alerts.

    Attributes:
        looked_at: When it was looked at last.
        resume_at: Not before this: its server refused the login.
        error: Why the last look failed; empty if it did not.
        timezone: Its zone, as last known.
    """

    looked_at: datetime | None = None
    resume_at: datetime | None = None
    error: str = ""
    timezone: str | None = None


@dataclass(frozen=True)
class Failing:
    """What is remembered of one way in which runs of a job fail.

    Attributes:
        rule: Whether a step or a critical check failed.
        subject: Job, and step or check: what a cool-down is for.
        job: The job.
        detail: What failed and why.
        link: Address of the newest run that failed so.
        condition: Its episode.
    """

    rule: Rule
    subject: str
    job: str
    detail: str
    link: str
    condition: Condition


class AlertStore:
    """The file of alerts; use as a context manager, in one thread.

    Args:
        folder: Where it lies; made if it is not there, for this user's eyes only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            path = folder / _FILE
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
            self._connection.execute("pragma foreign_keys = on")
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise self._cannot_be_kept(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written in the block, or nothing; one process at a time.

        Raises:
            LakehouseError: The file cannot be written, or another process keeps it too long.
        """
        try:
            self._connection.execute("begin immediate")
            yield
            self._connection.execute("commit")
        except sqlite3.Error as error:
            self._rollback()
            raise self._cannot_be_kept(error) from None
        except BaseException:
            # Ctrl-C, too: all of it is kept, or nothing.
            self._rollback()
            raise

    def _rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("rollback")

    def _cannot_be_kept(self, error: Exception) -> LakehouseError:
        return LakehouseError(
            f"The alerts in {self.folder} cannot be kept ({error}).",
            "Mend the permissions or the disk, or remove the folder: then what was told before is forgotten.",
        )

    def _prepare(self) -> None:
        with self.transaction():
            (version,) = self._connection.execute("pragma user_version").fetchone()
            if version == 0:
                for statement in _TABLES.split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"pragma user_version = {_LAYOUT}")

    # --- sites ------------------------------------------------------------------------------------

    def watched_site(self, site: str) -> WatchedSite:
        """How looking at a site goes."""
        row = self._one("select looked_at, resume_at, error, timezone from sites where site = ?", site)
        return WatchedSite(_moment(row[0]), _moment(row[1]), row[2], row[3]) if row else WatchedSite()

    def site_state(self, site: str) -> SiteState:
        """What is remembered of a site's alerts."""
        row = self._one(
            "select first_look_at, last_reading, prediction, snoozed_until, is_urgent_low_snoozed from sites"
            " where site = ?",
            site,
        )
        rows = self._all(f"select rule, {', '.join(_CONDITION_TIMES)} from conditions where site = ?", site)
        conditions = {Rule(rule): _condition(times) for rule, *times in rows}
        if row is None:
            return SiteState(conditions)
        return SiteState(
            conditions,
            first_look_at=_moment(row[0]),
            last_reading=_reading(row[1]),
            prediction=_prediction(row[2]),
            snoozed_until=_moment(row[3]),
            is_urgent_low_snoozed=bool(row[4]),
        )

    def keep_site(self, site: str, state: SiteState, watched: WatchedSite) -> None:
        """Remember what a look found."""
        self._ensure(site)
        self._connection.execute(
            "update sites set looked_at = ?, resume_at = ?, error = ?, timezone = ?, first_look_at = ?,"
            " last_reading = ?, prediction = ? where site = ?",
            [
                *(_text(watched.looked_at), _text(watched.resume_at), watched.error, watched.timezone),
                *(_text(state.first_look_at), _json(state.last_reading), _json(state.prediction), site),
            ],
        )
        for rule, condition in state.conditions.items():
            self._keep_condition(site, rule, "", condition)

    def known_sites(self) -> list[str]:
        """Every site that was looked at or snoozed, and `PIPELINE` if that was."""
        return [site for (site,) in self._all("select site from sites order by site")]

    def snooze(self, site: str, until: datetime | None, *, is_urgent_low_too: bool) -> None:
        """Tell nobody of a site until then; None ends a snooze."""
        self._ensure(site)
        self._connection.execute(
            "update sites set snoozed_until = ?, is_urgent_low_snoozed = ? where site = ?",
            [_text(until), int(is_urgent_low_too), site],
        )

    def acknowledge(self, site: str, now: datetime) -> list[tuple[Rule, str]]:
        """Mark what goes on at a site as seen.

        Returns:
            Rule and subject of each; of runs that failed, these are forgotten until the next failure.
        """
        rows = self._all("select rule, subject from conditions where site = ? and since is not null", site)
        if site == PIPELINE:
            self._connection.execute(
                "update conditions set since = null, first_told_at = null, escalated_at = null where site = ?", [site]
            )
        else:
            self._connection.execute(
                "update conditions set acknowledged_at = ? where site = ? and since is not null", [_text(now), site]
            )
        return [(Rule(rule), subject) for rule, subject in rows]

    # --- runs -------------------------------------------------------------------------------------

    def is_new_run(self, run_id: str, now: datetime) -> bool:
        """Whether a run's end is heard of for the first time; remembers it."""
        self._connection.execute("delete from runs where seen_at < ?", [_text(now - _KEEP_FOR)])
        added = self._connection.execute(
            "insert into runs values (?, ?) on conflict do nothing", [run_id, _text(now)]
        ).rowcount
        return added > 0

    def failing(self, *, job: str | None = None) -> list[Failing]:
        """Ways in which runs fail, also those that are over; of one job or of all."""
        rows = self._all(
            f"select rule, subject, job, detail, link, {', '.join(_CONDITION_TIMES)} from conditions"
            " where site = ? and (? is null or job = ?) order by subject",
            *(PIPELINE, job, job),
        )
        return [Failing(Rule(r), subject, of, detail, link, _condition(t)) for r, subject, of, detail, link, *t in rows]

    def keep_failing(self, failing: Failing) -> None:
        """Remember a way in which runs fail."""
        self._keep_condition(PIPELINE, failing.rule, failing.subject, failing.condition)
        self._connection.execute(
            "update conditions set job = ?, detail = ?, link = ? where site = ? and rule = ? and subject = ?",
            [failing.job, failing.detail, failing.link, PIPELINE, failing.rule.value, failing.subject],
        )

    # --- outbox -----------------------------------------------------------------------------------

    def put(self, drafts: Iterable[Draft], now: datetime) -> None:
        """Put messages into the outbox.

        A newer message on the same takes the place of one that waits: after an outage nobody gets all of them.
        """
        for draft in drafts:
            same = (draft.site, draft.rule.value, draft.subject)
            placeholders = ", ".join("?" for _ in draft.targets)
            self._connection.execute(
                "update deliveries set state = 'superseded' where state = 'pending' and message_id in"
                " (select id from messages where site = ? and rule = ? and subject = ?)"
                f" and target in ({placeholders})",
                [*same, *draft.targets],
            )
            message_id = self._connection.execute(
                "insert into messages (created_at, site, rule, subject, kind, title, body)"
                " values (?, ?, ?, ?, ?, ?, ?)",
                [_text(now), *same, draft.kind.value, draft.text.title, draft.text.body],
            ).lastrowid
            for target in draft.targets:
                self._connection.execute(
                    "insert into deliveries (message_id, target, next_attempt_at) values (?, ?, ?)",
                    [message_id, target, _text(now)],
                )

    def due(self, targets: Sequence[Target], now: datetime) -> list[Due]:
        """Deliveries whose time has come, oldest first; what waits for a target that is gone is given up."""
        names = [target.name for target in targets]
        with self.transaction():
            self._connection.execute(
                "update deliveries set state = 'given_up', error = 'the target is not configured any more'"
                f" where state = 'pending' and target not in ({', '.join('?' for _ in names)})",
                names,
            )
            self._connection.execute("delete from messages where created_at < ?", [_text(now - _KEEP_FOR)])
        rows = self._all(
            "select id, target, kind, title, body, created_at from deliveries join messages on id = message_id"
            " where state = 'pending' and next_attempt_at <= ? order by id",
            _text(now),
        )
        return [
            Due(number, target, Kind(kind), Text(title, body), datetime.fromisoformat(created))
            for number, target, kind, title, body, created in rows
        ]

    def settle(self, due: Due, error: str, now: datetime) -> None:
        """Remember how a delivery went; a failed one comes again later, up to a day."""
        with self.transaction():
            if not error:
                self._connection.execute(
                    "update deliveries set state = 'delivered', attempts = attempts + 1, delivered_at = ?, error = ''"
                    " where message_id = ? and target = ?",
                    [_text(now), due.message_id, due.target],
                )
                return
            (attempts,) = self._connection.execute(
                "select attempts + 1 from deliveries where message_id = ? and target = ?", [due.message_id, due.target]
            ).fetchone()
            wait = timedelta(minutes=min(2 ** (attempts - 1), _LONGEST_BACK_OFF_MINUTES))
            # What a newer message superseded while this one was on its way stays superseded.
            self._connection.execute(
                "update deliveries set attempts = ?, error = ?, next_attempt_at = ?,"
                " state = case when state = 'pending' and ? then 'given_up' else state end"
                " where message_id = ? and target = ?",
                [
                    attempts,
                    error,
                    _text(now + wait),
                    now - due.created_at >= _GIVE_UP_AFTER,
                    due.message_id,
                    due.target,
                ],
            )

    def recent_messages(self, limit: int) -> list[dict[str, Any]]:
        """The newest messages with the state of their deliveries, newest first."""
        rows = self._all("select id, created_at, site, rule, kind, title from messages order by id desc limit ?", limit)
        names = ("id", "created_at", "site", "rule", "kind", "title")
        return [{**dict(zip(names, row, strict=True)), "deliveries": self._deliveries(row[0])} for row in rows]

    def undelivered(self, now: datetime) -> int:
        """How many deliveries failed and wait for another attempt, or were given up within the last day."""
        row = self._one(
            "select count(*) from deliveries join messages on id = message_id"
            " where (state = 'pending' and attempts > 0) or (state = 'given_up' and created_at >= ?)",
            _text(now - timedelta(days=2)),
        )
        return int(row[0]) if row else 0

    def _deliveries(self, message_id: int) -> list[dict[str, Any]]:
        names = ("target", "state", "attempts", "delivered_at", "error")
        rows = self._all(f"select {', '.join(names)} from deliveries where message_id = ? order by target", message_id)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _keep_condition(self, site: str, rule: Rule, subject: str, condition: Condition) -> None:
        times = [_text(getattr(condition, name)) for name in _CONDITION_TIMES]
        self._connection.execute(
            f"insert into conditions (site, rule, subject, {', '.join(_CONDITION_TIMES)})"
            f" values (?, ?, ?, {', '.join('?' for _ in times)}) on conflict do update set "
            + ", ".join(f"{name} = excluded.{name}" for name in _CONDITION_TIMES),
            [site, rule.value, subject, *times],
        )

    def _ensure(self, site: str) -> None:
        self._connection.execute("insert into sites (site) values (?) on conflict do nothing", [site])

    def _one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        with closing(self._connection.execute(query, values)) as cursor:
            row: tuple[Any, ...] | None = cursor.fetchone()
            return row

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, values).fetchall()


def undelivered_alerts(folder: Path, now: datetime) -> int:
    """How many alerts failed to be delivered lately; 0 where none was ever kept."""
    if not (folder / _FILE).is_file():
        return 0
    with AlertStore(folder) as store:
        return store.undelivered(now)


def _condition(times: Sequence[str | None]) -> Condition:
    return Condition(**{name: _moment(value) for name, value in zip(_CONDITION_TIMES, times, strict=True)})


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds")


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _json(value: Reading | Prediction | None) -> str | None:
    if value is None:
        return None
    held = {each.name: getattr(value, each.name) for each in fields(value)}
    return json.dumps({name: _text(item) if isinstance(item, datetime) else item for name, item in held.items()})


def _reading(text: str | None) -> Reading | None:
    return None if text is None else Reading(**_with_times(json.loads(text)))


def _prediction(text: str | None) -> Prediction | None:
    return None if text is None else Prediction(**_with_times(json.loads(text)))


def _with_times(held: Mapping[str, Any]) -> dict[str, Any]:
    times = ("timestamp", "made_at")
    return {name: _moment(value) if name in times else value for name, value in held.items()}
