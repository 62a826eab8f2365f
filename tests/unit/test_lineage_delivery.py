"""What becomes of an event: written, redacted, sent in order, kept when the server is away."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from lineage_receiver import Receiver
from pydantic import SecretStr

from nightscout_lakehouse.lib.lineage.emitter import CLOSE_SECONDS, Emitter
from nightscout_lakehouse.lib.lineage.events import START, JobRun, event
from nightscout_lakehouse.lib.lineage.facts import ErrorFacts, RunFacts
from nightscout_lakehouse.lib.lineage.journal import Journal, event_files, read_lines
from nightscout_lakehouse.lib.lineage.outbox import Outbox
from nightscout_lakehouse.lib.redaction import redactor
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "false")


@pytest.fixture
def emitting(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("OPENLINEAGE_URL", receiver.url)
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "key-0123456789")
    # The client writes its own variables from this one.
    for name in ("URL", "TYPE", "AUTH", "ENDPOINT"):
        monkeypatch.setenv(f"OPENLINEAGE__TRANSPORT__TRANSPORTS__DEFAULT_HTTP__{name}", "")
        monkeypatch.delenv(f"OPENLINEAGE__TRANSPORT__TRANSPORTS__DEFAULT_HTTP__{name}")
    return load_settings()


def emit(emitter: Emitter, count: int, start: int = 0) -> None:
    run = RunFacts(str(uuid4()), "nightscout_pipeline")
    for number in range(start, start + count):
        emitter.emit(event(START, datetime.now(UTC), JobRun(run, f"job {number}", "STEP")))


def opened(settings: Settings) -> Emitter:
    return Emitter(settings, lambda: redactor(settings))


def names(events: list[dict[str, Any]]) -> list[str]:
    return [each["job"]["name"] for each in events]


def in_file(settings: Settings) -> list[dict[str, Any]]:
    return [json.loads(line) for path in event_files(settings.lineage_dir) for line in read_lines(path)]


def test_an_event_is_written_and_sent(receiver: Receiver, emitting: Settings) -> None:
    emitter = opened(emitting)
    emit(emitter, 3)
    receiver.wait_for(3)
    emitter.close()
    assert names(receiver.events) == names(in_file(emitting)) == ["job 0", "job 1", "job 2"]
    assert receiver.events == in_file(emitting)
    assert receiver.headers[0]["Authorization"] == "Bearer key-0123456789"
    assert not (emitting.lineage_dir / "outbox.ndjson").exists()
    assert receiver.events[0]["producer"].startswith("urn:nightscout-lakehouse:")


def test_a_server_that_is_stopped_gets_everything_later_in_order(
    receiver: Receiver, emitting: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    emitter = opened(emitting)
    emit(emitter, 5)
    receiver.wait_for(5)
    receiver.stop()
    emit(emitter, 5, start=5)
    started = time.monotonic()
    with caplog.at_level(logging.INFO):
        emitter.close()
    assert time.monotonic() - started < CLOSE_SECONDS + 2
    assert "5 lineage events wait to be sent by the next run." in caplog.text
    assert "key-0123456789" not in caplog.text
    assert names(receiver.events) == [f"job {number}" for number in range(5)]

    receiver.start()
    following = opened(emitting)
    emit(following, 2, start=10)
    receiver.wait_for(12)
    following.close()
    assert names(receiver.events) == [f"job {number}" for number in range(12)]
    assert receiver.events == in_file(emitting)


def test_a_server_that_comes_back_is_used_in_the_same_run(receiver: Receiver, tmp_path: Path) -> None:
    def send(each: dict[str, Any]) -> None:
        if not is_up:
            raise ConnectionError
        taken.append(each["n"])

    taken: list[int] = []
    is_up = False
    outbox = Outbox(tmp_path, "outbox", send, first_pause_seconds=0.05)
    for number in range(4):
        outbox.put(json.dumps({"n": number}))
    time.sleep(0.1)
    is_up = True
    deadline = time.monotonic() + 60
    while len(taken) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    outbox.put(json.dumps({"n": 4}))
    assert outbox.close()
    assert taken == [0, 1, 2, 3, 4]


def test_a_server_that_hangs_counts_as_down(receiver: Receiver, emitting: Settings) -> None:
    receiver.answer = lambda _event: 0
    emitter = opened(emitting)
    emit(emitter, 50)
    started = time.monotonic()
    emitter.close()
    assert time.monotonic() - started < CLOSE_SECONDS + 2
    assert len(in_file(emitting)) == 50
    assert len(list(read_lines(emitting.lineage_dir / "outbox.ndjson"))) == 50


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_what_can_be_mended_is_kept(receiver: Receiver, emitting: Settings, status: int) -> None:
    receiver.answer = lambda _event: status
    emitter = opened(emitting)
    emit(emitter, 2)
    emitter.close()
    assert len(list(read_lines(emitting.lineage_dir / "outbox.ndjson"))) == 2
    receiver.answer = lambda _event: 201
    following = opened(emitting)
    emit(following, 1, start=2)
    receiver.wait_for(3)
    following.close()
    assert names(receiver.events) == ["job 0", "job 1", "job 2"]


def test_an_event_that_is_refused_holds_up_no_other(
    receiver: Receiver, emitting: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = lambda each: 422 if each["job"]["name"] == "job 1" else 201
    emitter = opened(emitting)
    emit(emitter, 3)
    receiver.wait_for(2)
    emitter.close()
    assert names(receiver.events) == ["job 0", "job 2"]
    kept = [json.loads(line) for line in read_lines(emitting.lineage_dir / "outbox-refused.ndjson")]
    assert names(kept) == ["job 1"]
    assert "refuses an event (422)" in caplog.text


def test_two_processes_send_each_event_once_and_in_order(tmp_path: Path) -> None:
    taken: list[int] = []
    both = [Outbox(tmp_path, "outbox", lambda each: taken.append(each["n"]), 0.02) for _ in range(2)]
    for number in range(300):
        both[number % 2].put(json.dumps({"n": number}))
    deadline = time.monotonic() + 60
    while len(taken) < 300 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert taken == list(range(300))


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append('{"n":1}')
    with journal.path.open("ab") as file:
        file.write(b'{"n":2,"half')
    journal.append('{"n":3}')
    assert [json.loads(line)["n"] for line in read_lines(journal.path)] == [1, 3]


def test_old_events_are_kept_up_to_a_bound_and_each_file_has_the_graph(tmp_path: Path) -> None:
    def line(job: str, number: int, facets: dict[str, Any]) -> str:
        each = {"eventType": "COMPLETE", "n": number, "job": {"namespace": "nightscout", "name": job}}
        return json.dumps(each | {"outputs": [{"facets": facets}]})

    journal = Journal(tmp_path)
    for number in range(6):
        journal.append(line("a", number, {"columnLineage": {}}))
        journal.append(line("b", number, {}))
        journal.rotate(largest_bytes=1, keep=3)
        assert [json.loads(each)["n"] for each in read_lines(journal.path)] == [number]
    files = event_files(tmp_path)
    assert len(files) == 4
    assert [json.loads(each)["n"] for each in read_lines(files[-2])] == [4, 5, 5]
    journal.rotate(largest_bytes=10_000)
    assert event_files(tmp_path) == files


def test_no_secret_passes_in_any_form(settings: Settings) -> None:
    with_secrets = settings.model_copy(
        update={
            "database_url": SecretStr("postgresql://me:p%40ss%2Fword9@db.example:5432/x"),
            "nightscout_url": SecretStr("https://ns.example/?token=reader-99887766"),
            "nightscout_api_secret": SecretStr("a long api secret"),
        }
    )
    clean_value = redactor(with_secrets, [Site("anna", "https://x", token=SecretStr("site-token-1"))]).clean_value
    # What Nightscout's API takes in the place of the secret.
    hashed = hashlib.sha1(b"a long api secret").hexdigest()
    text = (
        "postgresql://me:p%40ss%2Fword9@db.example:5432/x p@ss/word9 p%40ss%2Fword9 reader-99887766 site-token-1 "
        f"a long api secret a%20long%20api%20secret {hashed} "
        "http://u:unheard-of@host/x?token=unknown-one&count=1 api-secret=another"
    )
    shown = clean_value({"m": [text, {"site-token-1": 1}], "n": 5})
    for secret in ("p@ss/word9", "p%40ss", "reader-99887766", "site-token-1", "long api", "long%20api", "unheard-of"):
        assert secret not in json.dumps(shown)
    assert hashed not in json.dumps(shown)
    assert "unknown-one" not in json.dumps(shown)
    assert "another" not in json.dumps(shown)
    assert "count=1" in shown["m"][0]
    assert shown["n"] == 5


def test_the_secret_of_a_trace_is_not_written(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCOUT_TOKEN", "reader-0123456789abcdef")
    loaded = load_settings()
    emitter = opened(loaded)
    run = RunFacts(str(uuid4()), "nightscout_pipeline")
    error = ErrorFacts("refused: reader-0123456789abcdef", "at x(token='reader-0123456789abcdef')")
    emitter.emit(event(START, datetime.now(UTC), JobRun(run, "a", "STEP"), error=error))
    (written,) = in_file(loaded)
    assert written["run"]["facets"]["errorMessage"]["message"] == "refused: ***"
    assert "0123456789abcdef" not in json.dumps(written)


def test_the_clients_own_configuration_holds(receiver: Receiver, settings: Settings, tmp_path: Path) -> None:
    Path("openlineage.yml").write_text(
        f"""
transport:
  type: composite
  transports:
    marquez: {{type: http, url: "{receiver.url}", retry: {{total: 0}}}}
    copy: {{type: file, log_file_path: "{tmp_path / "copy.ndjson"}", append: true}}
tags:
  job: {{team: diabetes}}
"""
    )
    emitter = opened(settings)
    emit(emitter, 2)
    receiver.wait_for(2)
    emitter.close()
    assert names(receiver.events) == names(in_file(settings)) == ["job 0", "job 1"]
    assert receiver.events[0]["job"]["facets"]["tags"]["tags"][0]["value"] == "diabetes"
    copied = [json.loads(line) for line in (tmp_path / "copy.ndjson").read_text().splitlines()]
    assert names(copied) == ["job 0", "job 1"]


def test_a_transport_that_cannot_be_set_up_fails_nothing(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    Path("openlineage.yml").write_text("transport: {type: http}\n")
    emitter = opened(settings)
    emit(emitter, 1)
    emitter.close()
    assert len(in_file(settings)) == 1
    assert "The OpenLineage transport cannot be set up" in caplog.text


def test_a_url_that_is_none_is_not_shown_with_its_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "no-scheme-password-1234")
    opened(load_settings()).close()
    assert "The OpenLineage transport cannot be set up: Need valid url for OpenLineageClient, passed ***" in caplog.text
    assert "password-1234" not in caplog.text


def test_run_ids_follow_from_the_run_and_the_name() -> None:
    run = RunFacts(str(uuid4()), "nightscout_pipeline", datetime(2026, 1, 1, 12, tzinfo=UTC))
    root, step = JobRun(run, run.job, "JOB"), JobRun(run, "a", "STEP", run.job)
    assert root.run_id == run.run_id
    assert step.run_id == JobRun(replace(run), "a", "ASSET").run_id != JobRun(run, "b", "STEP").run_id
    facets = event(START, datetime.now(UTC), step).run.facets or {}
    assert facets["parent"].run.runId == facets["parent"].root.run.runId == run.run_id  # type: ignore[attr-defined]
    assert facets["nominalTime"].nominalStartTime == "2026-01-01T12:00:00.000Z"  # type: ignore[attr-defined]
