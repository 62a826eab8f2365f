"""The whole pipeline: a real server over HTTP, real files, real dbt, real Postgres, a real Dagster instance."""

import json
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from nightscout_lakehouse.demo import DemoOptions, DemoServer, DemoStore, Person
from nightscout_lakehouse.instance import JobOutcome, execute_job, prepare_environment
from nightscout_lakehouse.lib.run_journal import RunJournal
from nightscout_lakehouse.lib.serving import read_query, reader_connection, serving_database
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.warehouse import connect

TOKEN = "reader-0123456789abcdef"
DAYS = 32

# What each step of the way to the daily figures says of its dates.
DATED = {
    "raw_nightscout_entries",
    "processed_nightscout_entries",
    "stg_nightscout_glucose",
    "int_glucose_enriched",
    "fact_glucose_readings",
    "dim_glucose_date",
    "published_fact_glucose_readings",
    "mart_glucose_overview",
    "mart_glucose_recent",
}

pytestmark = [pytest.mark.e2e, pytest.mark.postgres]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[DemoStore]:
    """What the configured server holds."""
    options = DemoOptions(default_roles="denied", tokens={TOKEN: "readable"})
    # A clock that stands still: what a later run finds is what the test puts there.
    begin = datetime.now(UTC)
    person = DemoStore.of(Person(seed=3), days=DAYS, now=lambda: begin)
    with DemoServer(person, options) as server:
        monkeypatch.setenv("NIGHTSCOUT_URL", server.url)
        monkeypatch.setenv("NIGHTSCOUT_TOKEN", TOKEN)
        for name in ("DAGSTER_HOME", "LAKEHOUSE_HOME"):
            monkeypatch.setenv(name, os.environ.get(name, ""))
        yield person


def test_from_a_url_to_marts_and_again(store: DemoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKEHOUSE_HOME", str(tmp_path / "a lakehouse"))
    settings = load_settings()
    prepare_environment(settings)

    first = execute_job("nightscout_pipeline")
    assert first.errors == []
    assert first.success
    assert first.failed_checks == []

    raw = first.metadata["raw_nightscout_entries"]
    processed = first.metadata["processed_nightscout_entries"]
    assert raw["documents_fetched"] == raw["documents_landed"] > DAYS * 270
    assert processed["documents"] == raw["documents_landed"]
    assert processed["documents"] == processed["stored"] + processed["duplicates"] + processed["quarantined"]

    for asset, metadata in first.metadata.items():
        if asset == "raw_file_drop":
            assert metadata["files"] == 0
            continue
        if asset == "validate_glucose_enriched":
            assert metadata["success_rate_pct"] > 80
            continue
        assert {"seconds", "dagster/column_schema", "preview"} <= metadata.keys(), asset
        assert metadata["preview"].count("\n") >= 2, asset
        if not asset.startswith("raw_"):
            assert metadata["dagster/row_count"] >= 0, asset
    for asset in DATED:
        metadata = first.metadata[asset]
        assert any(key.startswith("first_") for key in metadata), asset
        assert any(key.startswith("last_") for key in metadata), asset
    for asset in DATED - {"raw_nightscout_entries", "stg_nightscout_glucose"}:
        assert first.metadata[asset]["dagster/row_count"] > 0, asset
        assert first.metadata[asset]["bytes"] > 0, asset
    assert {"raw_nightscout_entries", "stg_nightscout_glucose", "published_dim_site", "mart_glucose_recent"} <= set(
        first.metadata
    )
    described = {column.name: column.description for column in _columns(first, "fact_glucose_readings")}
    assert all(described.values()), described
    assert [column.type for column in _columns(first, "mart_glucose_overview") if column.name == "reading_date"] == [
        "date"
    ]
    for collection, least in (("treatments", DAYS * 44), ("device_status", DAYS * 88), ("profiles", 2)):
        fetched = first.metadata[f"raw_nightscout_{collection}"]
        kept = first.metadata[f"processed_nightscout_{collection}"]
        assert fetched["documents_fetched"] == fetched["documents_landed"] >= least
        assert kept["documents"] == kept["stored"] == kept["dagster/row_count"] == fetched["documents_landed"]

    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        readings, days, mean = warehouse.execute(
            "select count(*), count(distinct reading_date), avg(glucose_mg_dl) from curated.fact_glucose_readings"
        ).fetchall()[0]
        live = warehouse.execute(
            "select count(*) from lake.nightscout_entries where kind = 'sgv' and not is_deleted and not is_duplicate"
        ).fetchall()[0][0]
    assert readings == live
    assert DAYS <= days <= DAYS + 2

    with serving_database(settings) as owner:
        reader = reader_connection(settings, owner) or owner
        published = read_query(owner, "select count(*) from marts.mart_glucose_recent").rows[0][0]
        assert 14 * 200 < published <= 14 * 289
        overview = read_query(
            reader,
            "select sum(avg_glucose_mg_dl * reading_count) / sum(reading_count), sum(reading_count)"
            " from mart_glucose_overview",
        ).rows[0]
        assert overview[0] == pytest.approx(mean, rel=1e-9)
        assert overview[1] == readings
        (current,) = read_query(reader, "select site, age_minutes from mart_glucose_current").rows
        assert current[0] == "default"
        # The marts show the run that built them, though it ended after them.
        (run,) = read_query(
            reader, "select run_id, launched_by, status, documents_fetched, rows_stored from mart_pipeline_runs"
        ).rows
        everything = [f"nightscout_{name}" for name in ("entries", "treatments", "device_status", "profiles")]
        assert run == (
            *(first.run_id, "command", "success"),
            sum(first.metadata[f"raw_{name}"]["documents_fetched"] for name in everything),
            sum(first.metadata[f"processed_{name}"]["stored"] for name in everything),
        )
        (health,) = read_query(
            reader,
            "select site, last_run_status, is_stale, runs_24h, failed_runs_24h, rows_quarantined_24h, is_running,"
            " abs(extract(epoch from newest_document_timestamp - last_reading_timestamp)) < 600"
            " from mart_pipeline_health",
        ).rows
        quarantined = sum(first.metadata[f"processed_{name}"]["quarantined"] for name in everything)
        assert health == ("default", "success", False, 1, 0, quarantined, False, True)

    second = execute_job("nightscout_pipeline")
    assert second.success
    again = second.metadata["raw_nightscout_entries"]
    assert again["documents_fetched"] < raw["documents_fetched"] / 5
    assert again["documents_landed"] == 0
    for collection, most in (("treatments", 12), ("device_status", 12), ("profiles", 4)):
        assert second.metadata[f"raw_nightscout_{collection}"]["requests"] <= most
        assert second.metadata[f"raw_nightscout_{collection}"]["documents_landed"] == 0

    _read_a_month_again_from_the_ui(settings, store, first)

    assert _files_with(TOKEN, settings.home) == []
    # Five steps or more wrote what they did, each under its own name.
    lines = [json.loads(line) for line in (settings.log_dir / "lakehouse.jsonl").read_text().splitlines()]
    ended = [line["step"] for line in lines if line.get("event") == "step_ended"]
    assert ended.count("nightscout_marts") == 3
    assert (ended.count("raw_nightscout_entries"), ended.count("reread_nightscout_entries")) == (2, 1)
    assert [line["status"] for line in lines if line.get("event") == "run_ended"] == ["success"] * 3
    assert 'lakehouse_runs_total{job="nightscout_pipeline",status="success"} 2.0' in settings.metrics_path.read_text()


def _files_with(text: str, folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 50_000_000]
    return [str(path) for path in files if text.encode() in path.read_bytes()]


def _columns(outcome: JobOutcome, asset: str) -> Sequence[dg.TableColumn]:
    columns: Sequence[dg.TableColumn] = outcome.metadata[asset]["dagster/column_schema"].columns
    return columns


def _read_a_month_again_from_the_ui(settings: Settings, store: DemoStore, first: JobOutcome) -> None:
    """Of the warehouse that was lost meanwhile: it is built again from the Parquet, and Postgres from it."""
    from nightscout_lakehouse.definitions import defs

    day = datetime.now(UTC) - timedelta(days=20)
    edited = next(
        each
        for each in store.all_entries()
        if each["type"] == "sgv" and datetime.fromtimestamp(each["date"] / 1000, UTC).date() == day.date()
    )
    store.put({**edited, "sgv": 71})
    settings.warehouse_path.unlink()
    month = f"{day:%Y-%m-01}"
    with dg.DagsterInstance.get() as instance:
        result = defs.resolve_job_def("nightscout_backfill").execute_in_process(partition_key=month, instance=instance)
        assert result.success
        (reread,) = result.asset_materializations_for_node("reread_nightscout_entries")
        assert reread.partition == month
        assert instance.get_materialized_partitions(dg.AssetKey("reread_nightscout_entries")) == {month}
    # What follows has no months, and is brought up to date as a whole.
    materialized = {
        "/".join(event.materialization.asset_key.path): event.materialization
        for event in result.get_asset_materialization_events()
    }
    assert {"mart_glucose_overview", "published_fact_glucose_readings"} <= materialized.keys()
    kept, facts, published = (
        {name: value.value for name, value in materialized[asset].metadata.items()}
        for asset in ("processed_nightscout_treatments", "fact_glucose_readings", "published_fact_glucose_readings")
    )
    for asset, metadata in (("processed_nightscout_treatments", kept), ("fact_glucose_readings", facts)):
        assert metadata["dagster/row_count"] >= first.metadata[asset]["dagster/row_count"]
    assert published["why_full"] == "the warehouse is another one"
    assert published["deleted"] == 0
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        query = "select glucose_mg_dl from curated.fact_glucose_readings where nightscout_id = ?"
        assert warehouse.execute(query, [edited["_id"]]).fetchall() == [(71,)]


def test_a_run_that_fails_tells_someone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LAKEHOUSE_HOME", str(tmp_path / "a lakehouse"))
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("NIGHTSCOUT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NIGHTSCOUT_TOKEN", TOKEN)
    monkeypatch.setenv("NIGHTSCOUT_MAX_ATTEMPTS", "1")
    # A secret that the error is bound to say: it shows whether what is kept was cleaned on its whole way.
    monkeypatch.setenv("NIGHTSCOUT_API_SECRET", "gave no usable answer")
    settings = load_settings()
    prepare_environment(settings)

    outcome = execute_job("nightscout_pipeline")
    assert not outcome.success
    (error,) = outcome.errors
    assert "No site could be read" in error
    assert "the connection was refused" in error
    # Nothing downstream ran on what was not read.
    assert outcome.metadata == {}
    (run,) = RunJournal(settings.journal_path).runs()
    assert (run.run_id, run.status, run.failed_step) == (outcome.run_id, "failed", "raw_nightscout_entries")
    assert (run.failure_reason or "").startswith("No site could be read. Site default: ")
    (site,) = RunJournal(settings.journal_path).sites(run.run_id)
    assert site.is_read is False
    lines = [json.loads(line) for line in (settings.log_dir / "lakehouse.jsonl").read_text().splitlines()]
    assert {line["run_id"] for line in lines} == {run.run_id}
    assert [line["event"] for line in lines if "event" in line] == [
        "run_started",
        "site_read",
        "step_ended",
        "run_ended",
    ]
    (refused,) = [line for line in lines if line["level"] == "error"]
    # Of the thread that read the site.
    assert (refused["site"], refused["step"]) == ("default", "raw_nightscout_entries")
    assert "http://127.0.0.1:9 *** in 1 attempt" in refused["message"]
    for file in (settings.log_dir / "lakehouse.jsonl", settings.journal_path, settings.metrics_path):
        assert b"gave no usable answer" not in file.read_bytes(), file
    assert 'lakehouse_last_run_success{job="nightscout_pipeline"} 0.0' in settings.metrics_path.read_text()

    from nightscout_lakehouse.defs.alerts.failure import pipeline_failure_alert

    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(outcome.run_id)
        assert run is not None
        (failed,) = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
        event = failed.event_log_entry.dagster_event
        assert event is not None
        context = dg.build_run_status_sensor_context(
            "pipeline_failure_alert", dagster_event=event, dagster_instance=instance, dagster_run=run
        ).for_run_failure()
        with caplog.at_level("ERROR", logger="nightscout_lakehouse.alerts"):
            pipeline_failure_alert(context)
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("alerts")]
    assert line.startswith(f"Run {run.run_id[:8]} of nightscout_pipeline failed. raw_nightscout_entries: No site")
    assert "\n" not in line
    assert TOKEN not in line
    assert _files_with(TOKEN, settings.home) == []
