"""A database of one's own: dumped, restored with its readers' rights, and a person's rows gone from it."""

from pathlib import Path
from typing import Any

import pytest
from conftest import Server

from nightscout_lakehouse.lib.care.forget import delete_rows
from nightscout_lakehouse.lib.care.postgres_dump import SCHEMAS, dump_database, restore_database
from nightscout_lakehouse.lib.care.traces import Traces
from nightscout_lakehouse.lib.embedded_postgres import password_file
from nightscout_lakehouse.lib.errors import ServingDatabaseError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.serving import READER, prepare_database, read_query

pytestmark = pytest.mark.postgres


def run(connection: PostgresConnection, statement: str) -> None:
    with connection.transaction() as opened, opened.cursor() as cursor:
        cursor.execute(statement)


def rows(connection: PostgresConnection, query: str) -> list[tuple[Any, ...]]:
    """As the owner: `read_query` goes as the reader."""
    with connection.transaction() as opened, opened.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


@pytest.fixture
def filled(serving: PostgresConnection) -> PostgresConnection:
    run(
        serving,
        """
        create table curated.readings (site text, nightscout_id text);
        insert into curated.readings values ('anna', 'a1'), ('berta', 'b1'), ('anna', 'a2');
        create table marts.days as select site, count(*) from curated.readings group by site;
        insert into ops.published_tables values ('readings', 3);
        insert into ops.pipeline_runs (run_id, job, launched_by, status, started_at, stale_minutes, failure_reason)
        values
            ('1', 'j', 'ui', 'failed', now(), 60, 'Site berta: refused.'),
            ('2', 'j', 'ui', 'success', now(), 60, null),
            ('3', 'j', 'ui', 'failed', now(), 60, 'Site berta-2: refused.');
        """,
    )
    return serving


def test_a_dump_brings_back_tables_and_readers(
    filled: PostgresConnection, postgres_server: Server, tmp_path: Path
) -> None:
    dump = tmp_path / "postgres.dump"
    dump_database(filled, dump)
    assert dump.stat().st_mode & 0o777 == 0o600
    run(filled, "drop schema marts cascade; drop table curated.readings; delete from ops.pipeline_runs")
    restore_database(filled, dump)
    prepare_database(filled, reader_password_file=password_file(postgres_server.directory, READER))
    reader = postgres_server.login(READER, filled.database)
    assert read_query(reader, "select * from marts.days order by site").rows == [("anna", 2), ("berta", 1)]
    assert rows(filled, "select count(*) from ops.pipeline_runs") == [(3,)]
    with pytest.raises(ServingDatabaseError, match="permission denied"):
        read_query(reader, "select * from curated.readings")


def test_a_dump_that_is_cut_off_changes_nothing_and_tells_no_password(
    filled: PostgresConnection, tmp_path: Path
) -> None:
    dump = tmp_path / "postgres.dump"
    dump_database(filled, dump)
    dump.write_bytes(dump.read_bytes()[:-2000])
    with pytest.raises(ServingDatabaseError, match="cannot be restored") as refused:
        restore_database(filled, dump)
    assert filled.password.get_secret_value() not in str(refused.value)
    assert rows(filled, "select count(*) from curated.readings") == [(3,)]


def test_rows_of_a_person_and_what_names_her_are_deleted(filled: PostgresConnection) -> None:
    touched, removed = delete_rows(filled, Traces("berta", ("b1",)), SCHEMAS)
    assert removed == 3
    assert len(touched) == 3
    assert rows(filled, "select distinct site from curated.readings") == [("anna",)]
    # A name that only begins alike is another person's.
    assert rows(filled, "select run_id from ops.pipeline_runs order by 1") == [("2",), ("3",)]
