"""Alerts from a real Nightscout server to real receivers: what arrives, what is kept, and what never shows."""

import json
import logging
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from alert_receivers import SECRET, HttpReceiver, MailReceiver
from click.testing import Result
from scripted_server import ScriptedServer, send
from typer.testing import CliRunner

from nightscout_lakehouse.cli import _alert_on, app
from nightscout_lakehouse.demo import DemoOptions, DemoServer, DemoStore
from nightscout_lakehouse.instance import JobOutcome
from nightscout_lakehouse.lib.alerts.engine import Kind
from nightscout_lakehouse.lib.alerts.rules import Rule
from nightscout_lakehouse.lib.alerts.runs import run_failed, run_succeeded
from nightscout_lakehouse.lib.alerts.store import PIPELINE, AlertStore, Draft
from nightscout_lakehouse.lib.alerts.targets import Target, load_targets
from nightscout_lakehouse.lib.alerts.targets import send as send_for_real
from nightscout_lakehouse.lib.alerts.watch import Watched, watch_once
from nightscout_lakehouse.lib.alerts.wording import Text
from nightscout_lakehouse.lib.errors import ConfigurationError
from nightscout_lakehouse.lib.lake import Lake, ingestion_state_file
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.settings import load_settings

MINUTE = timedelta(minutes=1)


class Clock:
    """The one clock of server and lakehouse."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, minutes: float) -> None:
        self.now += minutes * MINUTE


@pytest.fixture(autouse=True)
def _logs_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    # A command that ran before has turned the package's log to its own console.
    monkeypatch.setattr(logging.getLogger("nightscout_lakehouse"), "propagate", True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpReceiver]:
    with HttpReceiver() as running:
        monkeypatch.setenv("LAKEHOUSE_ALERT_URLS", running.url)
        yield running


@pytest.fixture
def nightscout(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[DemoStore]:
    store = DemoStore(now=clock)
    with DemoServer(store, DemoOptions()) as server:
        monkeypatch.setenv("NIGHTSCOUT_URL", server.url)
        monkeypatch.setenv("NIGHTSCOUT_SITE", "anna")
        monkeypatch.setenv("NIGHTSCOUT_TIMEZONE", "Europe/Berlin")
        yield store


def put(store: DemoStore, clock: Clock, sgv: object, minutes_ago: float = 0, **changes: Any) -> None:
    date = int((clock.now - minutes_ago * MINUTE).timestamp() * 1000)
    number = len(store.all_entries()) + 1
    store.put({"_id": f"{number:024x}", "type": "sgv", "sgv": sgv, "date": date, "device": "sensor", **changes})


def look(clock: Clock) -> Watched:
    return watch_once(load_settings(), now=clock)


def lakehouse(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["alerts", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert SECRET not in result.output
    assert "Traceback" not in result.output
    return result


def test_from_a_low_reading_to_its_recovery(
    nightscout: DemoStore, receiver: HttpReceiver, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    put(nightscout, clock, 110)
    assert str(look(clock)) == "1 sites looked at, nothing to tell"
    clock.forward(5)
    put(nightscout, clock, 48)
    watched = look(clock)
    assert watched.told == ("URGENT LOW: anna 48 mg/dL (2.7 mmol/L)",)
    assert watched.delivered == 1
    (alert,) = receiver.received
    assert alert["title"] == "URGENT LOW: anna 48 mg/dL (2.7 mmol/L)"
    assert alert["type"] == "failure"
    assert "Alert: below 54 mg/dL (3.0 mmol/L)." in alert["message"]
    assert "Europe/Berlin, 0 min ago" in alert["message"]
    assert "No substitute for the sensor's own alarms" in alert["message"]
    # The same again says nothing; nor does another process, which knows only the file.
    clock.forward(1)
    assert look(clock).told == ()
    for minutes in (5, 5, 5, 5):
        clock.forward(minutes)
        put(nightscout, clock, 100)
    assert look(clock).told == ("Over: URGENT LOW: anna 100 mg/dL (5.6 mmol/L)",)
    assert receiver.received[-1]["type"] == "success"
    assert SECRET not in caplog.text


def test_only_readings_that_count_raise_an_alert(nightscout: DemoStore, receiver: HttpReceiver, clock: Clock) -> None:
    put(nightscout, clock, 110, 3)
    put(nightscout, clock, 45, 200)
    put(nightscout, clock, 5, 2)
    put(nightscout, clock, 700, 1)
    put(nightscout, clock, 40, -20, _id=f"{int(clock.now.timestamp()):08x}{'a' * 16}")
    for number in range(300):
        put(nightscout, clock, 40, -60 * 24 * (number + 1), _id=f"{int(clock.now.timestamp()):08x}{number:016x}")
    put(nightscout, clock, 40, 1, isValid=False)
    put(nightscout, clock, 40, 1, type="cal")
    assert look(clock).told == ()
    with AlertStore(load_settings().alerts_dir) as store:
        last = store.site_state("anna").last_reading
    assert last is not None
    assert last.glucose_mg_dl == 110
    # What was dated ahead does not count when its time has come.
    clock.forward(21)
    assert look(clock).told == ()
    # When such documents are all that comes, silence says why.
    clock.forward(40)
    put(nightscout, clock, 5, 1)
    assert "No readings: anna" in look(clock).told
    assert "Newer documents are no readings: sensor_error_code" in receiver.received[-1]["message"]


@pytest.mark.parametrize(
    ("said", "title", "line"),
    [
        ("LOW", "URGENT LOW: anna LOW", "LOW at {}, 0 min ago: below what the sensor measures."),
        ("hi", "URGENT HIGH: anna HIGH", "HIGH at {}, 0 min ago: above what the sensor measures."),
    ],
)
def test_a_sensor_that_says_low_or_high_is_heard(
    said: str, title: str, line: str, nightscout: DemoStore, receiver: HttpReceiver, clock: Clock
) -> None:
    put(nightscout, clock, 110, 5)
    put(nightscout, clock, said)
    assert look(clock).told == (title,)
    local = clock.now.astimezone(ZoneInfo("Europe/Berlin"))
    assert line.format(f"{local:%H:%M} Europe/Berlin") in receiver.received[-1]["message"]
    clock.forward(1)
    assert look(clock).told == ()


def test_of_two_uploaders_the_busier_counts_and_text_dates_are_found(
    nightscout: DemoStore, receiver: HttpReceiver, clock: Clock
) -> None:
    for minutes in range(0, 60, 5):
        put(nightscout, clock, 110, minutes)
    put(nightscout, clock, 45, 1, device="other")
    assert look(clock).told == ()
    for document in list(nightscout.all_entries()):
        nightscout.remove(document["_id"])
    moment = clock.now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    nightscout.put({"_id": "f" * 24, "type": "sgv", "sgv": "48", "date": moment, "dateString": moment})
    assert look(clock).told == ("URGENT LOW: anna 48 mg/dL (2.7 mmol/L)",)


def test_what_cannot_be_delivered_comes_later_once_and_says_so(
    nightscout: DemoStore, receiver: HttpReceiver, clock: Clock
) -> None:
    receiver.status = 503
    put(nightscout, clock, 48)
    watched = look(clock)
    assert watched.undelivered == ("first 1 (json): the service answers with HTTP 503",)
    listed = lakehouse("list")
    assert "first 1 (json) pending after 1 attempts" in " ".join(listed.output.split())
    assert "1 alert could not be delivered" in CliRunner().invoke(app, ["status"]).output
    # Back-off: not before a minute has passed; then two; reminders take the place of what waits.
    receiver.status = 200
    clock.forward(0.5)
    assert look(clock).delivered == 0
    receiver.status = 503
    for _ in range(20):
        clock.forward(1)
        put(nightscout, clock, 48)
        look(clock)
    receiver.status = 200
    clock.forward(8)
    look(clock)
    assert len(receiver.received) == 1
    assert "URGENT LOW: anna 48" in receiver.titles[0]
    assert "late] Still: " in receiver.titles[0]


def test_killed_after_sending_it_is_sent_again_and_before_nothing_is_lost(
    nightscout: DemoStore, receiver: HttpReceiver, clock: Clock
) -> None:
    class Killed(BaseException):
        pass

    def killed_before(target: Target, text: Text, kind: Kind) -> str:
        raise Killed

    def killed_after(target: Target, text: Text, kind: Kind) -> str:
        send_for_real(target, text, kind)
        raise Killed

    put(nightscout, clock, 48)
    for killed, arrived in ((killed_before, 0), (killed_after, 1)):
        with pytest.raises(Killed):
            watch_once(load_settings(), now=clock, deliver_by=killed)
        assert len(receiver.received) == arrived
    look(clock)
    look(clock)
    assert len(receiver.received) == 2


def test_a_look_that_breaks_off_keeps_neither_state_nor_message(
    nightscout: DemoStore, receiver: HttpReceiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(nightscout, clock, 48)
    with monkeypatch.context() as patch:
        patch.setattr(AlertStore, "put", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            look(clock)
    with AlertStore(load_settings().alerts_dir) as store:
        assert not store.site_state("anna").condition(Rule.URGENT_LOW).is_active
    assert look(clock).delivered == 1


def test_nobody_acknowledges_so_the_second_list_is_told_and_hears_of_the_end(
    nightscout: DemoStore, receiver: HttpReceiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpReceiver() as second:
        monkeypatch.setenv("LAKEHOUSE_ALERT_ESCALATION_URLS", second.url)
        for _ in range(4):
            put(nightscout, clock, 48)
            look(clock)
            clock.forward(5)
        assert second.titles == ["NOT ACKNOWLEDGED: URGENT LOW: anna 48 mg/dL (2.7 mmol/L)"]
        for _ in range(4):
            put(nightscout, clock, 120)
            clock.forward(5)
        look(clock)
        assert second.titles[1:] == receiver.titles[-1:] == ["Over: URGENT LOW: anna 120 mg/dL (6.7 mmol/L)"]


def test_acknowledge_and_snooze_by_command(nightscout: DemoStore, receiver: HttpReceiver, clock: Clock) -> None:
    put(nightscout, clock, 260)
    look(clock)
    assert "acknowledged: high" in lakehouse("ack", "anna").output
    assert "there is nothing to acknowledge" in lakehouse("ack", "pipeline").output
    clock.forward(125)
    put(nightscout, clock, 260)
    assert look(clock).told == ()
    listed = json.loads(lakehouse("list", "--format", "json").stdout)
    assert [each["alert"] for each in listed["active"]] == ["high"]
    assert listed["active"][0]["acknowledged"]
    assert listed["messages"][0]["deliveries"][0]["state"] == "delivered"

    assert "Urgent lows still go through" in lakehouse("snooze", "anna", "--for", "4h30m").output
    put(nightscout, clock, 65)
    assert [title for title in look(clock).told if "Low" in title] == []
    assert "alerts are on" in lakehouse("snooze", "anna", "--off").output
    assert any("Low: anna" in title for title in look(clock).told)
    for wrong, message in (
        (("snooze", "anna", "--for", "soon"), "is no duration"),
        (("snooze", "anna", "--for", "48h"), "At most 24h"),
        (("snooze", "anna", "--for", "3h", "--urgent-low-too"), "At most 2h"),
        (("ack", "ben"), "There is no site 'ben'. There are: anna, pipeline."),
    ):
        refused = lakehouse(*wrong)
        assert refused.exit_code == 1
        assert message in refused.stderr


def test_a_server_that_refuses_is_left_alone_for_half_an_hour(
    receiver: HttpReceiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ScriptedServer()
    server.answers = [send(401, '{"status":401}')]
    server.start()
    monkeypatch.setenv("NIGHTSCOUT_URL", server.url)
    assert look(clock).unreadable == ("default",)
    for _ in range(3):
        clock.forward(5)
        assert look(clock).unreadable == ("default",)
    assert len(server.requests) == 1
    clock.forward(50)
    assert look(clock).told == ("No readings: default",)
    assert "refuses to be read (HTTP 401)" in receiver.received[0]["message"]
    assert len(server.requests) == 2
    server.stop()


def test_many_sites_that_fall_silent_at_once_are_one_message(
    nightscout: DemoStore, receiver: HttpReceiver, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = load_settings().nightscout_url.get_secret_value()
    monkeypatch.delenv("NIGHTSCOUT_URL")
    sites = "".join(f'[[sites]]\nname = "s{n}"\nurl = "{url}"\n' for n in range(6))
    (tmp_path / "sites.toml").write_text(f"{sites}[sites.alerts]\nstale_minutes = 0\nlow_mg_dl = 80\n")
    assert look(clock).told == ("No readings: 5 sites",)
    assert "s0, s1, s2, s3, s4" in receiver.received[0]["message"]
    put(nightscout, clock, 75)
    assert look(clock).told == ("Low: s5 75 mg/dL (4.2 mmol/L)", "Over: No readings: 5 sites")


def test_sites_that_fall_silent_and_others_that_come_back_are_both_told(
    nightscout: DemoStore, receiver: HttpReceiver, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = load_settings().nightscout_url.get_secret_value()
    monkeypatch.delenv("NIGHTSCOUT_URL")
    away = ScriptedServer()
    away.answers = [send(500, "{}")] * 200
    away.start()

    def sites(first: str, second: str) -> None:
        urls = [first] * 4 + [second] * 4
        lines = [f'[[sites]]\nname = "s{n}"\nurl = "{each}"\ntimezone = "UTC"\n' for n, each in enumerate(urls)]
        (tmp_path / "sites.toml").write_text("".join(lines))

    put(nightscout, clock, 110)
    sites(url, away.url)
    look(clock)
    clock.forward(61)
    put(nightscout, clock, 110)
    assert look(clock).told == ("No readings: 4 sites",)
    sites(away.url, url)
    clock.forward(61)
    put(nightscout, clock, 110)
    assert sorted(look(clock).told) == ["No readings: 4 sites", "Over: No readings: 4 sites"]
    away.stop()
    titles = [each["title"] for each in receiver.received]
    assert sorted(titles) == ["No readings: 4 sites", "No readings: 4 sites", "Over: No readings: 4 sites"]


def test_two_looks_at_once_are_one(nightscout: DemoStore, receiver: HttpReceiver, clock: Clock) -> None:
    put(nightscout, clock, 48)
    is_sending, may_go_on = threading.Event(), threading.Event()

    def slow(target: Target, text: Text, kind: Kind) -> str:
        is_sending.set()
        may_go_on.wait(60)
        return send_for_real(target, text, kind)

    other = threading.Thread(target=lambda: watch_once(load_settings(), now=clock, deliver_by=slow))
    other.start()
    assert is_sending.wait(60)
    assert look(clock).skipped == "Another look is under way."
    may_go_on.set()
    other.join(60)
    assert len(receiver.received) == 1


def test_failed_runs_are_told_once_in_the_cool_down_and_so_is_their_end(receiver: HttpReceiver, clock: Clock) -> None:
    settings = load_settings()
    step = [f"raw_nightscout_entries: Site anna: refused. {SECRET} in the error\nTraceback …"]
    check = ["raw_nightscout_entries: the check values_are_in_mg_dl failed (site anna). 3 of 3 rows do not hold."]

    def fail(run_id: str, steps: list[str], checks: list[str]) -> None:
        run_failed(settings, job="nightscout_pipeline", run_id=run_id, steps=steps, checks=checks, now=clock)

    fail("run-1", step, [])
    fail("run-1", step, [])
    for number in range(2, 6):
        clock.forward(30)
        fail(f"run-{number}", step, [])
    assert receiver.titles[0] == "Pipeline failed: nightscout_pipeline"
    assert len(receiver.received) == 1
    message = receiver.received[0]["message"]
    assert "raw_nightscout_entries: Site anna: refused." in message
    assert "http://127.0.0.1:3000/runs/run-1" in message
    assert SECRET not in json.dumps(receiver.received)
    # Another cause is another alert; the same after its cool-down a reminder.
    fail("run-6", [], check)
    assert receiver.titles[1] == "Data quality check failed: nightscout_pipeline"
    assert "(site anna)" in receiver.received[1]["message"]
    clock.forward(150)
    fail("run-7", step, [])
    assert receiver.titles[2] == "Still: Pipeline failed: nightscout_pipeline"
    run_succeeded(settings, job="another_job", run_id="run-8", now=clock)
    assert len(receiver.received) == 3
    run_succeeded(settings, job="nightscout_pipeline", run_id="run-9", now=clock)
    run_succeeded(settings, job="nightscout_pipeline", run_id="run-10", now=clock)
    assert sorted(receiver.titles[3:]) == [
        "Over: Data quality check failed: nightscout_pipeline",
        "Over: Pipeline failed: nightscout_pipeline",
    ]


def test_a_run_by_command_tells_the_same_and_is_not_hidden_by_what_cannot_be_told(
    receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "raw_nightscout_entries: the check values_are_in_mg_dl failed (site anna)."
    step = "published_dim_site: the database is away."
    for outcome in (
        JobOutcome(False, "a", [line], check_errors=[line]),
        JobOutcome(False, "b", [step]),
        JobOutcome(True, "c"),
    ):
        _alert_on(outcome, load_settings())
    told = [title.partition(": nightscout_pipeline")[0] for title in receiver.titles]
    assert told[:2] == ["Data quality check failed", "Pipeline failed"]
    assert sorted(told[2:]) == ["Over: Data quality check failed", "Over: Pipeline failed"]
    monkeypatch.setenv("LAKEHOUSE_ALERT_URLS", SECRET)
    _alert_on(JobOutcome(True, "d"), load_settings())
    monkeypatch.delenv("LAKEHOUSE_ALERT_URLS")
    monkeypatch.setenv("LAKEHOUSE_ALERT_ESCALATION_URLS", receiver.url)
    _alert_on(JobOutcome(True, "e"), load_settings())
    said = capsys.readouterr().err
    assert "Nobody was told: LAKEHOUSE_ALERT_URLS: number 1 is no URL." in said
    assert "LAKEHOUSE_ALERT_ESCALATION_URLS is set and LAKEHOUSE_ALERT_URLS is not." in said
    assert SECRET not in said


def test_quiet_hours_hold_back_a_failed_run_until_a_look_after_them(
    receiver: HttpReceiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.now = datetime(2026, 3, 10, 2, tzinfo=UTC)
    monkeypatch.setenv("LAKEHOUSE_ALERT_QUIET_HOURS", "22:00-06:30")
    run_failed(load_settings(), job="nightscout_pipeline", run_id="r", steps=["a: b"], checks=[], now=clock)
    assert look(clock).told == ()
    clock.forward(271)
    assert look(clock).told == ("Pipeline failed: nightscout_pipeline",)
    monkeypatch.setenv("LAKEHOUSE_ALERT_QUIET_HOURS", "22:00-26:30")
    with pytest.raises(ConfigurationError, match="no times of day"):
        look(clock)


def test_the_test_command_says_for_each_target_whether_it_arrived(
    receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = f"json://user:{SECRET}@127.0.0.1:1/{SECRET}"
    with MailReceiver() as mail:
        urls = f"{receiver.url}, {mail.url()}\n{nobody} {mail.url(password='wrong-' + SECRET)}"
        monkeypatch.setenv("LAKEHOUSE_ALERT_URLS", urls)
        result = lakehouse("test")
        assert result.exit_code == 1
        assert result.output.splitlines() == [
            "first 1 (json): delivered",
            "first 2 (mailto): delivered",
            "first 3 (json): NOT delivered: the service cannot be reached, or refuses the login",
            "first 4 (mailto): NOT delivered: the service cannot be reached, or refuses the login",
        ]
        assert receiver.titles == mail.subjects == ["Test of the alerts"]
        # A redirect would take the secret to another host.
        receiver.status = 307
        monkeypatch.setenv("LAKEHOUSE_ALERT_URLS", receiver.url)
        assert "NOT delivered: the service answers with HTTP 307" in lakehouse("test").output


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        (SECRET, "LAKEHOUSE_ALERT_URLS: number 1 is no URL."),
        (f"nosuchservice://{SECRET}", "The alert URL first 1 (nosuchservice) is none that apprise takes."),
        ("", "LAKEHOUSE_ALERT_URLS is not set: nobody would be told."),
    ],
)
def test_a_wrong_url_is_named_by_its_place_and_not_shown(
    urls: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKEHOUSE_ALERT_URLS", urls)
    result = lakehouse("watch", "--once")
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_a_url_may_hold_commas_and_no_part_of_it_is_in_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKEHOUSE_ALERT_URLS", "mailto://u:p@h?to=a@x.org,b@x.org,ntfy://topic\n\nslack://A/B/C")
    monkeypatch.setenv("LAKEHOUSE_ALERT_ESCALATION_URLS", "tgram://bot/chat")
    targets = load_targets(load_settings())
    assert [target.name for target in targets] == [
        *("first 1 (mailto)", "first 2 (ntfy)", "first 3 (slack)", "escalation 1 (tgram)")
    ]
    assert targets[0].url.get_secret_value() == "mailto://u:p@h?to=a@x.org,b@x.org"


def test_what_is_kept_is_for_its_owner_and_holds_no_secret(
    nightscout: DemoStore, receiver: HttpReceiver, clock: Clock
) -> None:
    receiver.status = 500
    put(nightscout, clock, 48)
    look(clock)
    folder = load_settings().alerts_dir
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "alerts.sqlite3").stat().st_mode) == 0o600
    assert SECRET.encode() not in (folder / "alerts.sqlite3").read_bytes()
    assert [path.name for path in folder.glob("looks")] == []


def test_a_target_that_is_gone_is_given_up_and_old_messages_are_after_a_day(
    receiver: HttpReceiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings()
    receiver.status = 500
    draft = Draft(PIPELINE, Rule.PIPELINE_FAILURE, Kind.RAISED, Text("t", "b"), ("first 1 (json)", "first 9 (gone)"))
    with AlertStore(settings.alerts_dir) as store:
        with store.transaction():
            store.put([draft], clock())
        for _ in range(200):
            for due in store.due(load_targets(settings), clock()):
                store.settle(due, "no", clock())
            clock.forward(10)
        (message,) = store.recent_messages(5)
    states = {each["target"]: (each["state"], each["error"]) for each in message["deliveries"]}
    assert states == {
        "first 1 (json)": ("given_up", "no"),
        "first 9 (gone)": ("given_up", "the target is not configured any more"),
    }


@pytest.mark.postgres
def test_a_forecast_is_used_once_there_is_a_table_of_them(
    nightscout: DemoStore,
    receiver: HttpReceiver,
    clock: Clock,
    serving: PostgresConnection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("DATABASE_URL", serving.url(hide_password=False))
    put(nightscout, clock, 95)
    assert look(clock).told == ()
    with serving.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("create table marts.glucose_predictions (site text, made_at timestamptz)")
    with caplog.at_level("ERROR"):
        assert look(clock).told == ()
    assert "marts.glucose_predictions needs site, made_at, prediction_timestamp, glucose_mg_dl" in caplog.text
    forecasts = [
        *(("anna", -35, 15, 40), ("anna", -5, 10, 80), ("anna", -5, 20, 62), ("anna", -5, 45, 45)),
        *(("anna", -5, 15, None), ("ben", -5, 15, 41)),
    ]
    with serving.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("alter table marts.glucose_predictions add prediction_timestamp timestamptz")
        cursor.execute("alter table marts.glucose_predictions add glucose_mg_dl double precision")
        for site, made, ahead, value in forecasts:
            moments = (clock.now + made * MINUTE, clock.now + ahead * MINUTE)
            cursor.execute("insert into marts.glucose_predictions values (%s, %s, %s, %s)", [site, *moments, value])
    assert look(clock).told == ("Low predicted: anna 95 mg/dL (5.3 mmol/L)",)
    assert "Forecast: 62 mg/dL (3.4 mmol/L) at" in receiver.received[0]["message"]


def test_a_damaged_file_is_one_clear_message(receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = load_settings().alerts_dir
    folder.mkdir(parents=True)
    (folder / "alerts.sqlite3").write_bytes(b"this is no database" * 100)
    result = lakehouse("list")
    assert result.exit_code == 1
    assert "cannot be kept" in result.stderr
    # Nor does a file that another process keeps to itself end in a traceback.
    (folder / "alerts.sqlite3").unlink()
    monkeypatch.setattr("nightscout_lakehouse.lib.alerts.store._WAIT_SECONDS", 0.1)
    assert lakehouse("list").exit_code == 0
    other = sqlite3.connect(folder / "alerts.sqlite3")
    other.execute("begin exclusive")
    refused = lakehouse("ack", "pipeline")
    other.close()
    assert refused.exit_code == 1
    assert "cannot be kept (database is locked)" in " ".join(refused.stderr.split())


def test_killed_for_real_while_a_message_is_on_its_way(
    nightscout: DemoStore, receiver: HttpReceiver, clock: Clock
) -> None:
    put(nightscout, clock, 48)
    receiver.has_arrived, receiver.may_answer = threading.Event(), threading.Event()
    command = [sys.executable, "-m", "nightscout_lakehouse.cli", "alerts", "watch", "--once"]
    watching = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert receiver.has_arrived.wait(180)
    watching.kill()
    watching.wait(60)
    receiver.may_answer.set()
    clock.now = datetime.now(UTC)
    assert look(clock).delivered == 1
    assert receiver.titles == ["URGENT LOW: anna 48 mg/dL (2.7 mmol/L)"] * 2
    clock.forward(5)
    assert look(clock).delivered == 0


def test_times_are_those_of_the_profile_that_the_pipeline_has_read(
    nightscout: DemoStore, receiver: HttpReceiver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIGHTSCOUT_TIMEZONE")
    settings = load_settings()
    lake = Lake.open(settings)
    lake.write_json(ingestion_state_file("anna", ENTRIES), {"timezone": "America/New_York"})
    put(nightscout, clock, 48)
    look(clock)
    assert f"at {clock.now.astimezone(ZoneInfo('America/New_York')):%H:%M} America/New_York" in str(receiver.received)
