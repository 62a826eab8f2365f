"""The embedded server: shared by processes, and whole again after anything was killed."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
from pydantic import SecretStr

from nightscout_lakehouse.lib.embedded_postgres import HOST, SUPERUSER, embedded_postgres, password_file, read_password
from nightscout_lakehouse.lib.errors import ServingDatabaseError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection

pytestmark = pytest.mark.postgres

USER = """
import sys, pathlib
from nightscout_lakehouse.lib.embedded_postgres import embedded_postgres
with embedded_postgres(pathlib.Path(sys.argv[1])) as connection:
    print(connection.port, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def made_once() -> Iterator[Path]:
    parent = Path(tempfile.mkdtemp(prefix="lakehouse-test-"))
    parent.chmod(0o711)
    with embedded_postgres(parent / "postgres"):
        pass
    yield parent / "postgres"
    shutil.rmtree(parent)


@pytest.fixture
def made_folder(postgres_folder: Path, made_once: Path) -> Path:
    """The folder of a server that has been made and stopped before, for tests that do not look at the making."""
    # Keeps who owns what: as root the server is another user.
    subprocess.run(["cp", "-a", str(made_once), str(postgres_folder)], check=True)
    return postgres_folder


class OtherProcess:
    """Another user of the server, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def port(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def leave(self) -> None:
        self.process.communicate("\n", timeout=60)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def postmaster(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().split("\n", 1)[0])


def answer(connection: PostgresConnection, query: str = "select 1") -> object:
    with connection.transaction() as opened, opened.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
    return row[0] if row else None


def password_of(folder: Path, role: str) -> SecretStr:
    password = read_password(password_file(folder, role))
    assert password is not None
    return password


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_made_on_first_use_and_kept(postgres_folder: Path) -> None:
    with embedded_postgres(postgres_folder) as first, first.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("create schema kept; create table kept.rows as select 7 as n")
    assert not is_listening(first.port)
    with embedded_postgres(postgres_folder) as second:
        assert second == first
        assert answer(second, "select n from kept.rows") == 7
        assert answer(second, "show timezone") == "UTC"
        assert answer(second, "show server_encoding") == "UTF8"
        superuser = replace(second, user=SUPERUSER, password=password_of(postgres_folder, SUPERUSER))
        assert answer(superuser, "show unix_socket_directories") == ""
        assert answer(superuser, "show listen_addresses") == HOST
        assert answer(second, "select rolsuper from pg_roles where rolname = current_user") is False
        assert (
            answer(second, "select datlocprovider::text || datlocale from pg_database where datname = 'lakehouse'")
            == "bC.UTF-8"
        )


def test_passwords_are_needed_and_private(postgres_folder: Path) -> None:
    with embedded_postgres(postgres_folder) as connection:
        for role in ("lakehouse", "postgres"):
            wrong = replace(connection, user=role, password=SecretStr("wrong"))
            with pytest.raises(ServingDatabaseError, match="refuses the user or the password"):
                wrong.connect()
        secret = connection.password.get_secret_value()
        for path in ("password", "superuser_password", "server.log", "users.lock"):
            assert stat.S_IMODE((postgres_folder / path).stat().st_mode) == 0o600
        assert stat.S_IMODE((postgres_folder / "data").stat().st_mode) == 0o700
        assert not list(postgres_folder.glob("*.initdb"))
        assert secret not in repr(connection) + str(connection) + connection.url()
        assert secret in connection.url(hide_password=False)
        command = subprocess.run(["ps", "-p", str(postmaster(postgres_folder)), "-o", "command="], capture_output=True)
        assert secret.encode() not in command.stdout
    assert secret not in (postgres_folder / "server.log").read_text()


def test_last_to_leave_stops_the_server(postgres_folder: Path) -> None:
    starter, other = OtherProcess(postgres_folder), OtherProcess(postgres_folder)
    port = starter.port()
    assert other.port() == port
    starter.leave()
    assert is_listening(port)
    with embedded_postgres(postgres_folder) as connection, embedded_postgres(postgres_folder) as nested:
        assert connection == nested
        other.leave()
        assert answer(connection) == 1
    assert not is_listening(port)


def test_server_of_a_killed_starter_is_taken_over(made_folder: Path) -> None:
    starter = OtherProcess(made_folder)
    starter.port()
    before = postmaster(made_folder)
    starter.kill()
    with embedded_postgres(made_folder) as connection:
        assert postmaster(made_folder) == before
        assert answer(connection) == 1
    assert not is_listening(connection.port)


def test_ctrl_c_leaves_the_server_to_the_others(made_folder: Path) -> None:
    starter = OtherProcess(made_folder)
    starter.port()
    with embedded_postgres(made_folder) as connection:
        starter.process.send_signal(signal.SIGINT)
        starter.process.communicate()
        assert os.getsid(postmaster(made_folder)) != os.getsid(0)
        assert answer(connection) == 1


def test_killed_server_comes_back(made_folder: Path) -> None:
    with embedded_postgres(made_folder) as connection:
        with connection.transaction() as opened, opened.cursor() as cursor:
            cursor.execute("create schema kept; create table kept.rows as select 7 as n")
        os.kill(postmaster(made_folder), signal.SIGKILL)
        # For another user, while this one is still there.
        with embedded_postgres(made_folder) as again:
            assert answer(again, "select n from kept.rows") == 7
        assert answer(connection) == 1


def test_stale_pid_file_of_a_living_process_does_not_count(made_folder: Path) -> None:
    with embedded_postgres(made_folder):
        content = (made_folder / "data" / "postmaster.pid").read_text().split("\n", 1)[1]
        os.kill(postmaster(made_folder), signal.SIGKILL)
    (made_folder / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n{content}")
    with embedded_postgres(made_folder) as connection:
        assert answer(connection) == 1


def test_half_made_folder_is_made_anew(postgres_folder: Path) -> None:
    (postgres_folder / "data.partial" / "base").mkdir(parents=True)
    with embedded_postgres(postgres_folder) as connection:
        assert answer(connection) == 1
    assert not (postgres_folder / "data.partial").exists()


def test_taken_port_is_replaced(made_folder: Path) -> None:
    before = int((made_folder / "port").read_text())
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind((HOST, before))
        thief.listen()
        with embedded_postgres(made_folder) as after:
            assert after.port != before
            assert answer(after) == 1
    with embedded_postgres(made_folder) as kept:
        assert kept.port == after.port


def test_data_of_another_version_is_refused(made_folder: Path) -> None:
    (made_folder / "data" / "PG_VERSION").write_text("15\n")
    with (
        pytest.raises(ServingDatabaseError, match=r"made by PostgreSQL 15, but the installed one is \d+.*Move"),
        embedded_postgres(made_folder),
    ):
        pass


def test_damaged_data_is_told_from_the_log(made_folder: Path) -> None:
    (made_folder / "data" / "global" / "pg_control").unlink()
    with (
        pytest.raises(ServingDatabaseError, match=r"does not start: .*pg_control.*server\.log"),
        embedded_postgres(made_folder),
    ):
        pass


def test_space_and_quotes_in_the_path(postgres_folder: Path) -> None:
    with embedded_postgres(postgres_folder / 'it\'s $HOME; "a" b') as connection:
        assert answer(connection) == 1


def test_file_in_the_way_is_named(postgres_folder: Path) -> None:
    postgres_folder.write_text("")
    with (
        pytest.raises(ServingDatabaseError, match=r"postgres cannot be used: File exists.*LAKEHOUSE_HOME"),
        embedded_postgres(postgres_folder),
    ):
        pass


def test_failing_block_stops_the_server_too(made_folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), embedded_postgres(made_folder) as connection:
        _ = 1 / 0
    assert eventually(lambda: not is_listening(connection.port))
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(**connection.parameters())
