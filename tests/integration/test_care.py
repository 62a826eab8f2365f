"""Backup, restore, export, forget: one lakehouse with two people goes through all of it, in this order."""

import csv
import json
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from psycopg2.extensions import cursor as PsycopgCursor  # noqa: N812 - psycopg2 spells its class in lower case
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.demo import DemoOptions, DemoServer, DemoStore, Person
from nightscout_lakehouse.instance import execute_job, prepare_environment
from nightscout_lakehouse.lib.care.traces import every_file
from nightscout_lakehouse.lib.dashboard.databases import metadata_connection
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.quality.conservation import compare_with_raw_files
from nightscout_lakehouse.lib.serving import serving_database
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.warehouse import connect

pytestmark = [pytest.mark.e2e, pytest.mark.postgres]

TOKEN = "reader-0123456789abcdef"
PERSON = "berta-k"
SERIAL = "G7-serial-4711-XYZ"
NOTE = "Lunch at aunt Hedwig's house"
DAYS = 6


def lakehouse(*arguments: str, answer: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=answer)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def said(result: Result) -> str:
    """What it says of a failure, in one line, however wide the terminal is."""
    assert result.exit_code == 1, result.output
    return " ".join(result.stderr.split())


@contextmanager
def superset(settings: Settings) -> Iterator[PsycopgCursor]:
    """In Superset's own database, in the same server."""
    with (
        serving_database(settings) as owner,
        metadata_connection(settings, owner).transaction() as opened,
        opened.cursor() as cursor,
    ):
        yield cursor


def charts(settings: Settings) -> list[tuple[str]]:
    with superset(settings) as cursor:
        cursor.execute("select name from charts")
        return cursor.fetchall()


def figures(site: str) -> list[dict[str, Any]]:
    """What people look at: days and their figures, in the warehouse and in the marts."""
    queries = (
        ("select * from curated.dim_glucose_date where site = '{}' order by reading_date",),
        ("select * from curated.fact_daily_insulin where site = '{}' order by reading_date",),
        ("select * from mart_glucose_overview where site = '{}' order by reading_date", "--marts"),
        ("select * from mart_meals where site = '{}' order by meal_id", "--marts"),
    )
    found: list[dict[str, Any]] = []
    # Each command would start the embedded Postgres and stop it again.
    with serving_database(load_settings()):
        for query, *options in queries:
            result = lakehouse("sql", query.format(site), *options, "--format", "json")
            assert result.exit_code == 0, result.output
            rows = json.loads(result.stdout)
            assert rows or site == PERSON, query
            found += rows
    return found


@dataclass(frozen=True)
class Course:
    """What happened, step by step."""

    settings: Settings
    folder: Path
    backup: Path
    backed_up: Result
    before: dict[str, list[dict[str, Any]]]


def leave_scratch(settings: Settings) -> None:
    """What DuckDB leaves of a run that was killed with more than fits into memory."""
    settings.warehouse_scratch_dir.mkdir(exist_ok=True)
    (settings.warehouse_scratch_dir / "duckdb_temp_storage_DEFAULT-0.tmp").write_text("her words")


@pytest.fixture(scope="module")
def course() -> Iterator[Course]:
    folder = Path(tempfile.mkdtemp(prefix="lakehouse-test-"))
    folder.chmod(0o711)
    begin = datetime.now(UTC)
    people = {
        name: DemoStore.of(Person(seed=seed), days=DAYS, now=lambda: begin) for name, seed in (("anna", 3), (PERSON, 5))
    }
    moment = begin - timedelta(days=2)
    people[PERSON].put(
        {"_id": "b" * 24, "type": "sgv", "sgv": 123, "date": int(moment.timestamp() * 1000), "device": SERIAL}
    )
    people[PERSON].put({"_id": "c" * 24, "type": "sgv", "sgv": "HIGH", "date": int(moment.timestamp() * 1000) + 60_000})
    people[PERSON].upsert_by(
        "treatments",
        {
            "_id": "d" * 24,
            "eventType": "Note",
            "created_at": moment.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "notes": f"=cmd {NOTE}",
            "enteredBy": "nurse Hildegard",
        },
        "_id",
    )
    options = DemoOptions(default_roles="denied", tokens={TOKEN: "readable"})
    with (
        pytest.MonkeyPatch.context() as patch,
        DemoServer(people["anna"], options) as anna,
        DemoServer(people[PERSON], options) as berta,
    ):
        sites = folder / "sites.toml"
        sites.write_text(
            "".join(
                f'[[sites]]\nname = "{name}"\nurl = "{url}"\ntoken_env = "TEST_TOKEN"\n'
                for name, url in (("anna", anna.url), (PERSON, berta.url))
            )
        )
        for name, value in {
            "LAKEHOUSE_HOME": str(folder / "a lakehouse"),
            "LAKEHOUSE_SITES_FILE": str(sites),
            "TEST_TOKEN": TOKEN,
            "DAGSTER_HOME": "",
            # Its events name people, too.
            "OPENLINEAGE_DISABLED": "false",
        }.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        settings = load_settings()
        prepare_environment(settings)
        # Each of these would start the embedded Postgres and stop it again.
        with serving_database(settings):
            outcome = execute_job("nightscout_pipeline")
            assert outcome.errors == []
            lakehouse("report", PERSON)
            leave_scratch(settings)
            with superset(settings) as cursor:
                cursor.execute("create table charts (name text); insert into charts values ('My own chart')")
            result = lakehouse("backup", str(folder / "saved"))
            before = {name: figures(name) for name in ("anna", PERSON)}
        yield Course(settings, folder, folder / "saved", result, before)
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _environment(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKEHOUSE_HOME", str(course.settings.home))
    monkeypatch.setenv("LAKEHOUSE_SITES_FILE", str(course.settings.sites_file))
    monkeypatch.setenv("TEST_TOKEN", TOKEN)
    monkeypatch.setenv("DAGSTER_HOME", "")


def test_a_backup_is_whole_private_and_says_what_it_leaves_out(course: Course) -> None:
    assert course.backed_up.exit_code == 0, course.backed_up.output
    manifest = json.loads((course.backup / "manifest.json").read_text())
    paths = {file["path"] for file in manifest["files"]}
    assert {"warehouse.duckdb", "postgres.dump", "home/runs.sqlite", "home/dagster/dagster.yaml"} <= paths
    assert any(path.startswith(f"lake/raw/nightscout_treatments/site={PERSON}/batch=") for path in paths)
    assert any(path.startswith("home/lineage/") for path in paths)
    assert not any("temp_storage" in path for path in paths)
    assert manifest["figures"]["anna"]["readings"] > DAYS * 250
    assert {"postgres", "dbt"} <= manifest["left_out"].keys()
    files = list(every_file(course.backup))
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(course.backup.stat().st_mode) == 0o700
    secrets = [TOKEN, *((path.read_text().strip()) for path in course.settings.postgres_dir.glob("*password"))]
    assert len(secrets) == 5
    assert [path for path in files for secret in secrets if secret.encode() in path.read_bytes()] == []
    assert not list(course.folder.glob(".*.partial"))

    assert "is there already" in said(lakehouse("backup", str(course.backup)))
    assert "lies inside" in said(lakehouse("backup", str(course.settings.home / "saved")))


def test_a_backup_that_is_damaged_is_refused_before_anything_is_touched(course: Course) -> None:
    assert lakehouse("restore", str(course.backup), "--verify").exit_code == 0
    damaged = course.folder / "damaged"
    shutil.copytree(course.backup, damaged)
    victim = next(damaged.rglob("batch=*.parquet"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    (damaged / "lake" / "extra").write_text("x")
    before = sorted(every_file(course.settings.home))
    refused = said(lakehouse("restore", str(damaged), "--replace"))
    assert "is damaged" in refused
    assert "is not of the backup" in refused
    assert sorted(every_file(course.settings.home)) == before
    assert "is not empty" in said(lakehouse("restore", str(course.backup)))
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["files"][0]["path"] = "../../outside"
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    assert "outside of the backup" in said(lakehouse("restore", str(damaged)))


def test_a_restore_brings_every_figure_back(course: Course) -> None:
    shutil.rmtree(course.settings.home)
    restored = lakehouse("restore", str(course.backup))
    assert restored.exit_code == 0, restored.output
    for name in ("anna", PERSON):
        assert figures(name) == course.before[name]
    runs = lakehouse("sql", "select status from mart_pipeline_runs", "--marts", "--format", "json")
    assert json.loads(runs.stdout) == [{"status": "success"}]
    assert not compare_with_raw_files(course.settings, Lake.open(course.settings)).faults
    assert charts(course.settings) == [("My own chart",)]


def test_a_deidentified_export_has_nothing_of_the_person(course: Course) -> None:
    days = 5
    since = (datetime.now(UTC) - timedelta(days=days)).date()
    plain, safe = course.folder / "plain", course.folder / "safe"
    assert lakehouse("export", str(plain), "--site", PERSON, "--since", str(since)).exit_code == 0
    options = ("--since", str(since), "--de-identify")
    for target, file_format in ((safe, "csv"), (course.folder / "safe parquet", "parquet")):
        result = lakehouse("export", str(target), "--site", PERSON, *options, "--format", file_format)
        assert result.exit_code == 0, result.output
        assert "count back the weeks" in result.stdout

    rows = {name: list(csv.DictReader((plain / f"{name}.csv").open())) for name in ("readings", "treatments")}
    moved = {name: list(csv.DictReader((safe / f"{name}.csv").open())) for name in ("readings", "treatments")}
    assert any(row["notes"] == f"'=cmd {NOTE}" for row in rows["treatments"])
    for name, column in (("readings", "reading_local_timestamp"), ("treatments", "treatment_local_timestamp")):
        assert len(rows[name]) == len(moved[name]) > 0
        shifts = {
            datetime.fromisoformat(row[column]) - datetime.fromisoformat(twin[column])
            for row, twin in zip(rows[name], moved[name], strict=True)
        }
        # One shift, of whole weeks, and the same in every table.
        assert len(shifts) == 1
        (shift,) = shifts
        assert shift.seconds == 0
        assert shift.days % 7 == 0
        assert shift.days > days
    assert [row["glucose_mg_dl"] for row in rows["readings"]] == [row["glucose_mg_dl"] for row in moved["readings"]]
    assert [row["day_of_week"] for row in rows["readings"]] == [row["day_of_week"] for row in moved["readings"]]

    content = b"".join(path.read_bytes() for path in sorted(every_file(safe)))
    for file in sorted(every_file(course.folder / "safe parquet")):
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            assert table.schema.metadata is None
            content += json.dumps(table.to_pylist(), default=str).encode()
    original_dates = {date.fromisoformat(row["reading_date"]) for row in rows["readings"]}
    forbidden = [PERSON, SERIAL, NOTE, "Hildegard", "Europe/", *(str(day) for day in original_dates)]
    forbidden += [row["nightscout_id"] for row in rows["readings"]] + [
        row["treatment_id"] for row in rows["treatments"]
    ]
    forbidden += [row["device"] for row in rows["readings"] if row["device"]]
    assert [text for text in forbidden if text.encode() in content] == []
    assert {int(path.stat().st_mtime) for path in [safe, *safe.iterdir()]} == {946_684_800}
    dictionary = list(csv.DictReader((safe / "data_dictionary.csv").open()))
    assert all(row["meaning"] for row in dictionary), dictionary
    header = (safe / "daily.csv").read_text().splitlines()[0].split(",")
    assert [row["column"] for row in dictionary if row["file"] == "daily.csv"] == header


def test_a_user_is_told_what_an_export_cannot_do(course: Course) -> None:
    for arguments, message in {
        ("--site", "nobody"): "There is no site nobody. There are: anna, berta-k.",
        ("--what", "secrets"): "--what 'secrets' is not known.",
        ("--since", "2026-02-01", "--until", "2026-01-01"): "--since is after --until.",
        ("--until", "2001-01-01"): "There is nothing to export.",
    }.items():
        assert message in said(lakehouse("export", str(course.folder / "no export"), *arguments))
    assert not (course.folder / "no export").exists()


def test_a_person_is_forgotten_everywhere_and_the_others_stay(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = course.settings
    assert "is still configured (sites.toml)" in said(lakehouse("forget", PERSON, "--yes"))

    sites = settings.sites_file
    sites.write_text(sites.read_text().split("[[sites]]")[0] + "[[sites]]" + sites.read_text().split("[[sites]]")[1])
    wrong = lakehouse("forget", PERSON, answer="anna\n")
    assert wrong.exit_code == 1
    assert "Nothing was removed." in wrong.stdout
    assert figures(PERSON)
    dropped = settings.drop_dir / PERSON
    dropped.mkdir(parents=True)
    (dropped / "clarity.csv").write_text("her name")
    assert "would import them again" in said(lakehouse("forget", PERSON, "--yes"))

    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        identifiers = [
            row[0]
            for row in warehouse.execute(
                "select nightscout_id from lake.nightscout_entries where site = ? union all "
                "select nightscout_id from lake.nightscout_treatments where site = ?",
                [PERSON, PERSON],
            ).fetchall()
        ]
    assert len(identifiers) > 1_000
    leave_scratch(settings)
    told = b"".join(path.read_bytes() for path in every_file(settings.home))
    assert SERIAL.encode() in told, "else the search below proves nothing"
    assert TOKEN.encode() not in told
    assert f"agp-{PERSON}".encode() in b"".join(str(path).encode() for path in every_file(settings.home))

    # Killed where it hurts most: the old cluster is aside, the new one is empty, the lake has nothing to search for.
    def killed(*_: object) -> None:
        raise LakehouseError("Killed.")

    with monkeypatch.context() as patch:
        patch.setattr("nightscout_lakehouse.lib.care.forget.restore_database", killed)
        assert "Killed." in said(lakehouse("forget", PERSON, "--yes", "--with-dropped-files"))
    assert "Forgetting berta-k was not finished." in said(lakehouse("forget", "nobody", "--yes"))

    done = lakehouse("forget", PERSON, "--yes", "--with-dropped-files")
    assert done.exit_code == 0, done.output
    assert "Nothing was found." in done.stdout
    assert re.search(r"[1-9]\d* entries of runs, checks and alerts", done.stdout)
    assert re.search(r"[1-9]\d* lines of logs and lineage", done.stdout)

    # Not by the program's own search.
    probes = [*identifiers[:: len(identifiers) // 40], "b" * 24, "c" * 24, "d" * 24, SERIAL, NOTE, "Hildegard"]
    for path in every_file(settings.home):
        content = path.read_bytes()
        assert [probe for probe in probes if probe.encode() in content] == [], path
        if path.suffix not in (".duckdb",) and settings.postgres_dir / "data" not in path.parents:
            assert PERSON.encode() not in content, path
    assert not settings.warehouse_scratch_dir.exists()
    assert figures(PERSON) == []
    assert figures("anna") == course.before["anna"]
    assert not compare_with_raw_files(settings, Lake.open(settings)).faults
    assert charts(settings) == [("My own chart",)]

    assert f"There is nothing of a site {PERSON} here." in said(lakehouse("forget", PERSON, "--yes"))


def test_the_next_run_works_and_does_not_fetch_the_person_again(course: Course) -> None:
    prepare_environment(course.settings)
    outcome = execute_job("nightscout_pipeline")
    assert outcome.errors == []
    assert outcome.failed_checks == []
    assert outcome.metadata["published_fact_glucose_readings"].get("why_full", "") == ""
    assert figures(PERSON) == []
    assert figures("anna") == course.before["anna"]
