"""What every run did, kept in a file of its own: `runs.sqlite` in LAKEHOUSE_HOME.

Neither the warehouse nor Postgres is the place for it, since a run must be on record also when it failed because one of
them could not be opened. From here it goes to Postgres (`run_delivery`) and to the metrics file (`run_metrics`).
A run is on record from its beginning; one that is still said to run when the next one holds the lake's lock was killed.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES
from nightscout_lakehouse.lib.redaction import Redactor

if TYPE_CHECKING:
    from nightscout_lakehouse.lib.ingestion import SiteIngestion
    from nightscout_lakehouse.lib.processing import SiteProcessing
    from nightscout_lakehouse.lib.sources.file_drop import FileImport

RunStatus = Literal["running", "success", "failed", "canceled", "killed"]

KEPT_DAYS: Final = 35
LONGEST_REASON: Final = 500
_BUSY_SECONDS: Final = 30

_TABLES: Final = """
create table if not exists runs (
    run_id text primary key,
    job text not null,
    launched_by text not null,
    status text not null,
    started_at text not null,
    ended_at text,
    duration_seconds real,
    failed_step text,
    failure_reason text,
    slowest_step text,
    slowest_step_seconds real,
    stale_minutes real not null,
    heard_at text not null,
    is_delivered integer not null default 0
);
create index if not exists runs_started_at on runs (started_at);
create table if not exists run_steps (
    run_id text not null,
    step text not null,
    is_success integer not null,
    seconds real not null,
    primary key (run_id, step)
);
create table if not exists run_sites (
    run_id text not null,
    site text not null,
    started_at text not null,
    is_read integer,
    error text,
    unread_collections text,
    documents_fetched integer not null default 0,
    documents_landed integer not null default 0,
    documents_unchanged integer not null default 0,
    deletions integer not null default 0,
    rows_stored integer not null default 0,
    rows_duplicate integer not null default 0,
    rows_quarantined integer not null default 0,
    newest_document_at text,
    read_seconds real not null default 0,
    primary key (run_id, site)
);
create index if not exists run_sites_site on run_sites (site, started_at);
create table if not exists run_totals (job text not null, status text not null, runs integer not null,
    primary key (job, status));
create table if not exists site_reads (
    site text primary key,
    tried_at text not null,
    read_at text,
    newest_document_at text
);
create table if not exists site_totals (site text not null, what text not null, documents integer not null,
    primary key (site, what));
"""

# The columns of `run_sites` that count, which is what the totals are of.
COUNTED: Final = (
    "documents_fetched",
    "documents_landed",
    "documents_unchanged",
    "deletions",
    "rows_stored",
    "rows_duplicate",
    "rows_quarantined",
)


@dataclass(frozen=True)
class StepTime:
    """How long a step of a run took.

    Attributes:
        step: Its name.
        is_success: Whether it succeeded.
        seconds: Its duration.
    """

    step: str
    is_success: bool
    seconds: float


@dataclass(frozen=True)
class RunEnd:
    """How a run ended.

    Attributes:
        status: `success`, `failed` or `canceled` (somebody stopped it).
        failed_step: The first step that failed; None if none did.
        reason: Why, in one line without secrets; None after a success.
        steps: The steps that ended, in their order.
    """

    status: RunStatus
    failed_step: str | None = None
    reason: str | None = None
    steps: tuple[StepTime, ...] = ()


@dataclass(frozen=True)
class Run:
    """A run on record; times are UTC.

    Attributes:
        run_id: Dagster's id of it.
        job: Name of the job.
        launched_by: `schedule`, `command`, `sensor`, `backfill` or `ui`.
        status: How it stands; `killed` is what ended without a word.
        started_at: When it had the lake's lock.
        stale_minutes: From which age on the newest reading was stale, by the settings of the run.
        ended_at: When it ended; None while it runs, and for a killed one.
        duration_seconds: From one to the other.
        failed_step: The first step that failed.
        failure_reason: Why, in one line without secrets.
        slowest_step: The step that took longest.
        slowest_step_seconds: How long that took.
    """

    run_id: str
    job: str
    launched_by: str
    status: RunStatus
    started_at: datetime
    stale_minutes: float
    ended_at: datetime | None = None
    duration_seconds: float | None = None
    failed_step: str | None = None
    failure_reason: str | None = None
    slowest_step: str | None = None
    slowest_step_seconds: float | None = None


@dataclass(frozen=True)
class RunSite:
    """What a run did for one site, over all collections; times are UTC.

    Attributes:
        run_id: Id of the run.
        site: Name of the site.
        started_at: When the run started.
        is_read: Whether its server showed the entries; None for a site without a server.
        error: Why it did not, in one line.
        unread_collections: Other collections that could not be read, with commas.
        documents_fetched: Documents that the server sent or files held.
        documents_landed: Of them, those that are new or changed.
        documents_unchanged: Of them, those that the lake held already.
        deletions: Documents that are gone from the server.
        rows_stored: Documents processed and stored.
        rows_duplicate: Documents processed that say nothing new.
        rows_quarantined: Documents processed and refused.
        newest_document_at: Time of the newest entry that the server showed.
        read_seconds: How long reading it took.
    """

    run_id: str
    site: str
    started_at: datetime
    is_read: bool | None
    error: str | None
    unread_collections: str | None
    documents_fetched: int
    documents_landed: int
    documents_unchanged: int
    deletions: int
    rows_stored: int
    rows_duplicate: int
    rows_quarantined: int
    newest_document_at: datetime | None
    read_seconds: float


class RunJournal:
    """The record of all runs of a lakehouse.

    Args:
        path: The file; it is made on first use.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, run_id: str, job: str, launched_by: str, *, stale_minutes: float, now: datetime) -> list[str]:
        """Put a run on record that has just got the lake's lock.

        Returns:
            Ids of the runs that were said to run: since the lock was free, they were killed.
        """
        with self._transaction() as db:
            left = db.execute("select run_id, job, heard_at from runs where status = 'running'").fetchall()
            for killed_id, killed_job, heard_at in left:
                db.execute(
                    "update runs set status = 'killed', failure_reason = ?, is_delivered = 0 where run_id = ?",
                    [f"Killed, or its machine went down: last heard of at {heard_at[:19]}Z.", killed_id],
                )
                self._count_run(db, killed_job, "killed")
                self._count_documents(db, killed_id)
            self._insert(db, Run(run_id, job, launched_by, "running", now, stale_minutes), now)
            self._forget_before(db, now - timedelta(days=KEPT_DAYS))
        return [row[0] for row in left]

    def refuse(
        self,
        run_id: str,
        job: str,
        launched_by: str,
        reason: str,
        *,
        stale_minutes: float,
        started_at: datetime,
        now: datetime,
    ) -> None:
        """Put a run on record that failed before it began: it did not get the lake's lock."""
        run = Run(
            *(run_id, job, launched_by, "failed", started_at, stale_minutes),
            ended_at=now,
            duration_seconds=(now - started_at).total_seconds(),
            failure_reason=_line(reason),
        )
        with self._transaction() as db:
            self._insert(db, run, now)
            self._count_run(db, job, "failed")

    def add_missed(self, runs: Sequence[Run], *, now: datetime) -> None:
        """Put runs on record that others tell of; those that are on record already stay as they are."""
        with self._transaction() as db:
            known = {row["run_id"] for row in db.execute("select run_id from runs")}
            for run in runs:
                if run.run_id not in known:
                    self._insert(db, replace(run, failure_reason=_line(run.failure_reason)), now)
                    self._count_run(db, run.job, run.status)

    def was_read(self, run_id: str, reports: "Sequence[SiteIngestion]", *, redactor: Redactor, now: datetime) -> None:
        """Keep what reading a collection of the sites brought."""
        with self._transaction() as db:
            for report in reports:
                is_entries = report.collection == ENTRIES.name
                counts = {
                    "documents_fetched": report.fetched,
                    "documents_landed": report.landed,
                    "documents_unchanged": report.unchanged,
                    "deletions": report.deletions,
                }
                values: dict[str, Any] = {"read_seconds": report.seconds}
                if is_entries:
                    values |= {"is_read": report.error is None, "error": _line(redactor.clean(report.error or ""))}
                    if report.newest_ms is not None:
                        values["newest_document_at"] = _text(datetime.fromtimestamp(report.newest_ms / 1000, UTC))
                self._add(db, run_id, report.site, counts)
                self._set(db, run_id, report.site, values, added=("read_seconds",))
                if is_entries:
                    self._keep_last_read(db, run_id, report.site)
                else:
                    self._keep_unread(db, run_id, report)
            self._heard(db, run_id, now)

    def files_were_imported(self, run_id: str, imports: "Sequence[FileImport]", *, now: datetime) -> None:
        """Keep what dropped files brought."""
        with self._transaction() as db:
            for each in imports:
                counts = {}
                if each.report is not None and each.outcome == "imported":
                    counts = {
                        "documents_fetched": each.report.documents,
                        "documents_landed": each.report.landed,
                        "documents_unchanged": each.report.unchanged,
                    }
                self._add(db, run_id, each.site, counts)
                if each.outcome == "failed":
                    # Not its message: the name of a file may hold a person's name.
                    self._set(db, run_id, each.site, {"error": "A dropped file could not be read."})
            self._heard(db, run_id, now)

    def was_processed(self, run_id: str, reports: "Sequence[SiteProcessing]", *, now: datetime) -> None:
        """Keep what processing a collection of the sites did."""
        with self._transaction() as db:
            for report in reports:
                counts = {
                    "rows_stored": report.stored,
                    "rows_duplicate": report.duplicates,
                    "rows_quarantined": report.quarantined,
                }
                self._add(db, run_id, report.site, counts)
            self._heard(db, run_id, now)

    def end(self, run_id: str, end: RunEnd, *, now: datetime) -> Run:
        """Put on record how a run ended."""
        slowest = max(end.steps, key=lambda each: each.seconds, default=None)
        with self._transaction() as db:
            db.executemany(
                "insert or replace into run_steps (run_id, step, is_success, seconds) values (?, ?, ?, ?)",
                [(run_id, each.step, each.is_success, each.seconds) for each in end.steps],
            )
            known = db.execute("select job, started_at from runs where run_id = ?", [run_id]).fetchone()
            if known is None:
                raise LakehouseError("Its beginning is not in the journal.")
            job, started_at = known
            values = {
                "status": end.status,
                "ended_at": _text(now),
                "duration_seconds": (now - _moment(started_at)).total_seconds(),
                "failed_step": end.failed_step,
                "failure_reason": _line(end.reason),
                "slowest_step": slowest.step if slowest else None,
                "slowest_step_seconds": slowest.seconds if slowest else None,
                "heard_at": _text(now),
                "is_delivered": 0,
            }
            assignments = ", ".join(f"{name} = ?" for name in values)
            db.execute(f"update runs set {assignments} where run_id = ?", [*values.values(), run_id])
            self._count_run(db, job, end.status)
            self._count_documents(db, run_id)
        (run,) = self.runs([run_id])
        return run

    def runs(self, run_ids: Sequence[str] | None = None) -> list[Run]:
        """The runs of these ids, or all that are kept, the newest first."""
        condition, values = "true", list[Any]()
        if run_ids is not None:
            condition, values = f"run_id in ({', '.join('?' * len(run_ids))})", list(run_ids)
        return [
            _run(row) for row in self._read(f"select * from runs where {condition} order by started_at desc", values)
        ]

    def sites(self, run_id: str) -> list[RunSite]:
        """What a run did for each site."""
        return [_site(row) for row in self._read("select * from run_sites where run_id = ? order by site", [run_id])]

    def steps(self, run_id: str) -> list[StepTime]:
        """How long the steps of a run took, in their order."""
        rows = self._read("select step, is_success, seconds from run_steps where run_id = ? order by rowid", [run_id])
        return [StepTime(row["step"], bool(row["is_success"]), row["seconds"]) for row in rows]

    def undelivered(self) -> list[Run]:
        """The runs of which Postgres does not know how they stand, the oldest first."""
        return [_run(row) for row in self._read("select * from runs where not is_delivered order by started_at", [])]

    def mark_delivered(self, run_ids: Sequence[str]) -> None:
        """Keep that Postgres knows these runs as they stand."""
        with self._transaction() as db:
            db.executemany("update runs set is_delivered = 1 where run_id = ?", [[run_id] for run_id in run_ids])

    def deliver_again(self) -> None:
        """Have every kept run delivered, to a database that knows none."""
        with self._transaction() as db:
            db.execute("update runs set is_delivered = 0")

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[Mapping[str, Any]]:
        """Rows of a query of the journal's tables, by the names of their columns."""
        return [dict(row) for row in self._read(statement, values)]

    def _read(self, statement: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        with self._transaction() as db:
            return db.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        is_new = not self._path.is_file()
        with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as db:
            db.row_factory = sqlite3.Row
            if is_new:
                # Names of sites, when they were read, what was wrong: nobody else's business.
                self._path.chmod(0o600)
            db.executescript(_TABLES)
            with db:
                yield db

    @staticmethod
    def _insert(db: sqlite3.Connection, run: Run, now: datetime) -> None:
        values = asdict(run) | {
            "started_at": _text(run.started_at),
            "ended_at": _text(run.ended_at) if run.ended_at else None,
            "heard_at": _text(now),
        }
        names = ", ".join(values)
        places = ", ".join("?" * len(values))
        # A run that Dagster starts again after a crash keeps its id.
        db.execute(f"insert or replace into runs ({names}) values ({places})", list(values.values()))

    @staticmethod
    def _add(db: sqlite3.Connection, run_id: str, site: str, counts: Mapping[str, int]) -> None:
        db.execute(
            "insert or ignore into run_sites (run_id, site, started_at) "
            "select run_id, ?, started_at from runs where run_id = ?",
            [site, run_id],
        )
        if counts:
            assignments = ", ".join(f"{name} = {name} + ?" for name in counts)
            db.execute(
                f"update run_sites set {assignments} where run_id = ? and site = ?", [*counts.values(), run_id, site]
            )

    @staticmethod
    def _set(
        db: sqlite3.Connection, run_id: str, site: str, values: Mapping[str, Any], added: Sequence[str] = ()
    ) -> None:
        assignments = ", ".join(f"{name} = {name} + ?" if name in added else f"{name} = ?" for name in values)
        db.execute(
            f"update run_sites set {assignments} where run_id = ? and site = ?", [*values.values(), run_id, site]
        )

    @staticmethod
    def _keep_last_read(db: sqlite3.Connection, run_id: str, site: str) -> None:
        # By site, so that what the metrics show does not cost a month of runs.
        db.execute(
            "insert into site_reads select site, started_at, case when is_read then started_at end, newest_document_at "
            "from run_sites where run_id = ? and site = ? on conflict (site) do update set "
            "tried_at = excluded.tried_at, read_at = coalesce(excluded.read_at, read_at), "
            # Reading an old month again has shown nothing newer.
            "newest_document_at = "
            "nullif(max(coalesce(excluded.newest_document_at, ''), coalesce(newest_document_at, '')), '')",
            [run_id, site],
        )

    @staticmethod
    def _keep_unread(db: sqlite3.Connection, run_id: str, report: "SiteIngestion") -> None:
        # A step that is tried again says how it ended: once, or not at all.
        key = [run_id, report.site]
        (before,) = db.execute("select unread_collections from run_sites where run_id = ? and site = ?", key).fetchone()
        name = report.collection.removeprefix("nightscout_")
        unread = [each for each in (before or "").split(", ") if each not in ("", name)]
        if report.error is not None:
            unread.append(name)
        db.execute(
            "update run_sites set unread_collections = ? where run_id = ? and site = ?",
            [", ".join(unread) or None, *key],
        )

    @staticmethod
    def _heard(db: sqlite3.Connection, run_id: str, now: datetime) -> None:
        db.execute("update runs set heard_at = ?, is_delivered = 0 where run_id = ?", [_text(now), run_id])

    @staticmethod
    def _count_run(db: sqlite3.Connection, job: str, status: RunStatus) -> None:
        db.execute(
            "insert into run_totals (job, status, runs) values (?, ?, 1) "
            "on conflict (job, status) do update set runs = runs + 1",
            [job, status],
        )

    @staticmethod
    def _count_documents(db: sqlite3.Connection, run_id: str) -> None:
        for what in COUNTED:
            db.execute(
                f"insert into site_totals (site, what, documents) select site, ?, {what} from run_sites "
                "where run_id = ? on conflict (site, what) do update set documents = documents + excluded.documents",
                [what, run_id],
            )

    @staticmethod
    def _forget_before(db: sqlite3.Connection, moment: datetime) -> None:
        for table in ("run_sites", "run_steps"):
            db.execute(
                f"delete from {table} where run_id in (select run_id from runs where started_at < ?)", [_text(moment)]
            )
        db.execute("delete from runs where started_at < ?", [_text(moment)])
        # Of a site that is no longer asked for.
        db.execute("delete from site_reads where tried_at < ?", [_text(moment)])


def _run(row: sqlite3.Row) -> Run:
    values = {field.name: row[field.name] for field in fields(Run)}
    return Run(**values | {"started_at": _moment(row["started_at"]), "ended_at": _moment_or_none(row["ended_at"])})


def _site(row: sqlite3.Row) -> RunSite:
    values = {field.name: row[field.name] for field in fields(RunSite)}
    return RunSite(
        **values
        | {
            "started_at": _moment(row["started_at"]),
            "newest_document_at": _moment_or_none(row["newest_document_at"]),
            "is_read": None if row["is_read"] is None else bool(row["is_read"]),
        }
    )


def _text(moment: datetime) -> str:
    # One form for all, so that texts sort as times do.
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _moment_or_none(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _line(text: str | None) -> str | None:
    """The first line of a text that has any, not too long."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[0][:LONGEST_REASON] if lines else None
