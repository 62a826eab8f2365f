"""How to reach a Postgres database, and what its refusals mean in plain words."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import psycopg2
from psycopg2 import errorcodes
from psycopg2.extensions import connection as PsycopgConnection  # noqa: N812 - psycopg2 spells its class in lower case
from pydantic import SecretStr

from nightscout_lakehouse.lib.errors import ConfigurationError, ServingDatabaseError

OLDEST_POSTGRES: Final = 14
CONNECT_TIMEOUT_SECONDS: Final = 10

_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg2")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_URL_FORM = "Write it as postgresql://user:password@host:5432/database, with special characters percent-encoded."


@dataclass(frozen=True)
class PostgresConnection:
    """Everything needed to reach one database; printing it never shows the password.

    Attributes:
        host: Name or address of the server.
        port: TCP port.
        user: Role to log in as.
        password: Its password; empty leaves it to libpq (`.pgpass`).
        database: Database to open.
        sslmode: libpq's TLS policy.
        sslrootcert: File with the certificate authority to trust, or `system`; empty for libpq's default.
    """

    host: str
    port: int
    user: str
    password: SecretStr
    database: str
    sslmode: str = "prefer"
    sslrootcert: str = ""

    @property
    def address(self) -> str:
        """Who connects where, without the password: for messages."""
        return f"{self.user}@{self.host}:{self.port}/{self.database}"

    def parameters(self) -> dict[str, Any]:
        """The keyword arguments of `psycopg2.connect`, password included."""
        parameters: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "dbname": self.database,
            "sslmode": self.sslmode,
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": "nightscout-lakehouse",
            "keepalives_idle": 30,
        }
        if self.password.get_secret_value():
            parameters["password"] = self.password.get_secret_value()
        if self.sslrootcert:
            parameters["sslrootcert"] = self.sslrootcert
        return parameters

    def url(self, *, hide_password: bool = True, scheme: str = "postgresql") -> str:
        """The connection as a URL.

        Args:
            hide_password: Put `***` in the place of the password.
            scheme: `postgresql+psycopg2` for SQLAlchemy.
        """
        password = "***" if hide_password else quote(self.password.get_secret_value(), safe="")
        login = quote(self.user, safe="") + (f":{password}" if self.password.get_secret_value() else "")
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        options = {"sslmode": self.sslmode} | ({"sslrootcert": self.sslrootcert} if self.sslrootcert else {})
        return f"{scheme}://{login}@{host}:{self.port}/{quote(self.database, safe='')}?{urlencode(options)}"

    def connect(self) -> PsycopgConnection:
        """Open a connection; the caller closes it.

        Raises:
            ServingDatabaseError: The server cannot be reached, refuses, or is older than `OLDEST_POSTGRES`.
        """
        try:
            opened: PsycopgConnection = psycopg2.connect(**self.parameters())
        except psycopg2.Error as error:
            raise connection_refused(self, error) from None
        if opened.server_version < OLDEST_POSTGRES * 10_000:
            major = opened.server_version // 10_000
            opened.close()
            raise ServingDatabaseError(
                f"The database {self.address} is PostgreSQL {major}.",
                f"PostgreSQL {OLDEST_POSTGRES} or newer is needed.",
            )
        return opened

    @contextmanager
    def transaction(self) -> Iterator[PsycopgConnection]:
        """Open a connection for one transaction: committed at the end, rolled back on any exception.

        Raises:
            ServingDatabaseError: Any failure of the database, in plain words.
        """
        opened = self.connect()
        try:
            yield opened
            opened.commit()
        except psycopg2.Error as error:
            raise statement_failed(self, error) from None
        finally:
            # Closing rolls back what was not committed.
            opened.close()


def parse_database_url(url: str, *, variable: str = "DATABASE_URL") -> PostgresConnection:
    """Read a `DATABASE_URL`.

    Args:
        url: `postgresql://`, `postgres://` or `postgresql+psycopg2://`; `sslmode` and `sslrootcert` may follow
            as query parameters.
        variable: Name of the setting, for messages.

    Raises:
        ConfigurationError: The URL is malformed; the message never quotes a part that could hold the password.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
        query = parse_qsl(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        raise ConfigurationError(f"{variable} is malformed.", _URL_FORM) from None
    database = unquote(parts.path.removeprefix("/"))
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(f"{variable} does not start with postgresql://.", _URL_FORM)
    # A password with a bare # / ? or @ moves the borders between the parts, hence the last three tests.
    if not host or not parts.username or not database or "/" in database or "@" in database or parts.fragment:
        raise ConfigurationError(f"{variable} lacks a user, host or database, or is not well formed.", _URL_FORM)
    options = dict(query)
    unknown = sorted(options.keys() - {"sslmode", "sslrootcert"})
    if unknown:
        raise ConfigurationError(
            f"{variable} has a parameter that is not supported.", "Only sslmode and sslrootcert may follow the `?`."
        )
    sslmode = options.get("sslmode", "prefer")
    if sslmode not in _SSL_MODES:
        raise ConfigurationError(f"{variable} has an unknown sslmode.", f"It is one of {', '.join(_SSL_MODES)}.")
    return PostgresConnection(
        host=unquote(host),
        port=port or 5432,
        user=unquote(parts.username),
        password=SecretStr(unquote(parts.password or "")),
        database=database,
        sslmode=sslmode,
        sslrootcert=options.get("sslrootcert", ""),
    )


# libpq gives no error code when a connection fails, only its English text.
_REFUSALS: Final = (
    (r"password authentication failed|no password supplied", "refuses the user or the password", "Check DATABASE_URL."),
    (r'database ".*" does not exist', "has no database of this name", "Create it, or correct DATABASE_URL."),
    (r'role ".*" does not exist', "does not know the user", "Check the user in DATABASE_URL."),
    (r"could not translate host name|resolve host|Name or service", "has a host name nobody knows", "Check the host."),
    (
        r"Connection refused|No route to host|Network is unreachable|timeout expired|timed out",
        "cannot be reached",
        "Check the host and port, and that the server runs and accepts connections from here.",
    ),
    (
        r"SSL|certificate|TLS",
        "and this machine do not agree on TLS",
        "Check sslmode and sslrootcert in DATABASE_URL.",
    ),
    (r"no pg_hba.conf entry", "does not let this user in from here", "Its administrator must allow it in pg_hba.conf."),
    (r"permission denied for database", "does not let the user connect", "Grant it CONNECT on the database."),
    (r"too many|remaining connection slots", "has no connection left", "Try again later."),
    (r"starting up|shutting down|recovery mode", "is starting or stopping", "Try again in a moment."),
)


def connection_refused(connection: PostgresConnection, error: psycopg2.Error) -> ServingDatabaseError:
    """What a failed attempt to connect means, in plain words and without the password."""
    text = _without_password(str(error), connection)
    for pattern, meaning, hint in _REFUSALS:
        if re.search(pattern, text):
            return ServingDatabaseError(f"The database {connection.address} {meaning}.", hint)
    return ServingDatabaseError(f"The database {connection.address} cannot be opened: {_first_line(text)}.")


def statement_failed(connection: PostgresConnection, error: psycopg2.Error) -> ServingDatabaseError:
    """What a failed statement means, in plain words and without the password."""
    text = _first_line(_without_password(str(error), connection))
    prefix = f"The database {connection.address}"
    match error.pgcode:
        case errorcodes.INSUFFICIENT_PRIVILEGE:
            return ServingDatabaseError(f"{prefix} refuses: {text}.", "Grant the user what the message names.")
        case errorcodes.DISK_FULL:
            return ServingDatabaseError(f"{prefix} has no disk space left: {text}.", "Free some and run again.")
        case errorcodes.QUERY_CANCELED:
            return ServingDatabaseError(f"{prefix} stopped the statement: {text}.", "Narrow it and try again.")
        case errorcodes.LOCK_NOT_AVAILABLE:
            return ServingDatabaseError(f"{prefix} is busy: {text}.", "Wait for the other writer to finish.")
        case None if not isinstance(error, psycopg2.ProgrammingError):
            return ServingDatabaseError(f"{prefix} was lost: {text}.", "Nothing was half-written; run again.")
        case _:
            return ServingDatabaseError(f"{prefix} reports: {text}.")


def _without_password(text: str, connection: PostgresConnection) -> str:
    password = connection.password.get_secret_value()
    return text.replace(password, "***") if password else text


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].rstrip(".")
