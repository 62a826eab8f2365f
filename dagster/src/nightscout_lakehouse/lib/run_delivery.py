"""From the journal of the runs to Postgres, where the marts show them."""

from collections.abc import Sequence
from dataclasses import astuple, fields
from datetime import datetime, timedelta
from typing import Any, Final

from psycopg2 import sql
from psycopg2.extensions import cursor as PsycopgCursor  # noqa: N812 - psycopg2 spells its class in lower case
from psycopg2.extras import execute_values

from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.run_journal import KEPT_DAYS, Run, RunJournal, RunSite

_RUNS: Final = sql.Identifier("ops", "pipeline_runs")
_RUN_SITES: Final = sql.Identifier("ops", "pipeline_run_sites")


def deliver_runs(journal: RunJournal, connection: PostgresConnection, *, now: datetime) -> int:
    """Tell Postgres of every run that it does not know as it stands, in one transaction.

    Args:
        journal: The record of all runs.
        connection: The owner's connection to a database that `prepare_database` has seen.
        now: What is older than the journal keeps is removed.

    Returns:
        How many runs were delivered.

    Raises:
        ServingDatabaseError: Postgres fails; the journal still has everything, and the next delivery brings it.
    """
    with connection.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("select exists (select from ops.pipeline_runs)")
        if cursor.fetchone() == (False,):
            journal.deliver_again()
        runs = journal.undelivered()
        if not runs:
            return 0
        cursor.execute("delete from ops.pipeline_runs where run_id = any(%s)", ([run.run_id for run in runs],))
        _insert(cursor, _RUNS, Run, runs)
        _insert(cursor, _RUN_SITES, RunSite, [site for run in runs for site in journal.sites(run.run_id)])
        cursor.execute("delete from ops.pipeline_runs where started_at < %s", (now - timedelta(days=KEPT_DAYS),))
    journal.mark_delivered([run.run_id for run in runs])
    return len(runs)


def _insert(cursor: PsycopgCursor, table: sql.Identifier, kind: type[Any], rows: Sequence[Any]) -> None:
    names = sql.SQL(", ").join(sql.Identifier(field.name) for field in fields(kind))
    statement = sql.SQL("insert into {} ({}) values %s").format(table, names)
    execute_values(cursor, statement, [astuple(row) for row in rows])
