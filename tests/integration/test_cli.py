"""The `lakehouse` command as a user has it: what it prints, its exit codes, and no traceback for a user's mistake."""

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest
from click.testing import Result
from scripted_server import Answer, ScriptedServer, cut_off, send
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.demo import DemoOptions, DemoServer, DemoStore, Person
from nightscout_lakehouse.lib.serving import serving_database
from nightscout_lakehouse.lib.settings import load_settings

pytestmark = [pytest.mark.e2e, pytest.mark.postgres]

TOKEN = "reader-0123456789abcdef"
COMMANDS = [
    *("run", "backfill", "dev", "status", "doctor", "check", "sql", "demo-server", "clean", "sites"),
    *("backup", "restore", "export", "forget", "compact", "prune"),
    *("validate", "quarantine", "import", "sources", "report", "alerts", "lineage", "dashboard"),
]
BAD_DOCUMENTS: dict[str, dict[str, Any]] = {
    "glucose_sentinel": {"sgv": "HIGH"},
    "glucose_not_a_number": {"sgv": "a hundred"},
    "glucose_out_of_range": {"sgv": -40},
    "timestamp_in_future": {"date": 4_070_908_800_000},
    "timestamp_too_old": {"date": 0},
}


def lakehouse(*arguments: str, answer: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=answer)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert TOKEN not in result.output
    return result


def rows(query: str, *options: str) -> list[dict[str, Any]]:
    result = lakehouse("sql", query, *options, "--format", "json")
    assert result.exit_code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def document(number: int, minutes_ago: float, **changes: Any) -> dict[str, Any]:
    date = int((datetime.now(UTC) - timedelta(minutes=minutes_ago)).timestamp()) * 1000
    return {"_id": f"{number:024x}", "type": "sgv", "sgv": 120, "date": date, "device": "sensor", **changes}


@contextmanager
def held_by_another_process(home: Path) -> Iterator[None]:
    """A run elsewhere that writes the lake; a lock of this process would let this process in."""
    code = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]);"
        " lock.acquire(); print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(home / "lake.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    yield
    holder.communicate("\n", timeout=10)


@pytest.fixture
def folder() -> Iterator[Path]:
    yield from _folder()


def _folder() -> Iterator[Path]:
    """A folder that Postgres may enter too, which runs as another user where the tests run as root."""
    parent = Path(tempfile.mkdtemp(prefix="lakehouse-test-"))
    parent.chmod(0o711)
    yield parent / "a lakehouse"
    shutil.rmtree(parent)


@dataclass(frozen=True)
class Shared:
    """One lakehouse for all that only look at it, and what its first runs printed."""

    home: Path
    url: str
    store: DemoStore
    empty_run: Result
    marts_of_nothing: list[dict[str, Any]]
    first_run: Result
    sites_check: Result


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    # A server whose clock stands still sends nothing new by itself.
    begin = datetime.now(UTC) - timedelta(minutes=15)
    store = DemoStore.of(Person(seed=5), days=16, now=lambda: begin)
    for number, changes in enumerate(BAD_DOCUMENTS.values(), start=1):
        store.put(document(number, 60 + number, **changes))
    store.put(document(99, 25 * 1440, sgv="142"))
    options = DemoOptions(default_roles="denied", tokens={TOKEN: "readable"}, auth_fail_delay_seconds=0)
    single = DemoStore()
    single.put(document(200, 5))
    folder = _folder()
    home = next(folder)
    with (
        DemoServer(DemoStore()) as nothing,
        DemoServer(single) as good,
        DemoServer(store, options) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("LAKEHOUSE_HOME", str(home))
        patch.setenv("DAGSTER_HOME", "")
        patch.setenv("OPENLINEAGE_DISABLED", "true")
        with patch.context() as of_nothing:
            of_nothing.setenv("NIGHTSCOUT_URL", nothing.url)
            of_nothing.setenv("NIGHTSCOUT_SITE", "empty")
            empty_run = lakehouse("run")
        patch.setenv("NIGHTSCOUT_TOKEN", TOKEN)
        # Each command would start the embedded Postgres and stop it again.
        with serving_database(load_settings()):
            marts_of_nothing = rows("select count(*) as n from mart_glucose_overview", "--marts")
            with patch.context() as of_three:
                sites = home.parent / "sites.toml"
                sites.write_text(
                    f'[[sites]]\nname = "default"\nurl = "{server.url}"\ntoken_env = "NIGHTSCOUT_TOKEN"\n'
                    f'[[sites]]\nname = "good"\nurl = "{good.url}"\ntimezone = "UTC"\n'
                    '[[sites]]\nname = "gone"\nurl = "http://127.0.0.1:9"\ntimezone = "UTC"\n'
                )
                of_three.setenv("LAKEHOUSE_SITES_FILE", str(sites))
                of_three.setenv("NIGHTSCOUT_MAX_ATTEMPTS", "1")
                first_run, check = lakehouse("run"), lakehouse("sites", "check")
            yield Shared(home, server.url, store, empty_run, marts_of_nothing, first_run, check)
    next(folder, None)


def drop_files(folder: Path) -> Path:
    """An export of 300 readings, and a file that is none; returns that one."""
    folder.mkdir(parents=True)
    begin = datetime(2026, 1, 15, 8, tzinfo=UTC)
    readings = (f"{begin + timedelta(minutes=5 * n):%Y-%m-%dT%H:%M:%SZ},{100 + n % 50}" for n in range(300))
    (folder / "a.csv").write_text("\n".join(("timestamp,glucose_mg_dl", *readings, "")))
    (folder / "bad.csv").write_text("a,b\n1,2\n")
    return folder / "bad.csv"


def failed_checks() -> list[str]:
    """The asset checks of the last run that failed with severity ERROR."""
    with dg.DagsterInstance.get() as instance:
        (run,) = instance.get_runs(limit=1)
        records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    events = [record.event_log_entry.dagster_event for record in records]
    checks = [event.asset_check_evaluation_data for event in events if event is not None]
    return [check.check_name for check in checks if not check.passed and check.severity is dg.AssetCheckSeverity.ERROR]


@pytest.fixture
def site(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Shared:
    monkeypatch.setenv("LAKEHOUSE_HOME", str(shared.home))
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("NIGHTSCOUT_URL", shared.url)
    monkeypatch.setenv("NIGHTSCOUT_TOKEN", TOKEN)
    return shared


@pytest.fixture
def own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty lakehouse of the test's own; what it sets in the environment goes with it."""
    monkeypatch.setenv("LAKEHOUSE_HOME", str(folder))
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("NIGHTSCOUT_MAX_ATTEMPTS", "1")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = lakehouse(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_without_a_command_the_commands_are_listed() -> None:
    result = lakehouse()
    assert result.exit_code == 2
    assert all(command in result.output for command in COMMANDS)


# run


def test_a_run_of_an_empty_site_builds_everything_and_says_so(site: Shared) -> None:
    assert site.empty_run.exit_code == 0, site.empty_run.output
    assert "no readings" in site.empty_run.stdout
    assert "No new reading on any site." in site.empty_run.stdout
    assert site.marts_of_nothing == [{"n": 0}]


def test_a_run_prints_each_sites_figures_and_where_to_look(site: Shared) -> None:
    result = site.first_run
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("default ")]
    fetched, stored, duplicates, quarantined, deleted = (
        int(text.replace(",", "")) for text in re.findall(r" ([\d,]+)(?= )", line)[:5]
    )
    assert fetched == stored + duplicates + quarantined
    assert quarantined >= len(BAD_DOCUMENTS)
    assert deleted == 0
    (figures,) = rows(
        "select 100.0 * count(*) filter (glucose_mg_dl between 70 and 180) / count(*) as tir,"
        " avg(glucose_mg_dl) as mean from curated.fact_glucose_readings"
        " where site = 'default'"
        " and reading_date > (select max(reading_date) - 14 from curated.fact_glucose_readings where site = 'default')"
    )
    shown = f"{figures['tir']:.1f} {figures['mean']:.0f} {3.31 + 0.02392 * figures['mean']:.1f}"
    assert shown in re.sub(r" +", " ", line)
    for place in ("lake/processed", "warehouse.duckdb", "lakehouse@127.0.0.1:"):
        assert place in result.stdout
    assert "not for dosing decisions" in result.stdout


@pytest.mark.parametrize(("reason", "changes"), BAD_DOCUMENTS.items())
def test_what_is_no_reading_is_in_quarantine_as_it_came(site: Shared, reason: str, changes: dict[str, Any]) -> None:
    number = list(BAD_DOCUMENTS).index(reason) + 1
    (row,) = rows(
        f"select quarantine_reason, document from lake.nightscout_entries where nightscout_id = '{number:024x}'"
    )
    assert row["quarantine_reason"] == reason
    assert json.loads(row["document"]).items() >= changes.items()


def test_nothing_else_is_lost_and_a_number_as_text_is_a_reading(site: Shared) -> None:
    assert rows(f"select glucose_mg_dl from curated.fact_glucose_readings where nightscout_id = '{99:024x}'") == [
        {"glucose_mg_dl": 142.0}
    ]
    (counts,) = rows(
        "select count(*) filter (kind = 'sgv' and not is_duplicate) as readings,"
        " (select count(*) from intermediate.int_glucose_enriched) as enriched from lake.nightscout_entries"
    )
    assert counts["readings"] == counts["enriched"] > 4000


def test_a_site_that_is_gone_is_named_and_keeps_none_waiting(site: Shared) -> None:
    run, check = site.first_run, site.sites_check
    assert run.exit_code == check.exit_code == 1
    assert "Site gone: http://127.0.0.1:9 gave no usable answer" in run.stderr
    assert "Site good" not in run.stderr
    assert "Site default" not in run.stderr
    assert re.search(r"^good +1 +1 +0 .* 100\.0 ", run.stdout, re.M)
    assert "No new reading" not in run.stdout
    assert re.search(r"^good .* 15\.0\.7 ", check.stdout, re.M)
    assert re.search(r"^gone ", check.stdout, re.M)
    assert "the connection was refused" in " ".join(check.stdout.split())
    assert rows("select site, reading_count from curated.dim_site where site like 'go%' order by site") == [
        {"site": "gone", "reading_count": 0},
        {"site": "good", "reading_count": 1},
    ]
    assert rows("select glucose_mg_dl from mart_glucose_current where site = 'good'", "--marts") == [
        {"glucose_mg_dl": 120.0}
    ]
    assert rows("select count(*) as n from mart_glucose_recent where site = 'good'", "--marts") == [{"n": 1}]


def test_after_a_run_that_fails_another_fetches_a_fraction_and_stores_nothing_twice(
    site: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows("select count(*) as n from lake.nightscout_entries")
    figures = "select * from curated.dim_glucose_date order by site, reading_date"
    figures_before = rows(figures)
    with monkeypatch.context() as patch:
        patch.setenv("NIGHTSCOUT_MAX_ATTEMPTS", "1")
        failing_run(patch)
    assert rows("select count(*) as n from lake.nightscout_entries") == before
    assert rows(figures) == figures_before
    result = lakehouse("run")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("default ")]
    fetched, stored = (int(text.replace(",", "")) for text in re.findall(r" ([\d,]+)(?= )", line)[:2])
    assert fetched < 2000
    assert stored == 0
    assert rows("select count(*) as n from lake.nightscout_entries") == before
    assert rows(figures) == figures_before


def failing_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in whose middle the server breaks off."""
    broken = ScriptedServer()
    broken.answers = [send(200, '[{"_id": "a", "sg')]
    broken.start()
    monkeypatch.setenv("NIGHTSCOUT_URL", broken.url)
    result = lakehouse("run")
    assert result.exit_code == 1
    assert "No site could be read" in result.stderr
    broken.stop()


HTML = "<!doctype html><title>Log in</title>"


WRONG_ANSWERS: dict[str, tuple[Answer, str]] = {
    "token": (send(401, '{"status": 401}'), "refuses to be read (HTTP 401)"),
    "page": (send(404, "Cannot GET", "text/html"), "no Nightscout API (HTTP 404)"),
    "html": (send(200, HTML, "text/html"), "sends an HTML page instead of JSON"),
    "cut": (send(200, '[{"_id": "a", "sg'), "the JSON is cut off or malformed"),
    "closed": (cut_off, "gave no usable answer in 1 attempt"),
}


def test_each_server_that_answers_wrongly_is_named_with_the_reason(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = {name: ScriptedServer() for name in WRONG_ANSWERS}
    for name, server in servers.items():
        server.answers = [WRONG_ANSWERS[name][0]]
        server.start()
    monkeypatch.setenv("NIGHTSCOUT_TOKEN", TOKEN)
    (tmp_path / "sites.toml").write_text(
        "".join(
            f'[[sites]]\nname = "{name}"\nurl = "{server.url}"\ntoken_env = "NIGHTSCOUT_TOKEN"\n'
            for name, server in servers.items()
        )
    )
    result = lakehouse("run")
    for server in servers.values():
        server.stop()
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    for name, (_, message) in WRONG_ANSWERS.items():
        assert re.search(f"Site {name}: (?:(?!Site ).)*{re.escape(message)}", said), name


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NIGHTSCOUT_URL", "ftp://example.org", "does not start with http:// or https://"),
        ("NIGHTSCOUT_TIMEZONE", "Mars/Olympus", "is not a time zone"),
        ("NIGHTSCOUT_WINDOW_DAYS", "many", "NIGHTSCOUT_WINDOW_DAYS"),
        ("LAKE_URL", "ftp://lake", "which is not supported"),
        ("LAKEHOUSE_HOME", "/proc/a lakehouse", "cannot be written"),
    ],
)
def test_a_wrong_setting_is_named(
    own: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv("NIGHTSCOUT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(variable, value)
    result = lakehouse("run")
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_a_second_writer_is_sent_away_at_once(site: Shared) -> None:
    with held_by_another_process(site.home):
        started = time.monotonic()
        result = lakehouse("run")
    assert result.exit_code == 1
    assert "Another run is writing this lake" in result.stderr
    assert time.monotonic() - started < 10


# status, sites, backfill


def test_status_shows_each_sites_rows_and_cursor(site: Shared) -> None:
    result = lakehouse("status")
    assert result.exit_code == 0
    (readings,) = rows("select count(*) as n from curated.fact_glucose_readings where site = 'default'")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("default ")]
    assert f"{readings['n']:,}" in line
    assert "complete" in line
    assert "(profile)" in line


def test_status_before_the_first_run_says_so(own: Path) -> None:
    result = lakehouse("status")
    assert result.exit_code == 0
    assert "Nothing has been read yet" in result.stdout


def test_sites_check_says_version_units_and_permissions(site: Shared) -> None:
    result = lakehouse("sites", "check")
    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("default ")]
    assert re.search(r"15\.0\.7 +mg/dl +yes +no ", line)


def test_sites_check_fails_with_a_wrong_token(site: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCOUT_TOKEN", "wrong-0123456789abcdef")
    result = lakehouse("sites", "check")
    assert result.exit_code == 1
    assert "refuses to be read" in " ".join(result.stdout.split())


def test_backfill_finds_an_old_edit_now_and_takes_files_though_a_site_is_gone(
    site: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = rows(
        "select nightscout_id from curated.fact_glucose_readings where site = 'default'"
        " order by reading_timestamp offset 800 limit 1"
    )
    held = site.store.get(old["nightscout_id"])
    assert held is not None
    site.store.put({**held, "sgv": 71})
    command = ("backfill", "--since", (datetime.now(UTC) - timedelta(days=40)).strftime("%Y-%m-%d"))
    bad_file = drop_files(site.home / "drop" / "anna")
    sites = tmp_path / "sites.toml"
    sites.write_text(
        f'[[sites]]\nname = "default"\nurl = "{site.url}"\ntoken_env = "NIGHTSCOUT_TOKEN"\n'
        '[[sites]]\nname = "gone"\nurl = "http://127.0.0.1:9"\ntimezone = "UTC"\n'
    )
    with monkeypatch.context() as patch:
        patch.delenv("NIGHTSCOUT_URL")
        patch.setenv("NIGHTSCOUT_MAX_ATTEMPTS", "1")
        result = lakehouse(*command)
        assert failed_checks() == ["every_site_was_read", "every_file_was_read"]
        assert result.exit_code == 1
        assert result.stderr.count("Error: ") == 2
        assert "Site gone: http://127.0.0.1:9 gave no usable answer" in result.stderr
        assert "bad.csv: its header is none of those known" in result.stderr
        assert "documents read again, 1 new or changed, 0 deleted" in result.stdout
        query = f"select glucose_mg_dl from curated.fact_glucose_readings where nightscout_id = '{held['_id']}'"
        assert rows(query) == [{"glucose_mg_dl": 71.0}]
        of_files = "select count(*) as n from curated.fact_glucose_readings where site = 'anna'"
        assert rows(of_files) == [{"n": 300}]

        # No demo person beside one's own files, and no server at all.
        sites.unlink()
        alone = lakehouse("run")
    assert failed_checks() == ["every_file_was_read"]
    assert alone.exit_code == 1
    assert alone.stderr.count("Error: ") == 1
    assert rows(of_files) == [{"n": 300}]
    assert rows("select distinct site from lake.nightscout_entries order by site") == [
        {"site": name} for name in ("anna", "default", "good")
    ]
    bad_file.unlink()

    # And where nothing is wrong.
    with DemoServer(DemoStore()) as nothing:
        monkeypatch.setenv("NIGHTSCOUT_URL", nothing.url)
        monkeypatch.setenv("NIGHTSCOUT_SITE", "empty")
        monkeypatch.delenv("NIGHTSCOUT_TOKEN")
        empty = lakehouse(*command)
    assert empty.exit_code == 0, empty.output
    assert "0 documents read again, 0 new or changed, 0 deleted" in empty.stdout


@pytest.mark.parametrize(
    ("since", "code", "message"),
    [("2099-01-01", 1, "is in the future"), ("yesterday", 2, "does not match"), (None, 2, "Missing option")],
)
def test_backfill_wants_a_day_that_has_been(site: Shared, since: str | None, code: int, message: str) -> None:
    result = lakehouse("backfill", *(("--since", since) if since else ()))
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())


# doctor


def test_doctor_finds_all_well(site: Shared) -> None:
    result = lakehouse("doctor")
    assert result.exit_code == 0, result.stdout
    for check in ("Python", "packages", "sites", "folder", "warehouse", "DuckDB extensions", "Postgres"):
        assert re.search(f"^ok +{check} ", result.stdout, re.M), check


@pytest.mark.parametrize(
    ("variable", "value", "check", "message"),
    [
        ("LAKEHOUSE_HOME", "/proc/a lakehouse", "folder", "Set LAKEHOUSE_HOME"),
        ("DAGSTER_PORT", "abc", "settings", "DAGSTER_PORT"),
        ("NIGHTSCOUT_URL", "example.org", "sites", "does not start with http"),
        ("DATABASE_URL", "postgresql://me:sekret@127.0.0.1:9/x", "Postgres", "cannot be reached"),
        ("DATABASE_URL", "mysql://me:sekret@127.0.0.1:9/x", "Postgres", "DATABASE_URL"),
    ],
)
def test_doctor_says_what_is_wrong_and_how_to_mend_it(
    own: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, check: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    result = lakehouse("doctor")
    assert result.exit_code == 1
    assert re.search(f"^no +{check} ", result.stdout, re.M), result.stdout
    assert message in " ".join(result.stdout.split())
    assert "sekret" not in result.output


# sql


def test_sql_prints_a_table_csv_or_json_of_both_engines(site: Shared) -> None:
    daily = "select reading_date, reading_count, avg_glucose_mg_dl from {} order by reading_date limit 3"
    warehouse, marts = daily.format("curated.dim_glucose_date"), daily.format("mart_glucose_overview")
    in_duckdb = rows(warehouse)
    assert len(in_duckdb) == 3
    assert in_duckdb == rows(marts, "--marts")
    for query, options in ((warehouse, ()), (marts, ("--marts",))):
        text = lakehouse("sql", query, *options, "--format", "csv").stdout
        assert [row["reading_count"] for row in csv.DictReader(io.StringIO(text))] == [
            str(row["reading_count"]) for row in in_duckdb
        ]
        table = lakehouse("sql", query, *options).stdout.splitlines()
        assert table[0].split() == ["reading_date", "reading_count", "avg_glucose_mg_dl"]
        assert [line.split()[0] for line in table[1:]] == [row["reading_date"] for row in in_duckdb]


def test_sql_does_not_fold_a_wide_row_in_a_pipe_nor_read_markup_in_a_value(site: Shared) -> None:
    result = lakehouse("sql", f"select '[red]{'x' * 500}[/red]' as value, '[b]' as \"[b]name\"")
    assert result.exit_code == 0
    assert f"[red]{'x' * 500}[/red]" in result.stdout
    assert "[b]name" in result.stdout


@pytest.mark.parametrize(
    "query",
    [
        "delete from curated.dim_site",
        "create table curated.mine as select 1",
        "drop view lake.nightscout_entries",
        "copy (select 1 as a) to '{target}'",
        "explain analyze copy (select 1 as a) to '{target}'",
        "/* a comment */ explain analyze copy (select 1 as a) to '{target}'",
        "export database '{target}'",
        "attach '{target}' as other",
        "select 1; copy (select 1 as a) to '{target}'",
        "prepare a as copy (select 1 as a) to '{target}'",
        "set memory_limit = '1GB'",
        "install httpfs",
    ],
)
def test_sql_on_the_warehouse_only_reads(site: Shared, tmp_path: Path, query: str) -> None:
    before = rows("select count(*) as n from curated.dim_site")
    target = tmp_path / "written"
    result = lakehouse("sql", query.format(target=target))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert not target.exists()
    assert rows("select count(*) as n from curated.dim_site") == before


@pytest.mark.parametrize(
    "query",
    [
        "delete from mart_glucose_recent",
        "create table marts.mine as select 1",
        "select * from curated.fact_glucose_readings",
        "copy (select 1) to '/tmp/written'",
        "commit; drop table marts.mart_glucose_recent",
        "set role lakehouse; drop table marts.mart_glucose_recent",
    ],
)
def test_sql_on_the_marts_only_reads_the_marts(site: Shared, query: str) -> None:
    before = rows("select count(*) as n from mart_glucose_recent", "--marts")
    result = lakehouse("sql", "--marts", query)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert rows("select count(*) as n from mart_glucose_recent", "--marts") == before


@pytest.mark.parametrize("options", [(), ("--marts",)], ids=["warehouse", "marts"])
@pytest.mark.parametrize("query", ["", "  ", "/* nothing */", "selec 1", "select no_such_column", "from nowhere"])
def test_sql_says_what_is_wrong_with_a_query(site: Shared, query: str, options: tuple[str, ...]) -> None:
    result = lakehouse("sql", query, *options)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "lost" not in result.stderr


@pytest.mark.parametrize(
    "query",
    [
        "explain select 1",
        "explain analyze select 1",
        "describe curated.dim_site",
        "summarize curated.dim_site",
        "show all tables",
        "pivot (select 1 as a, 2 as b) on a using sum(b)",
        "with one as (select 1) from one;",
    ],
)
def test_sql_takes_all_that_reads(site: Shared, query: str) -> None:
    assert lakehouse("sql", query).exit_code == 0


def test_sql_before_the_first_run_says_so(own: Path) -> None:
    result = lakehouse("sql", "select 1")
    assert result.exit_code == 1
    assert "There is no warehouse yet" in result.stderr


def test_sql_refuses_an_unknown_format(site: Shared) -> None:
    assert lakehouse("sql", "select 1", "--format", "xml").exit_code == 2


def test_sql_can_be_cut_short_by_the_next_program_of_a_pipe(site: Shared) -> None:
    command = f"'{sys.executable}' -m nightscout_lakehouse.cli sql 'from range(200000)' --format csv | head -2"
    piped = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=60)
    assert piped.stdout.split() == ["range", "0"]
    assert piped.stderr == ""


# clean, demo-server


def test_clean_asks_and_removes_the_folder_as_a_whole(own: Path) -> None:
    assert "There is nothing at" in lakehouse("clean").stdout
    assert lakehouse("status").exit_code == 0
    (own / "lake").mkdir(exist_ok=True)
    refused = lakehouse("clean", answer="n\n")
    assert refused.exit_code == 1
    assert "Nothing was removed" in refused.stdout
    assert own.is_dir()
    assert lakehouse("clean", answer="y\n").exit_code == 0
    assert not own.exists()


def test_clean_does_not_touch_what_is_no_lakehouse(own: Path) -> None:
    own.mkdir()
    (own / "thesis.txt").write_text("years of work")
    result = lakehouse("clean", "--yes")
    assert result.exit_code == 1
    assert "is not the folder of a lakehouse" in " ".join(result.stderr.split())
    assert (own / "thesis.txt").is_file()


def test_clean_waits_for_no_run(own: Path) -> None:
    lakehouse("status")
    with held_by_another_process(own):
        result = lakehouse("clean", "--yes")
    assert result.exit_code == 1
    assert own.is_dir()


def test_the_demo_server_serves_until_ctrl_c() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "nightscout_lakehouse.cli", "demo-server", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    try:
        url, deadline = f"http://127.0.0.1:{port}/api/v1/entries.json", time.monotonic() + 30
        while True:
            try:
                assert len(httpx.get(url, timeout=10, trust_env=False).json()) == 10
                break
            except httpx.ConnectError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        taken = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert taken.returncode == 1
        assert "is in use by another program" in taken.stderr
        server.send_signal(signal.SIGINT)
        output, _ = server.communicate(timeout=20)
        assert f"http://127.0.0.1:{port}" in output
        assert "Traceback" not in output
    finally:
        server.kill()
