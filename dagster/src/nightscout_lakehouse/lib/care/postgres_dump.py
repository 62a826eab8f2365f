"""Our schemas of a Postgres database in one file, by `pg_dump` and `pg_restore` of the wheel that brings the server."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nightscout_lakehouse.lib.embedded_postgres import client_environment, program
from nightscout_lakehouse.lib.errors import ServingDatabaseError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection

SCHEMAS: Final = ("curated", "marts", "ops")


def dump_database(connection: PostgresConnection, target: Path, schemas: Sequence[str] = SCHEMAS) -> None:
    """Write schemas, or with none named the whole database, as they are at one moment, to a new file.

    Owners and privileges are left out: they belong to the server, and `prepare_database` gives them anew.

    Raises:
        ServingDatabaseError: The server is newer than `pg_dump`, or fails.
    """
    command = [
        *("pg_dump", "--format=custom", "--no-owner", "--no-privileges"),
        *(f"--schema={schema}" for schema in schemas),
        f"--file={target}",
    ]
    _run(command, connection, "cannot be dumped")
    target.chmod(0o600)


def restore_database(connection: PostgresConnection, source: Path) -> None:
    """Put the schemas of a dump in the place of those that are there, in one transaction.

    Raises:
        ServingDatabaseError: The server refuses or fails; then it is as it was.
    """
    command = [
        *("pg_restore", "--clean", "--if-exists", "--no-owner", "--no-privileges"),
        *("--single-transaction", "--exit-on-error", f"--dbname={connection.database}", str(source)),
    ]
    _run(command, connection, "cannot be restored")


def _run(command: Sequence[str], connection: PostgresConnection, failure: str) -> None:
    password = connection.password.get_secret_value()
    environment = client_environment() | {
        "PGHOST": connection.host,
        "PGPORT": str(connection.port),
        "PGUSER": connection.user,
        "PGDATABASE": connection.database,
        "PGSSLMODE": connection.sslmode,
        "PGCONNECT_TIMEOUT": "10",
    }
    # Not as arguments: these any user of the machine can see.
    environment |= {"PGPASSWORD": password} if password else {}
    environment |= {"PGSSLROOTCERT": connection.sslrootcert} if connection.sslrootcert else {}
    finished = subprocess.run(  # noqa: S603 - our own binaries
        [str(program(command[0])), *command[1:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if finished.returncode:
        said = [line.strip() for line in finished.stderr.splitlines() if "error:" in line] or ["it says nothing"]
        reason = said[0].replace(password or "\0", "***")
        raise ServingDatabaseError(
            f"The database {connection.address} {failure}: {reason}.",
            "Is its version newer than 18? Then use its own tools and --without-postgres.",
        )
