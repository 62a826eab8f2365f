"""From dropped files to the lake: what lands, what is known, what waits, and files beside a server."""

import os
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lineage_events
import pytest
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.demo import DemoServer, DemoStore, Person
from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.errors import ConfigurationError
from nightscout_lakehouse.lib.ingestion import ingest_sites
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site, load_sites, load_sites_of_files
from nightscout_lakehouse.lib.sources import file_source
from nightscout_lakehouse.lib.sources.file_drop import FileImport, import_drop, import_file, sites_of_files
from nightscout_lakehouse.lib.warehouse import connect

START = datetime(2026, 1, 15, 8, tzinfo=UTC)
HEADER = "timestamp,glucose_mg_dl,device"


def lines(count: int, first: int = 0, *, plus: int = 0, device: str = "sensor") -> list[str]:
    return [
        f"{(START + timedelta(minutes=5 * n)).isoformat()},{100 + n % 50 + plus},{device}"
        for n in range(first, first + count)
    ]


def drop(settings: Settings, name: str, rows: Sequence[str], header: str = HEADER) -> Path:
    path = settings.drop_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def tick(settings: Settings, lake: Lake) -> list[FileImport]:
    """What a run does with files and no server."""
    sites = sites_of_files(settings, lake)
    outcomes = import_drop(sites, settings, lake)
    process_sites(sites, settings, lake)
    return outcomes


def held(
    settings: Settings, columns: str = "site, epoch_ms(reading_timestamp), glucose_mg_dl"
) -> list[tuple[Any, ...]]:
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        return warehouse.execute(
            f"select {columns} from lake.nightscout_entries where kind = 'sgv' and not is_duplicate"
            " and not is_deleted order by all"
        ).fetchall()


def raw_files(lake: Lake, site: str) -> list[str]:
    return [file for file in lake.list_files(f"raw/nightscout_entries/site={site}") if file.endswith(".parquet")]


def test_nothing_dropped_is_nothing_done(settings: Settings, lake: Lake) -> None:
    assert sites_of_files(settings, lake) == []
    assert import_drop([], settings, lake) == []


def test_the_same_bytes_land_once_and_a_grown_export_only_what_it_added(settings: Settings, lake: Lake) -> None:
    path = drop(settings, "anna/a.csv", lines(100))
    (first,) = tick(settings, lake)
    assert first.outcome == "imported"
    assert first.report is not None
    assert (first.report.documents, first.report.landed, first.report.unchanged) == (100, 100, 0)
    before = held(settings)
    assert len(before) == 100

    (again,) = tick(settings, lake)
    assert again.outcome == "known"
    # The same bytes under another name, and touched.
    path.rename(path.with_name("b.csv"))
    os.utime(path.with_name("b.csv"), (1, 1))
    (renamed,) = tick(settings, lake)
    assert renamed.outcome == "known"
    assert len(raw_files(lake, "anna")) == 1

    # Grown, overlapping, and with one value corrected.
    grown = lines(160, 40)
    grown[10] = grown[10].replace(f",{100 + 50 % 50},", ",180,")
    drop(settings, "anna/c.csv", grown)
    outcomes = {outcome.file: outcome for outcome in tick(settings, lake)}
    report = outcomes["c.csv"].report
    assert report is not None
    assert (report.documents, report.landed, report.unchanged) == (160, 101, 59)
    after = held(settings)
    assert len(after) == 200
    assert len(set(before) - set(after)) == 1


def test_a_site_beside_another_and_quarantine(settings: Settings, lake: Lake) -> None:
    drop(
        settings, "anna/a.csv", ["2026-01-15T08:00:00Z,LOW,x", "2026-01-15T08:05:00Z,9,x", "2026-01-15T08:10:00Z,90,x"]
    )
    drop(settings, "ben/deep/a.csv", lines(3))
    tick(settings, lake)
    assert [row[0] for row in held(settings)] == ["anna", "ben", "ben", "ben"]
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        refused = warehouse.execute(
            "select quarantine_reason from lake.nightscout_entries where kind = 'quarantined' order by 1"
        ).fetchall()
        batches = warehouse.execute("select documents, stored + duplicates + quarantined from ops.batches").fetchall()
    assert [reason for (reason,) in refused] == ["glucose_sentinel", "sensor_error_code"]
    assert all(documents == accounted for documents, accounted in batches)


def test_a_zone_that_is_mended_moves_the_readings(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"2026-01-{day:02d}T00:30:00,{100 + day},x" for day in range(1, 29)]
    drop(settings, "anna/a.csv", rows)
    tick(settings, lake)
    before = held(settings)
    monkeypatch.setenv("LAKEHOUSE_DROP_TIMEZONE", "Europe/Berlin")
    settings = load_settings()
    (outcome,) = tick(settings, lake)
    assert outcome.outcome == "imported"
    after = held(settings)
    # Across the month's bound too: half past midnight is then of December.
    assert [(site, time - 3_600_000, glucose) for site, time, glucose in before] == after


def test_a_file_that_fails_fails_alone(settings: Settings, lake: Lake) -> None:
    drop(settings, "anna/bad.csv", ["x"], "a,b")
    drop(settings, "anna/good.csv", lines(3))
    drop(settings, "anna/rows.csv", ["yesterday,100,x"])
    drop(settings, "no site!/a.csv", lines(3))
    drop(settings, "loose.csv", lines(3))
    drop(settings, "anna/more.csv.part", lines(3))
    outcomes = {outcome.file: outcome for outcome in tick(settings, lake)}
    assert {name: outcome.outcome for name, outcome in outcomes.items()} == {
        "bad.csv": "failed",
        "good.csv": "imported",
        "rows.csv": "failed",
        "no site!": "failed",
        "loose.csv": "failed",
        "more.csv.part": "waiting",
    }
    assert "its header is none of those known" in outcomes["bad.csv"].message
    assert "line 2: unreadable_time" in outcomes["rows.csv"].message
    assert len(held(settings)) == 3


def test_a_file_malformed_at_its_end_lands_nothing(settings: Settings, lake: Lake) -> None:
    drop(settings, "anna/a.csv", [*lines(50), '2026-01-16T08:00:00Z,"100'])
    (outcome,) = tick(settings, lake)
    assert outcome.outcome == "failed"
    assert "line 52" in outcome.message
    assert raw_files(lake, "anna") == []


def test_a_file_that_is_being_written_waits(settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    path = drop(settings, "anna/a.csv", lines(10))
    documents = file_source.FileSource.documents

    def written_meanwhile(source: file_source.FileSource) -> Any:
        yield from documents(source)
        with path.open("a") as file:
            file.write(lines(1, 10)[0] + "\n")

    with monkeypatch.context() as patch:
        patch.setattr(file_source.FileSource, "documents", written_meanwhile)
        (outcome,) = tick(settings, lake)
    assert outcome.outcome == "waiting"
    assert "changed while it was read" in outcome.message
    assert raw_files(lake, "anna") == []
    (outcome,) = tick(settings, lake)
    assert outcome.outcome == "imported"
    assert len(held(settings)) == 11


def test_a_run_killed_before_it_remembers_lands_nothing_twice(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nightscout_lakehouse.lib.sources.landing.DOCUMENTS_PER_BATCH", 30)
    drop(settings, "anna/a.csv", lines(100))
    sites = sites_of_files(settings, lake)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            import_drop(sites, settings, lake)
    assert len(raw_files(lake, "anna")) == 4
    (outcome,) = tick(settings, lake)
    assert outcome.report is not None
    assert (outcome.report.landed, outcome.report.unchanged) == (0, 100)
    assert len(held(settings)) == 100


def test_no_name_of_a_file_reaches_the_lake(settings: Settings, lake: Lake) -> None:
    drop(settings, "anna/Greta Muster 1984.csv", lines(3))
    tick(settings, lake)
    content = b"".join(path.read_bytes() for path in Path(lake.root).rglob("*") if path.is_file())
    assert b"imported_at" in content
    assert b"Greta" not in content


def test_files_beside_a_server(settings: Settings, lake: Lake) -> None:
    """The server neither deletes what came from files, nor is it asked for it; near-duplicates count once."""
    store = DemoStore.of(Person(seed=5), days=10)
    with DemoServer(store) as server:
        site = Site("anna", server.url)
        (read,) = ingest_sites([site], settings, lake)
        process_sites([site], settings, lake)
        from_server = held(settings, "nightscout_id, epoch_ms(reading_timestamp), glucose_mg_dl, device")
        # The same readings from an export, half a minute later, and one day before the server's first.
        rows = [
            f"{datetime.fromtimestamp(time / 1000 + 30, UTC).isoformat()},{glucose:.0f},export"
            for _, time, glucose, _ in from_server
        ]
        early = datetime.fromtimestamp(from_server[0][1] / 1000, UTC) - timedelta(days=30)
        rows += [f"{(early + timedelta(minutes=5 * n)).isoformat()},150,export" for n in range(12)]
        drop(settings, "anna/a.csv", rows)
        (outcome,) = import_drop([site], settings, lake)
        assert outcome.report is not None
        assert outcome.report.landed == len(from_server) + 12
        for _ in range(2):
            (read,) = ingest_sites([replace(site)], settings, lake, since=early - timedelta(days=1))
            assert (read.deletions, read.retained, read.error) == (0, 0, None)
            process_sites([site], settings, lake)
    DbtProject(settings).build("duckdb", ["+fact_glucose_readings"], data_tests=False)
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        counted = dict(
            warehouse.execute(
                "select device, count(*) from curated.fact_glucose_readings group by 1 order by 1"
            ).fetchall()
        )
    # Both streams are of one sensor: each moment counts once, whichever of the two the day's main stream is.
    assert len(from_server) + 12 <= sum(counted.values()) <= (len(from_server) + 12) * 1.01


def test_scans_of_a_libre_count_only_where_nothing_else_is(settings: Settings, lake: Lake) -> None:
    header = "Device,Serial Number,Device Timestamp,Record Type,Historic Glucose mg/dL,Scan Glucose mg/dL"
    start = datetime(2026, 1, 20, tzinfo=UTC)
    # Historic readings for 18 hours, scans every 37 minutes all day.
    rows = [f"Libre,AB12,{start + timedelta(minutes=15 * n):%d-%m-%Y %H:%M},0,{100 + n},," for n in range(72)]
    rows += [f"Libre,AB12,{start + timedelta(minutes=37 * n):%d-%m-%Y %H:%M},1,,250," for n in range(38)]
    drop(settings, "anna/a.csv", rows, header)
    tick(settings, lake)
    assert len(held(settings)) == 72 + 38
    DbtProject(settings).build("duckdb", ["+fact_glucose_readings"], data_tests=False)
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        counted = warehouse.execute(
            "select count(*) filter (glucose_mg_dl < 200), count(*) filter (glucose_mg_dl = 250),"
            " min(hour_of_day) filter (glucose_mg_dl = 250) from curated.fact_glucose_readings"
        ).fetchall()
    # The last historic reading is of 17:45; the first scan that counts, eight minutes after it.
    assert counted == [(72, 9, 17)]


def test_sites_without_a_server(settings: Settings, lake: Lake) -> None:
    text = '[[sites]]\nname = "anna"\nsource = "files"\ntimezone = "europe/berlin"\ndate_order = "day_first"\n'
    Path("sites.toml").write_text(text + '[[sites]]\nname = "ben"\nurl = "https://ben.example.org"\n')
    drop(settings, "carla/a.csv", lines(1))
    assert [site.name for site in load_sites(settings)] == ["ben"]
    (anna,) = load_sites_of_files(settings)
    assert (anna.url, anna.timezone, anna.date_order) == ("", "Europe/Berlin", "day_first")
    assert [(site.name, site.timezone) for site in sites_of_files(settings, lake)] == [
        ("anna", "Europe/Berlin"),
        ("carla", None),
    ]
    Path("sites.toml").write_text('[[sites]]\nname = "a"\nsource = "files"\nurl = "https://x"')
    with pytest.raises(ConfigurationError, match="has no url"):
        load_sites_of_files(settings)


def test_a_wrong_zone_of_the_settings_is_told(settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(settings, "anna/a.csv", lines(1))
    monkeypatch.setenv("LAKEHOUSE_DROP_TIMEZONE", "Mars/Base")
    with pytest.raises(ConfigurationError, match="LAKEHOUSE_DROP_TIMEZONE: 'Mars/Base' is not a time zone"):
        sites_of_files(load_settings(), lake)


def test_a_long_file_takes_bounded_memory(settings: Settings, lake: Lake) -> None:
    path = settings.home / "big.csv"
    with path.open("w") as file:
        file.write(HEADER + "\n")
        for n in range(15):
            file.writelines(f"{row}\n" for row in lines(2_000, n * 2_000))
    site = Site("anna", "", timezone="UTC")
    tracemalloc.start()
    outcome = import_file(path, site, settings, lake, dry_run=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outcome.report is not None
    assert outcome.report.documents == 30_000
    # All of them at once would take some 40 MB; what is kept near is bounded.
    assert peak < 15_000_000


def test_the_command_says_what_a_file_holds_then_imports_it(
    settings: Settings, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "false")
    path = tmp_path / "exports" / "Clarity_Export_Smith_Anna.csv"
    path.parent.mkdir()
    path.write_text("\n".join([HEADER, *(row.replace("+00:00", "") for row in lines(3)), "never,100,x"]) + "\n")
    command = ["import", str(path), "--site", "anna", "--timezone", "Europe/Berlin"]
    dry = CliRunner().invoke(app, [*command, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "generic CSV" in dry.output
    assert "1 refused, unreadable_time (line 5)" in dry.output
    assert "Nothing was imported" in dry.output
    assert sites_of_files(settings, lake) == []
    assert not settings.lineage_dir.exists()

    real = CliRunner().invoke(app, [*command[:1], str(path.parent), *command[2:]])
    assert real.exit_code == 0, real.output
    assert "make run" in real.output
    (site,) = sites_of_files(settings, lake)
    assert (site.name, site.timezone) == ("anna", "Europe/Berlin")
    process_sites([site], settings, lake)
    assert next(time for _, time, _ in held(settings)) == int((START - timedelta(hours=1)).timestamp() * 1000)

    assert lineage_events.ends(settings.lineage_dir) == {
        **dict.fromkeys(("lakehouse_import", "imported_files", "imported_files.checks"), "COMPLETE")
    }
    (imported,) = [each for each in lineage_events.recorded(settings.lineage_dir) if each["outputs"]]
    assert [each["name"] for each in imported["inputs"]] == ["exported_files"]
    (raw,) = imported["outputs"]
    assert raw["name"] == f"{settings.lake_url}/raw/nightscout_entries"
    assert raw["outputFacets"]["outputStatistics"]["rowCount"] == 3
    assert raw["outputFacets"]["subset"]["outputCondition"]["partitions"] == [{"dimensions": {"site": "anna"}}]

    wrong = CliRunner().invoke(app, ["import", str(path), "--site", "a/b"])
    assert wrong.exit_code == 1
    assert lineage_events.ends(settings.lineage_dir)["lakehouse_import"] == "FAIL"
    path.write_text("1,2\n")
    assert CliRunner().invoke(app, command).exit_code == 1
    assert lineage_events.ends(settings.lineage_dir) == {
        "lakehouse_import": "FAIL",
        "imported_files": "COMPLETE",
        "imported_files.checks": "FAIL",
    }
    # Its name names a person.
    assert "Smith" not in (settings.lineage_dir / "events.ndjson").read_text()
    listed = CliRunner().invoke(app, ["sources"])
    assert "Dexcom Clarity export" in listed.output
