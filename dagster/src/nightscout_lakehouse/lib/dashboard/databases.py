"""The two databases of Superset: its own, and the marts that it shows."""

from dataclasses import replace
from typing import Final

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import encrypt_password

from nightscout_lakehouse.lib.embedded_postgres import (
    SUPERUSER,
    generate_password,
    password_file,
    read_password,
    write_private_file,
)
from nightscout_lakehouse.lib.errors import ConfigurationError, LakehouseError, ServingDatabaseError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection, parse_database_url, statement_failed
from nightscout_lakehouse.lib.serving import READER, read_query, reader_connection
from nightscout_lakehouse.lib.settings import Settings

SUPERSET: Final = "superset"
# Every dashboard needs it, so that it tells whether the pipeline has run.
_A_MART: Final = "marts.mart_glucose_current"


def metadata_connection(settings: Settings, owner: PostgresConnection) -> PostgresConnection:
    """Where Superset keeps its users, charts and dashboards; made first in the embedded Postgres.

    There it is a database `superset` that only the role `superset` may enter, which may enter no other. Elsewhere it
    is the one of `SUPERSET_DATABASE_URL`.

    Args:
        settings: Say which.
        owner: The owner's connection to the serving database, which runs.

    Raises:
        ConfigurationError: `DATABASE_URL` is set and `SUPERSET_DATABASE_URL` is not, or it is malformed.
        ServingDatabaseError: The database cannot be made or reached.
    """
    url = settings.superset_database_url.get_secret_value()
    if url:
        connection = parse_database_url(url, variable="SUPERSET_DATABASE_URL")
        connection.connect().close()
        return connection
    if settings.database_url.get_secret_value():
        raise ConfigurationError(
            "DATABASE_URL names a Postgres of yours, and Superset has no database there.",
            "Make one that it owns, apart from the marts, and set SUPERSET_DATABASE_URL.",
        )
    return _embedded_metadata_database(settings, owner)


def marts_connection(settings: Settings, owner: PostgresConnection) -> PostgresConnection:
    """How Superset reads the marts: as `bi_reader`, which may do nothing else.

    Raises:
        ConfigurationError: The database is an external one, and `BI_READER_PASSWORD` is not set.
        LakehouseError: There are no marts yet.
        ServingDatabaseError: The role cannot log in.
    """
    reader = reader_connection(settings, owner)
    if reader is None:
        if not settings.bi_reader_password.get_secret_value():
            raise ConfigurationError(
                f"The password of {READER} in {owner.host} is not known.",
                f"Let its administrator run `alter role {READER} login password …`, and set BI_READER_PASSWORD.",
            )
        reader = replace(owner, user=READER, password=settings.bi_reader_password)
    if read_query(reader, f"select to_regclass('{_A_MART}') is not null").rows != [(True,)]:
        raise LakehouseError("There are no marts to show yet.", "Run `make run` first.")
    return reader


def _embedded_metadata_database(settings: Settings, owner: PostgresConnection) -> PostgresConnection:
    superuser_password = read_password(password_file(settings.postgres_dir, SUPERUSER))
    if superuser_password is None:
        raise ServingDatabaseError(f"{password_file(settings.postgres_dir, SUPERUSER)} is missing.")
    superuser = replace(owner, user=SUPERUSER, password=superuser_password, database="postgres")
    kept = password_file(settings.postgres_dir, SUPERSET)
    password = read_password(kept)
    name = sql.Identifier(SUPERSET)
    opened = superuser.connect()
    # A database cannot be made in a transaction.
    opened.autocommit = True
    try:
        with opened.cursor() as cursor:
            # Two that start at once would both make it.
            cursor.execute("select pg_advisory_lock(hashtext('nightscout-lakehouse superset'))")
            cursor.execute(
                "select exists (select from pg_roles where rolname = %(name)s), "
                "exists (select from pg_database where datname = %(name)s)",
                {"name": SUPERSET},
            )
            has_role, has_database = cursor.fetchone() or (False, False)
            if not has_role or password is None:
                password = password or generate_password()
                verifier = encrypt_password(password.get_secret_value(), SUPERSET, opened, "scram-sha-256")
                write_private_file(kept, password.get_secret_value())
                if not has_role:
                    cursor.execute(sql.SQL("create role {} login noinherit").format(name))
                cursor.execute(sql.SQL("alter role {} password {}").format(name, sql.Literal(verifier)))
            if not has_database:
                cursor.execute(sql.SQL("create database {} owner {}").format(name, name))
            cursor.execute(sql.SQL("revoke all on database {} from public").format(name))
    except psycopg2.Error as error:
        raise statement_failed(superuser, error) from None
    finally:
        opened.close()
    return replace(owner, user=SUPERSET, password=password, database=SUPERSET)
