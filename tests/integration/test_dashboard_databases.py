"""The databases of the dashboards where something is missing, or where the server is not ours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from psycopg2 import sql
from pydantic import SecretStr
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.lib.dashboard import environment
from nightscout_lakehouse.lib.dashboard.databases import marts_connection, metadata_connection
from nightscout_lakehouse.lib.errors import ConfigurationError, LakehouseError, ServingDatabaseError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.serving import READER
from nightscout_lakehouse.lib.settings import Settings

if TYPE_CHECKING:
    from conftest import Server  # the one beside this file

pytestmark = pytest.mark.postgres

PASSWORD = "p@ss/w:rd"


def settings_with(tmp_path: Path, **changes: str) -> Settings:
    return Settings(LAKEHOUSE_HOME=tmp_path / "home", _env_file=None, **changes)


@pytest.fixture
def foreign_reader(postgres_server: Server, serving: PostgresConnection) -> Iterator[PostgresConnection]:
    """The owner of a database whose administrator has given bi_reader a password."""
    kept = postgres_server.login(READER, serving.database).password
    set_password = sql.SQL("alter role {} password {}")
    role = sql.Identifier(READER)
    postgres_server.run_as_superuser(set_password.format(role, sql.Literal(PASSWORD)))
    yield serving
    postgres_server.run_as_superuser(set_password.format(role, sql.Literal(kept.get_secret_value())))


def test_a_foreign_server_is_read_with_the_password_of_the_setting(
    foreign_reader: PostgresConnection, tmp_path: Path
) -> None:
    url = foreign_reader.url(hide_password=False)
    with pytest.raises(ConfigurationError, match="BI_READER_PASSWORD"):
        marts_connection(settings_with(tmp_path, DATABASE_URL=url), foreign_reader)
    wrong = settings_with(tmp_path, DATABASE_URL=url, BI_READER_PASSWORD="wrong-one")
    with pytest.raises(ServingDatabaseError, match="refuses the user or the password") as caught:
        marts_connection(wrong, foreign_reader)
    assert "wrong-one" not in str(caught.value)
    settings = settings_with(tmp_path, DATABASE_URL=url, BI_READER_PASSWORD=PASSWORD)
    with pytest.raises(LakehouseError, match="There are no marts to show yet"):
        marts_connection(settings, foreign_reader)
    with foreign_reader.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("create table marts.mart_glucose_current (n int)")
    assert marts_connection(settings, foreign_reader) == replace(
        foreign_reader, user=READER, password=SecretStr(PASSWORD)
    )


def test_a_foreign_server_needs_a_database_for_superset(serving: PostgresConnection, tmp_path: Path) -> None:
    url = serving.url(hide_password=False)
    with pytest.raises(ConfigurationError, match="SUPERSET_DATABASE_URL"):
        metadata_connection(settings_with(tmp_path, DATABASE_URL=url), serving)
    with pytest.raises(ConfigurationError, match="SUPERSET_DATABASE_URL does not start with postgresql"):
        metadata_connection(settings_with(tmp_path, SUPERSET_DATABASE_URL="mysql://a:hunter2@b/c"), serving)
    with pytest.raises(ServingDatabaseError, match="cannot be reached"):
        metadata_connection(
            settings_with(tmp_path, SUPERSET_DATABASE_URL="postgresql://a:b@127.0.0.1:1/superset"), serving
        )
    settings = settings_with(tmp_path, DATABASE_URL=url, SUPERSET_DATABASE_URL=url)
    assert metadata_connection(settings, serving) == serving


def test_the_environment_holds_what_superset_needs_and_nothing_of_ours(
    serving: PostgresConnection, tmp_path: Path
) -> None:
    settings = settings_with(tmp_path, NIGHTSCOUT_TOKEN="reader-0123", SUPERSET_ADMIN_PASSWORD="for-the-admin")
    reader = replace(serving, user=READER, password=SecretStr(PASSWORD))
    machine = {"PATH": "/bin", "NIGHTSCOUT_TOKEN": "reader-0123", "PGPASSWORD": "x", "PYTHONPATH": "/elsewhere"}
    found = environment.superset_environment(settings, serving, reader, machine)
    assert found.keys() & machine.keys() == {"PATH"}
    assert "reader-0123" not in str(found)
    assert "p%40ss" not in found["SUPERSET_MARTS_URL"]
    assert found["BI_READER_PASSWORD"] == PASSWORD
    assert found["SUPERSET_ADMIN_PASSWORD"] == "for-the-admin"
    # Kept, for its owner alone.
    assert found["SUPERSET_SECRET_KEY"] == environment.secret_key(settings)
    assert len(found["SUPERSET_SECRET_KEY"]) == 64
    assert (settings.superset_dir / "secret_key").stat().st_mode & 0o777 == 0o600
    given = settings_with(tmp_path, SUPERSET_SECRET_KEY="k" * 40)
    assert environment.secret_key(given) == "k" * 40


@pytest.mark.parametrize("command", ["serve", "setup", "import", "export", "reset-password"])
def test_without_superset_or_marts_every_command_says_what_to_do(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "_PROGRAMS", tmp_path / "programs")
    result = CliRunner().invoke(app, ["dashboard", command])
    assert result.exit_code == 1
    assert "Superset is not installed. Run `make dashboard`" in " ".join(result.stderr.split())
    (tmp_path / "programs").mkdir()
    shutil.copy("/bin/true", tmp_path / "programs" / "python")
    result = CliRunner().invoke(app, ["dashboard", command])
    assert result.exit_code == 1
    assert "There are no marts to show yet. Run `make run` first." in " ".join(result.stderr.split())
    # Looking for marts makes no database.
    assert not (tmp_path / "a lakehouse" / "postgres").exists()
