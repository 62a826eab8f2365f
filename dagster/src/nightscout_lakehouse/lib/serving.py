"""The serving database: which one it is, what must be in place there, and who may read what.

Three schemas: `curated` holds what is published from the warehouse, `marts` what dbt builds from it for people to
look at, `ops` the bookkeeping. The role `bi_reader` is for dashboards and reads `marts` only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any, Final

import psycopg2
from psycopg2 import errors, sql
from psycopg2.extensions import connection as PsycopgConnection  # noqa: N812 - psycopg2 spells its class in lower case
from psycopg2.extensions import encrypt_password

from nightscout_lakehouse.lib.embedded_postgres import (
    embedded_postgres,
    generate_password,
    kept_address,
    password_file,
    read_password,
    write_private_file,
)
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection, parse_database_url, statement_failed
from nightscout_lakehouse.lib.settings import Settings

logger = getLogger(__name__)

READER: Final = "bi_reader"
READER_STATEMENT_TIMEOUT: Final = "60s"

# Raised whenever _SCHEMAS or _READER changes, so that an existing database gets the change.
_LAYOUT: Final = "nightscout-lakehouse layout 2"

_SCHEMAS: Final = """
create schema if not exists curated;
create schema if not exists marts;
create schema if not exists ops;
revoke all on schema curated, marts, ops from public;
create table if not exists ops.publish_state (
    is_only_row boolean primary key default true check (is_only_row),
    warehouse_id text not null,
    change_seq bigint not null,
    published_at timestamptz not null
);
create table if not exists ops.published_tables (table_name text primary key, row_count bigint not null);
create table if not exists ops.pipeline_runs (
    run_id text primary key,
    job text not null,
    launched_by text not null,
    status text not null,
    started_at timestamptz not null,
    stale_minutes double precision not null,
    ended_at timestamptz,
    duration_seconds double precision,
    failed_step text,
    failure_reason text,
    slowest_step text,
    slowest_step_seconds double precision
);
create index if not exists pipeline_runs_started_at on ops.pipeline_runs (started_at);
create table if not exists ops.pipeline_run_sites (
    run_id text not null references ops.pipeline_runs on delete cascade,
    site text not null,
    started_at timestamptz not null,
    is_read boolean,
    error text,
    unread_collections text,
    documents_fetched bigint not null,
    documents_landed bigint not null,
    documents_unchanged bigint not null,
    deletions bigint not null,
    rows_stored bigint not null,
    rows_duplicate bigint not null,
    rows_quarantined bigint not null,
    newest_document_at timestamptz,
    read_seconds double precision not null,
    primary key (run_id, site)
);
create index if not exists pipeline_run_sites_started_at on ops.pipeline_run_sites (started_at);
create index if not exists pipeline_run_sites_site on ops.pipeline_run_sites (site, started_at);
create index if not exists pipeline_run_sites_unread on ops.pipeline_run_sites (site, started_at) where not is_read;
"""

# Defaults for the role: it could change them in a session, but its privileges hold all the same.
_READER_ATTRIBUTES: Final = f"""
alter role {READER} noinherit connection limit 20;
alter role {READER} set default_transaction_read_only = on;
alter role {READER} set statement_timeout = '{READER_STATEMENT_TIMEOUT}';
alter role {READER} set idle_in_transaction_session_timeout = '{READER_STATEMENT_TIMEOUT}';
alter role {READER} set search_path = marts;
"""

_READER_GRANTS: Final = f"""
revoke all on schema curated, ops from {READER};
grant usage on schema marts to {READER};
grant select on all tables in schema marts to {READER};
alter default privileges in schema marts grant select on tables to {READER};
"""

# Only where the database is ours alone: other programs may live off these defaults elsewhere.
_DEDICATED: Final = f"""
revoke all on schema public from public;
revoke all on database {{database}} from public;
grant connect on database {{database}} to {READER};
"""


@dataclass(frozen=True)
class QueryResult:
    """What a query found.

    Attributes:
        columns: Their names.
        rows: The rows, at most as many as were asked for.
        is_cut: Whether there were more.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    is_cut: bool


@contextmanager
def serving_database(settings: Settings) -> Iterator[PostgresConnection]:
    """Have the serving database at hand, with its schemas and roles in place.

    The one of `DATABASE_URL`, or else the embedded one, which runs for as long as the block lasts.

    Raises:
        ConfigurationError: `DATABASE_URL` is malformed.
        ServingDatabaseError: The database cannot be started, reached or prepared.
    """
    url = settings.database_url.get_secret_value()
    if url:
        connection = parse_database_url(url)
        prepare_database(connection)
        yield connection
        return
    with embedded_postgres(settings.postgres_dir) as connection:
        prepare_database(connection, reader_password_file=password_file(settings.postgres_dir, READER))
        yield connection


def serving_address(settings: Settings) -> str:
    """Which database the marts are in, without a password: for people. Starts nothing."""
    url = settings.database_url.get_secret_value()
    if url:
        return parse_database_url(url).address
    return kept_address(settings.postgres_dir) or f"in {settings.postgres_dir}"


def is_serving_database_known(settings: Settings) -> bool:
    """Whether there is a serving database: an external one, or an embedded one that has run before."""
    return bool(settings.database_url.get_secret_value()) or kept_address(settings.postgres_dir) is not None


def reader_connection(settings: Settings, connection: PostgresConnection) -> PostgresConnection | None:
    """How a dashboard reaches the embedded database as `bi_reader`; None for an external one.

    There its administrator gives out the password.
    """
    if settings.database_url.get_secret_value():
        return None
    password = read_password(password_file(settings.postgres_dir, READER))
    return replace(connection, user=READER, password=password) if password else None


def prepare_database(connection: PostgresConnection, *, reader_password_file: Path | None = None) -> None:
    """Put schemas, bookkeeping tables and the role `bi_reader` in place; one query if they are.

    Args:
        connection: The owner's connection.
        reader_password_file: The database is ours alone: shut PUBLIC out, let `bi_reader` log in, and keep its
            generated password here. None for a shared database, where the role cannot log in until its
            administrator gives it a password.

    Raises:
        ServingDatabaseError: The user may not create schemas, or the database fails.
    """
    opened = connection.connect()
    opened.autocommit = True
    try:
        if _is_prepared(opened, reader_password_file):
            return
        with opened.cursor() as cursor:
            # Of the session: what is written to the password file must be what was committed last.
            cursor.execute("select pg_advisory_lock(hashtext('nightscout-lakehouse prepare'))")
            cursor.execute(
                "select current_setting('is_superuser') = 'on' or rolcreaterole from pg_roles "
                "where rolname = current_user"
            )
            may_create_roles = bool((cursor.fetchone() or (False,))[0])
        _prepare(opened, connection, reader_password_file, may_create_roles=may_create_roles)
    except psycopg2.Error as error:
        raise statement_failed(connection, error) from None
    finally:
        opened.close()


def _is_prepared(opened: PsycopgConnection, reader_password_file: Path | None) -> bool:
    if reader_password_file is not None and read_password(reader_password_file) is None:
        return False
    with opened.cursor() as cursor:
        cursor.execute(
            """
            select coalesce(
                obj_description(to_regnamespace('ops'), 'pg_namespace') = %s
                and to_regclass('ops.publish_state') is not null
                and to_regclass('ops.published_tables') is not null
                and to_regclass('ops.pipeline_run_sites') is not null
                and to_regnamespace('curated') is not null
                and has_schema_privilege(to_regrole(%s)::oid, to_regnamespace('marts')::oid, 'usage'),
                false
            )
            """,
            (_LAYOUT, READER),
        )
        return bool((cursor.fetchone() or (False,))[0])


def _prepare(
    opened: PsycopgConnection,
    connection: PostgresConnection,
    reader_password_file: Path | None,
    *,
    may_create_roles: bool,
) -> None:
    opened.autocommit = False
    new_password = None
    with opened.cursor() as cursor:
        # "already exists, skipping" is not news.
        cursor.execute("set local client_min_messages = warning")
        cursor.execute(_SCHEMAS)
        cursor.execute("select exists (select from pg_roles where rolname = %s)", (READER,))
        has_reader = bool((cursor.fetchone() or (False,))[0])
        if not has_reader and may_create_roles:
            cursor.execute(sql.SQL("create role {} nologin").format(sql.Identifier(READER)))
        if reader_password_file is not None:
            kept = read_password(reader_password_file)
            new_password = None if kept and has_reader else kept or generate_password()
            if new_password is not None:
                verifier = encrypt_password(new_password.get_secret_value(), READER, opened, "scram-sha-256")
                statement = sql.SQL("alter role {} login password {}")
                cursor.execute(statement.format(sql.Identifier(READER), sql.Literal(verifier)))
            cursor.execute(sql.SQL(_DEDICATED).format(database=sql.Identifier(connection.database)))
        if has_reader or may_create_roles:
            if may_create_roles:
                _or_else_warn(opened, connection, _READER_ATTRIBUTES)
                if not _may_become_reader(opened):
                    # For `read_query`; from version 16 on, making a role does not include taking it.
                    options = " with inherit false, set true" if opened.server_version >= 160_000 else ""
                    _or_else_warn(opened, connection, f"grant {READER} to current_user{options}")
            cursor.execute(_READER_GRANTS)
        else:
            logger.warning(
                "The role %s does not exist on %s and %s may not create it: dashboards have no login of their own. "
                "Ask its administrator to run: create role %s nologin noinherit;",
                READER,
                connection.host,
                connection.user,
                READER,
            )
        cursor.execute("comment on schema ops is %s", (_LAYOUT,))
    opened.commit()
    if reader_password_file is not None and new_password is not None:
        write_private_file(reader_password_file, new_password.get_secret_value())


def _or_else_warn(opened: PsycopgConnection, connection: PostgresConnection, statements: str) -> None:
    """Run statements about a role that somebody else may have made and may mind; warn if they are refused."""
    with opened.cursor() as cursor:
        cursor.execute("savepoint about_role")
        try:
            cursor.execute(statements)
        except errors.InsufficientPrivilege:
            cursor.execute("rollback to savepoint about_role")
            logger.warning(
                "%s may not do this; ask the administrator of %s to: %s",
                connection.user,
                connection.host,
                " ".join(statements.replace("current_user", connection.user).split()),
            )


def read_query(connection: PostgresConnection, query: str, *, max_rows: int = 1000) -> QueryResult:
    """Run a query that can only read: in a read-only transaction, and as `bi_reader` where that is possible.

    Args:
        connection: The reader's connection (see `reader_connection`), or the owner's, which then takes the reader's
            role if it may. The owner's is a guard against slips, not against intent: SQL can change the role back.
        query: One SQL statement.
        max_rows: Rows to return at most.

    Raises:
        ServingDatabaseError: The statement fails, writes, or takes longer than `READER_STATEMENT_TIMEOUT`.
    """
    opened = connection.connect()
    try:
        opened.set_session(readonly=True)
        with opened.cursor() as cursor:
            cursor.execute("select set_config('statement_timeout', %s, false)", (READER_STATEMENT_TIMEOUT,))
            if connection.user != READER and _may_become_reader(opened):
                cursor.execute(sql.SQL("set role {}").format(sql.Identifier(READER)))
            cursor.execute("select set_config('search_path', 'marts', false)")
        # What follows must not undo the role by rolling back.
        opened.commit()
        with _result_cursor(opened, query) as cursor:
            cursor.execute(query)
            rows = cursor.fetchmany(max_rows + 1) if cursor.description or cursor.name else []
            columns = tuple(column.name for column in cursor.description or ())
        return QueryResult(columns, rows[:max_rows], len(rows) > max_rows)
    except psycopg2.Error as error:
        raise statement_failed(connection, error) from None
    finally:
        opened.close()


def _may_become_reader(opened: PsycopgConnection) -> bool:
    # Until version 16 every membership came with SET ROLE.
    privilege = "SET" if opened.server_version >= 160_000 else "MEMBER"
    with opened.cursor() as cursor:
        cursor.execute("select pg_has_role(oid, %s) from pg_roles where rolname = %s", (privilege, READER))
        return bool((cursor.fetchone() or (False,))[0])


def _result_cursor(opened: PsycopgConnection, query: str) -> Any:
    # A cursor on the server: a query for everything must not fill our memory. Other statements cannot have one.
    first_word = query.split(None, 1)[0].lower() if query.strip() else ""
    if first_word.rstrip("(") in {"select", "with", "table", "values"}:
        return opened.cursor(name="read_query")
    return opened.cursor()
