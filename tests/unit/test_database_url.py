"""Reading `DATABASE_URL`, and never showing its password."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from nightscout_lakehouse.lib.errors import ConfigurationError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection, parse_database_url
from nightscout_lakehouse.lib.publishing import postgres_type


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_schemes(scheme: str) -> None:
    connection = parse_database_url(f"{scheme}://amy:p%40ss%2Fw%3A@db.example.org:5433/lake%20house?sslmode=require")
    assert connection == PostgresConnection(
        "db.example.org", 5433, "amy", SecretStr("p@ss/w:"), "lake house", sslmode="require"
    )


def test_defaults_and_ipv6() -> None:
    connection = parse_database_url(" postgresql://amy@[::1]/lake ")
    assert (connection.host, connection.port, connection.sslmode) == ("::1", 5432, "prefer")
    assert connection.password.get_secret_value() == ""
    assert "password" not in connection.parameters()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://amy:hunter2@host/db",
        "postgresql://amy:hunter2@host",
        "postgresql://amy:hunter2@host/",
        "postgresql://:hunter2@host/db",
        "postgresql://amy:hunter2@/db",
        "postgresql://amy:hunter2@host:port/db",
        "postgresql://amy:12/hunter2@host/db",
        "postgresql://amy:a#hunter2@host/db",
        "postgresql://amy:a?hunter2@host/db",
        "postgresql://amy:hunter2@host/db?sslmode=perhaps",
        "postgresql://amy:hunter2@host/db?options=-c%20x",
        "postgresql://amy:hunter2@[host/db",
        "hunter2",
    ],
)
def test_malformed_urls_are_refused_without_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_database_url(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@given(user=TEXT, password=TEXT, database=st.text("abcdef _-é", min_size=1), port=st.integers(1, 65535))
def test_url_round_trip(user: str, password: str, database: str, port: int) -> None:
    connection = PostgresConnection("host", port, user, SecretStr(password), database, "verify-full", "/ca file.pem")
    assert parse_database_url(connection.url(hide_password=False)) == connection


def test_password_is_never_shown() -> None:
    connection = parse_database_url("postgresql://amy:hunter2@host/db")
    assert "hunter2" not in f"{connection!r} {connection} {connection.url()} {connection.address}"
    assert connection.url() == "postgresql://amy:***@host:5432/db?sslmode=prefer"


@pytest.mark.parametrize(
    ("duckdb_type", "expected"),
    [
        ("DECIMAL(18,3)", "numeric(18,3)"),
        ("ENUM('a', 'b')", "text"),
        ("TIMESTAMP WITH TIME ZONE", "timestamp with time zone"),
    ],
)
def test_types(duckdb_type: str, expected: str) -> None:
    assert postgres_type(duckdb_type, "t.c") == expected
