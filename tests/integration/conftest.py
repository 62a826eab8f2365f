"""What the integration tests share: one real Postgres for all of them, a fresh database for each test."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chromium import CHROMIUM, MISSING, launched
from psycopg2 import sql

from nightscout_lakehouse.lib.embedded_postgres import SUPERUSER, embedded_postgres, password_file, read_password
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.serving import READER, prepare_database

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from superset_server import SupersetServer


# Their asserts say what differs, as those of the tests do.
pytest.register_assert_rewrite("dashboard_visit", "superset_server")


@dataclass(frozen=True)
class Server:
    """The running server: its folder and the owner's connection to the database `lakehouse`."""

    directory: Path
    owner: PostgresConnection

    def login(self, role: str, database: str) -> PostgresConnection:
        """How a role with a kept password reaches a database."""
        password = read_password(password_file(self.directory, role))
        assert password is not None
        return replace(self.owner, user=role, password=password, database=database)

    def run_as_superuser(self, statement: sql.Composable, database: str = "postgres") -> None:
        opened = self.login(SUPERUSER, database).connect()
        opened.autocommit = True
        try:
            with opened.cursor() as cursor:
                cursor.execute(statement)
        finally:
            opened.close()


@pytest.fixture
def postgres_folder() -> Iterator[Path]:
    """An empty folder for a server, which may run as another user when the tests run as root."""
    # pytest's own folders are closed to others.
    parent = Path(tempfile.mkdtemp(prefix="lakehouse-test-"))
    if os.geteuid() == 0:
        parent.chmod(0o711)
    yield parent / "postgres"
    shutil.rmtree(parent)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """One embedded server for the whole session."""
    parent = Path(tempfile.mkdtemp(prefix="lakehouse-test-"))
    if os.geteuid() == 0:
        parent.chmod(0o711)
    directory = parent / "postgres"
    with embedded_postgres(directory) as owner:
        prepare_database(owner, reader_password_file=password_file(directory, READER))
        yield Server(directory, owner)
    shutil.rmtree(parent)


@pytest.fixture
def serving(postgres_server: Server) -> Iterator[PostgresConnection]:
    """The owner's connection to a prepared database of the test's own."""
    # Always the same name: dbt parses the project anew for each other one.
    name = "lakehouse_of_a_test"
    identifiers = {"name": sql.Identifier(name), "owner": sql.Identifier(postgres_server.owner.user)}
    postgres_server.run_as_superuser(sql.SQL("create database {name} owner {owner}").format(**identifiers))
    connection = replace(postgres_server.owner, database=name)
    prepare_database(connection, reader_password_file=password_file(postgres_server.directory, READER))
    yield connection
    postgres_server.run_as_superuser(sql.SQL("drop database {name} with (force)").format(**identifiers))


@pytest.fixture(scope="session")
def superset() -> "Iterator[SupersetServer]":
    """Superset on the marts of made-up people, the demo's among them, once for the whole session: a minute.

    Files of tests that use it are named `test_dashboard*.py`: those run in one process (see `tests/conftest.py`).
    """
    from superset_server import IS_INSTALLED, made_up_people, superset_server

    if not IS_INSTALLED:
        pytest.skip("Superset is not installed; `make dashboard-setup` installs it")
    with made_up_people() as sites, superset_server(sites) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium, ended with the module."""
    if CHROMIUM is None:
        pytest.skip(MISSING)
    with launched() as running:
        yield running
