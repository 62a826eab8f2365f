"""The client against a real HTTP server that misbehaves in every way servers do."""

import gzip
import hashlib
import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr
from scripted_server import Answer, ScriptedServer, cut_off, drip, hang, hang_in_the_body, send

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.nightscout_client import (
    AuthenticationError,
    FetchPolicy,
    NightscoutClient,
    NotNightscoutError,
    UnreachableError,
)
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES
from nightscout_lakehouse.lib.sites import Site

TOKEN = "reader-0123456789abcdef"
ENTRY = {"_id": "a" * 24, "type": "sgv", "sgv": 120, "date": 1_700_000_000_000}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    scripted.start()
    yield scripted
    scripted.stop()


def client(
    url: str, waits: list[float] | None = None, *, timeout_seconds: float = 5.0, attempts: int = 3, **site: str
) -> NightscoutClient:
    secrets = {name: SecretStr(value) for name, value in site.items()}
    policy = FetchPolicy(timeout_seconds=timeout_seconds, max_attempts=attempts, max_retry_wait_seconds=60)
    return NightscoutClient(Site("anna", url, **secrets), policy, sleep=(waits if waits is not None else []).append)  # type: ignore[arg-type]


def test_a_window_is_asked_for_by_date_with_a_count_and_no_condition(server: ScriptedServer) -> None:
    server.answers = [send(200, json.dumps([ENTRY]))]
    with client(server.url, token=TOKEN) as nightscout:
        (document,) = nightscout.documents(ENTRIES, 1000, 2000, 77)
    path, headers = server.requests[0]
    assert parse_qs(urlsplit(path).query) == {
        "find[date][$gte]": ["1000"],
        "find[date][$lt]": ["2000"],
        "count": ["77"],
    }
    assert headers["api-secret"] == TOKEN
    assert "gzip" in headers["accept-encoding"]
    assert not {"if-modified-since", "if-none-match"} & headers.keys()
    assert TOKEN not in path
    assert (document.id, document.date_ms) == ("a" * 24, 1_700_000_000_000.0)


def test_the_api_secret_is_sent_hashed(server: ScriptedServer) -> None:
    server.answers = [send(200, "[]")]
    with client(server.url, api_secret="my api secret") as nightscout:
        nightscout.documents(ENTRIES, 0, 1, 1)
    assert server.requests[0][1]["api-secret"] == hashlib.sha1(b"my api secret").hexdigest()


def test_gzip_is_understood_and_the_text_is_kept_as_sent(server: ScriptedServer) -> None:
    text = '{"_id":"x","identifier":"y","sgv":1.10,"date":"1700000000000"}'
    server.answers = [send(200, gzip.compress(f"[{text}]".encode()), Content_Encoding="gzip")]
    with client(server.url) as nightscout:
        (document,) = nightscout.documents(ENTRIES, 0, 1, 1)
    assert (document.text, document.id, document.date_ms) == (text, "y", None)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_never_retried_and_says_what_to_set(server: ScriptedServer, status: int) -> None:
    server.answers = [send(status, json.dumps({"status": status, "message": "Unauthorized"}))]
    with (
        client(server.url, token=TOKEN) as nightscout,
        pytest.raises(AuthenticationError, match="NIGHTSCOUT_TOKEN") as error,
    ):
        nightscout.documents(ENTRIES, 0, 1, 1)
    assert len(server.requests) == 1
    assert TOKEN not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (send(404, "Cannot GET", "text/html"), "no Nightscout API"),
        (send(200, "<!doctype html><title>Login</title>", "text/html"), "an HTML page instead of JSON"),
        (send(200, "hello", "text/plain"), "not JSON"),
        (send(200, "", "application/json"), "not JSON"),
        (send(200, "null"), "a list of entries"),
        (send(200, '{"status": "ok"}'), "a list of entries"),
        (send(302, "", Location="https://elsewhere.example.org/login"), "redirects to elsewhere.example.org"),
        (send(418, "{}"), "HTTP 418"),
    ],
)
def test_what_is_not_nightscout_is_said_at_once(server: ScriptedServer, answer: Answer, message: str) -> None:
    server.answers = [answer]
    with client(server.url) as nightscout, pytest.raises(NotNightscoutError, match=message):
        nightscout.documents(ENTRIES, 0, 1, 1)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        send(500, "{}"),
        send(502, "<html>", "text/html"),
        send(429, "{}"),
        send(200, '[{"_id": "a"'),
        cut_off,
        send(200, b"[]", Content_Encoding="gzip"),
    ],
    ids=["500", "502 page", "429", "truncated JSON", "cut off", "not compressed"],
)
def test_what_can_pass_is_tried_again(server: ScriptedServer, answer: Answer) -> None:
    waits: list[float] = []
    server.answers = [answer, answer, send(200, json.dumps([ENTRY]))]
    with client(server.url, waits) as nightscout:
        assert len(nightscout.documents(ENTRIES, 0, 1, 1)) == 1
        assert nightscout.requests == 3
    assert len(waits) == 2


def test_waits_grow_and_differ(server: ScriptedServer) -> None:
    waits: list[float] = []
    server.answers = [send(503, "{}")]
    with (
        client(server.url, waits, attempts=12) as nightscout,
        pytest.raises(UnreachableError, match="12 attempts: HTTP 503"),
    ):
        nightscout.documents(ENTRIES, 0, 1, 1)
    assert len(waits) == 11
    assert len(set(waits)) > 5
    assert max(waits) <= 30


def test_retry_after_is_honoured(server: ScriptedServer) -> None:
    waits: list[float] = []
    server.answers = [send(429, "{}", Retry_After="7"), send(200, "[]")]
    with client(server.url, waits) as nightscout:
        nightscout.documents(ENTRIES, 0, 1, 1)
    assert waits == [7.0]


def test_retry_after_can_be_a_time(server: ScriptedServer) -> None:
    waits: list[float] = []
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    server.answers = [send(503, "{}", Retry_After=later), send(200, "[]")]
    with client(server.url, waits) as nightscout:
        nightscout.documents(ENTRIES, 0, 1, 1)
    (wait,) = waits
    assert 20 < wait <= 50


def test_one_connection_serves_all_requests(server: ScriptedServer) -> None:
    server.answers = [send(200, json.dumps([ENTRY]))]
    with client(server.url) as nightscout:
        for start in range(5):
            nightscout.documents(ENTRIES, start, start + 1, 1)
    assert len(server.requests) == 5
    assert len(server.connections) == 1


def test_a_server_that_asks_for_more_time_than_a_run_has_is_left_alone(server: ScriptedServer) -> None:
    waits: list[float] = []
    server.answers = [send(429, "{}", Retry_After="3600")]
    with client(server.url, waits) as nightscout, pytest.raises(UnreachableError, match="asks to wait 3600 s"):
        nightscout.documents(ENTRIES, 0, 1, 1)
    assert waits == []


@pytest.mark.parametrize("answer", [hang, drip, hang_in_the_body], ids=["hangs", "drips", "hangs in the body"])
def test_a_server_that_hangs_does_not_hold_the_run(server: ScriptedServer, answer: Answer) -> None:
    server.answers = [answer]
    started = time.monotonic()
    with client(server.url, timeout_seconds=0.3, attempts=1) as nightscout, pytest.raises(UnreachableError):
        nightscout.documents(ENTRIES, 0, 1, 1)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("url", "reason"),
    [("http://127.0.0.1:9", "refused"), ("http://no-such-host.invalid", "host name is not known")],
)
def test_an_unreachable_server_is_named(url: str, reason: str) -> None:
    with client(url, attempts=2) as nightscout, pytest.raises(UnreachableError, match=reason) as error:
        nightscout.documents(ENTRIES, 0, 1, 1)
    assert "anna" in str(error.value)


def test_no_secret_in_logs_or_errors(server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="nightscout_lakehouse")
    server.answers = [send(500, "{}")]
    with client(server.url, token=TOKEN, api_secret="other secret") as nightscout:
        assert nightscout.change_hints(ENTRIES, None) is None
        with pytest.raises(LakehouseError) as error:
            nightscout.status()
    assert TOKEN not in caplog.text + str(error.value) + repr(error.value)
    assert "other secret" not in caplog.text


def test_the_profile_time_zone_is_that_of_the_profile_in_use(server: ScriptedServer) -> None:
    store = {"Old": {"timezone": "UTC"}, "Now": {"timezone": "Europe/Berlin"}}
    server.answers = [send(200, json.dumps([{"defaultProfile": "Now", "store": store}]))]
    with client(server.url) as nightscout:
        assert nightscout.profile_timezone() == "Europe/Berlin"


@pytest.mark.parametrize("profiles", [[], [{}], [{"defaultProfile": "x", "store": {}}], [{"store": None}], None])
def test_a_server_without_a_usable_profile_has_no_time_zone(server: ScriptedServer, profiles: object) -> None:
    server.answers = [send(200, json.dumps(profiles))]
    with client(server.url) as nightscout:
        assert nightscout.profile_timezone() is None
