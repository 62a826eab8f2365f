"""What is in place in the serving database, and what `bi_reader` cannot do there."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest
from psycopg2 import sql
from pydantic import SecretStr

from nightscout_lakehouse.lib.embedded_postgres import password_file
from nightscout_lakehouse.lib.errors import ServingDatabaseError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.serving import (
    READER,
    prepare_database,
    read_query,
    reader_connection,
    serving_database,
)
from nightscout_lakehouse.lib.settings import Settings

if TYPE_CHECKING:
    from conftest import Server  # the one beside this file

pytestmark = pytest.mark.postgres


@pytest.fixture
def reader(postgres_server: Server, serving: PostgresConnection) -> PostgresConnection:
    with serving.transaction() as opened, opened.cursor() as cursor:
        cursor.execute(
            "create table marts.mart as select 1 as n; create view marts.mart_view as select * from marts.mart;"
            "create table curated.secret as select 1 as n; create table public.other as select 1 as n"
        )
    return postgres_server.login(READER, serving.database)


def test_reader_reads_the_marts(reader: PostgresConnection) -> None:
    assert read_query(reader, "select n from mart").rows == [(1,)]
    assert read_query(reader, "select n from marts.mart_view").columns == ("n",)


@pytest.mark.parametrize(
    "statement",
    [
        "select * from curated.secret",
        "select * from ops.publish_state",
        "select * from public.other",
        "insert into marts.mart values (2)",
        "update marts.mart set n = 2",
        "delete from marts.mart",
        "truncate marts.mart",
        "drop table marts.mart",
        "create table marts.mine (n int)",
        "create table public.mine (n int)",
        "create temp table mine (n int)",
        "create schema mine",
        "create role mine",
        "create database mine",
        "create extension file_fdw",
        "alter role bi_reader createdb",
        "set role lakehouse",
        "select pg_read_file('postgresql.conf')",
        "select pg_ls_dir('.')",
        "select lo_create(0)",
        "select lo_from_bytea(0, 'x')",
        "select rolpassword from pg_authid",
        "copy marts.mart to '/tmp/stolen'",
        "copy marts.mart to program 'cat'",
        "copy marts.mart from program 'echo 1'",
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'lakehouse' or usename is null",
        "alter system set work_mem = '1GB'",
        "begin; lock table marts.mart in access exclusive mode",
    ],
)
def test_reader_can_do_nothing_else(reader: PostgresConnection, serving: PostgresConnection, statement: str) -> None:
    held = serving.connect()
    opened = reader.connect()
    opened.autocommit = True
    try:
        with opened.cursor() as cursor:
            # The defaults of the role are no border; its privileges are.
            cursor.execute("set default_transaction_read_only = off")
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(statement)
    finally:
        opened.close()
        held.close()


@pytest.mark.parametrize("database", ["postgres", "template1", "lakehouse_other"])
def test_reader_enters_no_other_database(reader: PostgresConnection, database: str) -> None:
    with pytest.raises(ServingDatabaseError):
        replace(reader, database=database).connect()


def test_reader_has_limits(reader: PostgresConnection) -> None:
    opened = reader.connect()
    try:
        with opened.cursor() as cursor:
            cursor.execute(
                "select current_setting('default_transaction_read_only'), current_setting('statement_timeout'), "
                "rolinherit, rolconnlimit from pg_roles where rolname = current_user"
            )
            assert cursor.fetchone() == ("on", "1min", False, 20)
    finally:
        opened.close()


@pytest.mark.parametrize("as_owner", [False, True])
def test_read_query_only_reads(reader: PostgresConnection, serving: PostgresConnection, as_owner: bool) -> None:
    connection = serving if as_owner else reader
    result = read_query(connection, "select n from generate_series(1, 100000) as g (n)", max_rows=3)
    assert (result.rows, result.is_cut) == ([(1,), (2,), (3,)], True)
    assert read_query(connection, "select current_user").rows == [(READER,)]
    assert read_query(connection, "explain select 1").rows
    for query in (
        "select * from curated.secret",
        "drop table marts.mart",
        "select 1; commit; drop table marts.mart",
        "with gone as (delete from marts.mart returning n) select * from gone",
        "",
        "selec 1",
    ):
        with pytest.raises(ServingDatabaseError):
            read_query(connection, query)
    assert read_query(reader, "select n from mart").rows == [(1,)]


def test_preparing_again_changes_nothing(postgres_server: Server, serving: PostgresConnection) -> None:
    path = password_file(postgres_server.directory, READER)
    before = path.read_text()
    prepare_database(serving, reader_password_file=path)
    assert path.read_text() == before


def test_lost_reader_password_is_replaced(postgres_server: Server, serving: PostgresConnection) -> None:
    path = password_file(postgres_server.directory, READER)
    before = path.read_text()
    path.unlink()
    prepare_database(serving, reader_password_file=path)
    assert path.read_text() != before
    assert read_query(postgres_server.login(READER, serving.database), "select 1").rows == [(1,)]


@pytest.fixture
def external(postgres_server: Server) -> Iterator[PostgresConnection]:
    """A database whose owner may not create roles, as an administrator would hand out."""
    name = f"external_{uuid.uuid4().hex[:12]}"
    role = sql.Identifier(name)
    for statement in ("create role {0} login password 'p@ss/w:rd'", "create database {0} owner {0}"):
        postgres_server.run_as_superuser(sql.SQL(statement).format(role))
    yield replace(postgres_server.owner, user=name, database=name, password=SecretStr("p@ss/w:rd"), sslmode="prefer")
    for statement in ("drop database {0} with (force)", "drop role {0}"):
        postgres_server.run_as_superuser(sql.SQL(statement).format(role))


def settings_with(tmp_path: Path, url: str = "") -> Settings:
    return Settings(LAKEHOUSE_HOME=tmp_path / "home", DATABASE_URL=SecretStr(url), _env_file=None)


def test_external_database_is_prepared(external: PostgresConnection, tmp_path: Path) -> None:
    settings = settings_with(tmp_path, external.url(hide_password=False, scheme="postgresql+psycopg2"))
    for _ in range(2):
        with serving_database(settings) as connection:
            assert connection == external
            assert reader_connection(settings, connection) is None
            assert read_query(connection, "select 1").rows == [(1,)]
    assert not settings.postgres_dir.exists()


def test_external_database_without_the_reader_says_what_to_ask_for(
    external: PostgresConnection, postgres_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = sql.SQL("alter role {} rename to {}")
    names = sql.Identifier(READER), sql.Identifier("bi_reader_hidden")
    postgres_server.run_as_superuser(hidden.format(*names))
    try:
        with (
            caplog.at_level(logging.WARNING),
            serving_database(settings_with(tmp_path, external.url(hide_password=False))),
        ):
            pass
    finally:
        postgres_server.run_as_superuser(hidden.format(*reversed(names)))
    assert f"create role {READER} nologin noinherit;" in caplog.text
    caplog.clear()
    # The administrator made it: what was missing is granted.
    with serving_database(settings_with(tmp_path, external.url(hide_password=False))) as connection:
        assert read_query(connection, "select has_schema_privilege('bi_reader', 'marts', 'usage')").rows == [(True,)]
    assert not caplog.text


def test_user_without_rights_is_told(external: PostgresConnection, serving: PostgresConnection) -> None:
    outsider = replace(external, database="postgres")
    with pytest.raises(ServingDatabaseError, match="does not let the user connect"):
        prepare_database(outsider)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"password": SecretStr("s3cret-wrong")}, "refuses the user or the password"),
        ({"database": "nowhere"}, "has no database of this name"),
        ({"port": 1}, "cannot be reached"),
        ({"host": "no-such-host.invalid"}, "has a host name nobody knows"),
        ({"sslmode": "require"}, "do not agree on TLS"),
    ],
)
def test_refusals_are_plain_and_keep_the_password(
    postgres_server: Server, change: dict[str, object], message: str
) -> None:
    connection = replace(postgres_server.owner, **change)  # type: ignore[arg-type]
    with pytest.raises(ServingDatabaseError, match=message) as caught:
        connection.connect()
    assert connection.address in str(caught.value)
    assert connection.password.get_secret_value() not in str(caught.value)
