"""Ticks: what is tried again, what stands, and that two never write at once."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg2
import pytest
from pydantic import SecretStr
from scripted_server import ScriptedServer, cut_off, send

from nightscout_lakehouse.defs import retrying
from nightscout_lakehouse.defs.ingestion.nightscout_assets import (
    _fail_if_none_was_read,
    raw_nightscout_entries,
    raw_nightscout_profiles,
)
from nightscout_lakehouse.defs.resources import LakehouseResource
from nightscout_lakehouse.defs.retrying import MOST_RETRIES, retries_what_may_pass
from nightscout_lakehouse.instance import BY_HAND_TAG
from nightscout_lakehouse.lib.errors import (
    ConfigurationError,
    LakeError,
    ServingDatabaseUnreachableError,
    WarehouseInUseError,
)
from nightscout_lakehouse.lib.ingestion import SiteIngestion
from nightscout_lakehouse.lib.nightscout_client import AuthenticationError, UnreachableError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection, connection_refused
from nightscout_lakehouse.lib.settings import Settings

STAYS = [
    AuthenticationError("refused"),
    ConfigurationError("wrong"),
    LakeError("damaged"),
    dg.Failure("a model's test", allow_retries=False),
    ValueError("a fault of ours"),
]
PASSES = [
    UnreachableError("network"),
    WarehouseInUseError("lock"),
    ServingDatabaseUnreachableError("away"),
    dg.Failure("No site could be read.", allow_retries=True),
]


def attempts(failures: list[Exception], tags: dict[str, str] | None = None) -> tuple[int, dg.ExecuteInProcessResult]:
    left, made = list(failures), 0

    @dg.asset
    @retries_what_may_pass
    def step(lakehouse: dg.ResourceParam[str]) -> Iterator[dg.MaterializeResult[None]]:
        nonlocal made
        made += 1
        if left:
            raise left.pop(0)
        yield dg.MaterializeResult()

    result = dg.materialize([step], raise_on_error=False, tags=tags, resources={"lakehouse": "x"})
    return made, result


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_WAIT_SECONDS", 0)


@pytest.mark.parametrize("error", PASSES, ids=lambda error: str(error))
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    made, result = attempts([error, error])
    assert made == 3
    assert result.success


def test_what_does_not_pass_fails_in_the_end_and_names_its_cause() -> None:
    from nightscout_lakehouse.defs.alerts.failure import step_errors

    made, result = attempts([UnreachableError("Site anna: no usable answer.")] * 10)
    assert made == 1 + MOST_RETRIES
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert step_errors(failure).endswith("UnreachableError: Site anna: no usable answer.")


@pytest.mark.parametrize("error", STAYS, ids=lambda error: type(error).__name__)
def test_what_is_as_wrong_in_a_minute_is_not_tried_again(error: Exception) -> None:
    made, result = attempts([error])
    assert made == 1
    assert not result.success


def test_who_runs_it_by_hand_sees_the_failure_at_once() -> None:
    made, result = attempts([UnreachableError("network")], {BY_HAND_TAG: "run"})
    assert made == 1
    assert not result.success


@pytest.mark.parametrize(("may_pass", "expected"), [((True, True), True), ((True, False), False)])
def test_all_sites_unreachable_may_pass_but_not_where_one_refuses(may_pass: tuple[bool, ...], expected: bool) -> None:
    class NoFiles:
        sites_of_files = ()

    reports = [SiteIngestion(f"s{n}", error="x", error_may_pass=each) for n, each in enumerate(may_pass)]
    with pytest.raises(dg.Failure) as failure:
        _fail_if_none_was_read(NoFiles(), reports)  # type: ignore[arg-type]
    assert failure.value.allow_retries is expected


def test_a_server_that_comes_back_is_read_in_the_same_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ScriptedServer()
    server.answers = [cut_off, send(200, "[]")]
    server.start()
    monkeypatch.setenv("NIGHTSCOUT_URL", server.url)
    monkeypatch.setenv("NIGHTSCOUT_MAX_ATTEMPTS", "1")
    collections = [raw_nightscout_entries, raw_nightscout_profiles]
    result = dg.materialize(collections, resources={"lakehouse": LakehouseResource()}, raise_on_error=False)
    server.stop()
    assert result.success
    assert result.retry_attempts_for_node("raw_nightscout_entries") == 1
    # What follows in the run asks it, too.
    assert any("profile" in path for path, _ in server.requests[-1:])


@pytest.mark.parametrize(
    ("text", "may_pass"),
    [
        ('connection to server at "127.0.0.1", port 1 failed: Connection refused', True),
        ("FATAL:  the database system is starting up", True),
        ('FATAL:  password authentication failed for user "u"', False),
        ('FATAL:  database "d" does not exist', False),
    ],
)
def test_a_database_that_is_away_may_come_back_and_a_wrong_password_does_not(text: str, may_pass: bool) -> None:
    connection = PostgresConnection(host="127.0.0.1", port=1, user="u", password=SecretStr("pass-word-1"), database="d")
    assert connection_refused(connection, psycopg2.OperationalError(text)).is_transient is may_pass


def test_a_run_waits_for_the_one_that_writes_and_says_so_if_that_takes_too_long(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.home.mkdir(parents=True)
    code = (
        "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire();"
        " print('held', flush=True); input(); time.sleep(0.5); lock.release()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(settings.lock_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"

    @dg.asset
    def write(lakehouse: LakehouseResource) -> None:
        assert holder.poll() == 0 or settings.lock_path.exists()

    def tick() -> dg.ExecuteInProcessResult:
        return dg.materialize([write], resources={"lakehouse": LakehouseResource()}, raise_on_error=False)

    monkeypatch.setenv("LAKEHOUSE_LOCK_TIMEOUT_SECONDS", "0.2")
    assert not tick().success
    monkeypatch.setenv("LAKEHOUSE_LOCK_TIMEOUT_SECONDS", "120")
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert tick().success
    assert holder.wait(60) == 0


def test_processes_that_write_at_the_same_time_take_turns(settings: Settings, tmp_path: Path) -> None:
    settings.home.mkdir(parents=True)
    log = tmp_path / "log.txt"
    code = (
        "import sys, time; from nightscout_lakehouse.lib.locking import lake_lock;"
        " from nightscout_lakehouse.lib.settings import load_settings\n"
        "for _ in range(3):\n"
        "    with lake_lock(load_settings(), 'test'), open(sys.argv[1], 'a') as log:\n"
        "        print('begin', file=log, flush=True); time.sleep(0.05); print('end', file=log, flush=True)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(log)]) for _ in range(3)]
    assert [writer.wait(180) for writer in writers] == [0, 0, 0]
    assert log.read_text().split() == ["begin", "end"] * 9
