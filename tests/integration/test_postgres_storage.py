"""Dagster's storage in a real Postgres: it does not connect for each event, and stands connections that break."""

import time
from collections.abc import Iterator
from contextlib import closing

import dagster as dg
import psycopg2.extensions
import pytest

from nightscout_lakehouse.instance import prepare_environment
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.settings import load_settings
from nightscout_lakehouse.postgres_storage import OpenPostgresEventLogStorage

pytestmark = pytest.mark.postgres

OTHERS = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


@dg.asset
def counted() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"rows": 3})


@pytest.fixture
def instance(serving: PostgresConnection, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", serving.url(hide_password=False))
    prepare_environment(load_settings())
    with dg.DagsterInstance.get() as opened:
        yield opened


def connected(administrator: psycopg2.extensions.connection, ended: str = "pid") -> set[int]:
    """Who is connected to the database, once those that have said goodbye are gone."""
    before: set[int] | None = None
    while True:
        with administrator.cursor() as cursor:
            cursor.execute(f"select pid, {ended} {OTHERS}")
            found = {row[0] for row in cursor.fetchall()}
        if found == before or ended != "pid":
            return found
        before = found
        time.sleep(0.2)


def test_a_run_writes_its_events_by_few_connections_which_may_break(
    instance: dg.DagsterInstance, serving: PostgresConnection
) -> None:
    log = instance.event_log_storage
    assert isinstance(log, OpenPostgresEventLogStorage)
    with closing(serving.connect()) as administrator:
        administrator.autocommit = True
        first = dg.materialize([counted], instance=instance)
        kept = connected(administrator)
        assert 1 <= len(kept) <= 2
        second = dg.materialize([counted], instance=instance)
        assert connected(administrator) == kept
        assert len(instance.all_logs(first.run_id)) == len(instance.all_logs(second.run_id)) > 5

        assert connected(administrator, "pg_terminate_backend(pid)") == kept
        third = dg.materialize([counted], instance=instance)
        assert len(instance.all_logs(third.run_id)) == len(instance.all_logs(first.run_id))
        # Another process makes the same storage from what is handed to it.
        with dg.DagsterInstance.from_ref(instance.get_ref()) as other:
            assert isinstance(other.event_log_storage, OpenPostgresEventLogStorage)
            assert len(other.all_logs(third.run_id)) == len(instance.all_logs(third.run_id))
        log.dispose()
        assert connected(administrator) == set()
