"""What the recorder makes of a run: its beginning and end, whatever happens in between."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest

from nightscout_lakehouse.defs.lineage import run_facts
from nightscout_lakehouse.lib.lineage.datasets import DatasetName, DatasetNames
from nightscout_lakehouse.lib.lineage.emitter import Emitter
from nightscout_lakehouse.lib.lineage.facts import (
    AssetFacts,
    Catalog,
    CheckFacts,
    ColumnFacts,
    ErrorFacts,
    RunFacts,
    StepFacts,
    Written,
)
from nightscout_lakehouse.lib.lineage.journal import event_files, read_lines
from nightscout_lakehouse.lib.lineage.recorder import RunRecorder
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES
from nightscout_lakehouse.lib.redaction import Redactor
from nightscout_lakehouse.lib.settings import Settings, load_settings

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
CATALOG = Catalog(
    assets={
        "raw_nightscout_entries": AssetFacts("raw_nightscout_entries", "raw_nightscout_entries", owners=("team:x",)),
        "processed_nightscout_entries": AssetFacts(
            "processed_nightscout_entries", "processed_nightscout_entries", upstream=("raw_nightscout_entries",)
        ),
        "dim_site": AssetFacts("dim_site", "nightscout_curated", table="curated.dim_site", is_model=True),
        **{
            f"published_{table}": AssetFacts(f"published_{table}", "publish", (table,), is_in_postgres=True)
            for table in ("dim_site", "fact_meals")
        },
    },
    steps={"validate": StepFacts("validate", "Looks at it.", also_reads=("dim_site",))},
)
Made = Callable[..., RunRecorder]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Made:
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "false")

    def make(with_settings: Settings = settings) -> RunRecorder:
        run = RunFacts(str(uuid4()), "nightscout_pipeline", NOW)
        return RunRecorder(with_settings, run, CATALOG, Emitter(with_settings, Redactor))

    return make


def events(settings: Settings) -> list[dict[str, Any]]:
    return [json.loads(line) for path in event_files(settings.lineage_dir) for line in read_lines(path)]


def seen(settings: Settings) -> list[tuple[str, str]]:
    return [(each["eventType"], each["job"]["name"]) for each in events(settings)]


def test_the_next_run_ends_what_a_killed_one_left_open(settings: Settings, made: Made) -> None:
    killed = made()
    killed.begin(NOW)
    killed.step_started("raw_nightscout_entries", NOW)
    killed.step_ended("raw_nightscout_entries", NOW, [], [])
    killed.step_started("publish", NOW)
    (settings.lineage_dir / "open" / "torn.json").write_text('{"run_id"')

    following = made()
    following.close_killed_runs()
    following.begin(NOW)
    assert seen(settings)[-3:] == [
        ("ABORT", "publish"),
        ("ABORT", "nightscout_pipeline"),
        ("START", "nightscout_pipeline"),
    ]
    begun = {each["job"]["name"]: each for each in events(settings) if each["eventType"] == "START"}
    step, run = events(settings)[-3:-1]
    assert step["run"]["runId"] == begun["publish"]["run"]["runId"]
    assert step["run"]["facets"]["parent"]["run"]["runId"] == run["run"]["runId"] == events(settings)[0]["run"]["runId"]
    assert "was killed" in run["run"]["facets"]["errorMessage"]["message"]
    assert run["run"]["facets"]["nominalTime"]["nominalStartTime"] == "2026-01-01T12:00:00.000Z"

    following.end("COMPLETE", NOW)
    another = made()
    another.close_killed_runs()
    assert seen(settings)[-1] == ("COMPLETE", "nightscout_pipeline")
    assert list((settings.lineage_dir / "open").iterdir()) == []


def test_a_run_that_could_not_begin_has_both_its_events(settings: Settings, made: Made) -> None:
    # Its recorder never took the lock, so it must not look at the others' runs.
    holder, waiting = made(), made()
    holder.begin(NOW)
    waiting.end("FAIL", NOW, ErrorFacts("another run holds the lock"))
    assert [each for each, _ in seen(settings)] == ["START", "START", "FAIL"]
    assert len(list((settings.lineage_dir / "open").iterdir())) == 1


def test_a_step_that_fails_in_the_middle_keeps_what_was_done(settings: Settings, made: Made) -> None:
    settings.postgres_dir.mkdir(parents=True)
    (settings.postgres_dir / "port").write_text("6543\n")
    recorder = made()
    recorder.begin(NOW)
    recorder.step_started("publish", NOW)
    columns = (ColumnFacts("site", "text"),)
    written = Written(
        "published_dim_site", NOW, table="curated.dim_site", rows=0, rows_held=0, bytes=8192, columns=columns
    )
    recorder.step_ended("publish", NOW + timedelta(seconds=3), [written], [], ErrorFacts("lost", "Traceback …"))
    assert seen(settings)[1:] == [
        ("START", "publish"),
        ("START", "published_dim_site"),
        ("COMPLETE", "published_dim_site"),
        ("FAIL", "publish"),
    ]
    done, failed = events(settings)[3:]
    assert (done["outputs"][0]["namespace"], done["outputs"][0]["name"]) == (
        "postgres://127.0.0.1:6543",
        "lakehouse.curated.dim_site",
    )
    assert done["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 0
    assert done["outputs"][0]["facets"]["columnLineage"]["fields"]["site"]["inputFields"][0]["name"] == (
        "warehouse.curated.dim_site"
    )
    assert failed["run"]["facets"]["errorMessage"]["stackTrace"] == "Traceback …"
    assert failed["outputs"] == []


def test_checks_of_severity_error_fail_their_job_and_warnings_do_not(settings: Settings, made: Made) -> None:
    recorder = made()
    recorder.begin(NOW)
    asset = "raw_nightscout_entries"
    warns = CheckFacts(asset, "warns", is_passed=False, is_error=False, evaluated=10, failed=2)
    breaks = CheckFacts(asset, "breaks", is_passed=False, is_error=True, description="3 rows do not hold")
    still = CheckFacts("dim_site", "still", is_passed=True, is_error=True, is_unchanged=True)
    for checks in ([warns], [warns, breaks], [still]):
        recorder.step_started(asset, NOW)
        recorder.step_ended(asset, NOW, [], checks)
    ended = [each for each in events(settings) if each["job"]["name"] == f"{asset}.checks" and each["inputs"]]
    assert [each["eventType"] for each in ended] == ["COMPLETE", "FAIL"]
    assert ended[1]["run"]["facets"]["errorMessage"]["message"] == "breaks: 3 rows do not hold"
    facets = ended[0]["inputs"][0]["inputFacets"]
    assert facets["dataQualityMetrics"]["rowCount"] == 10
    assert facets["dataQualityAssertions"]["assertions"][0]["actual"] == "2"
    assert facets["dataQualityAssertions"]["assertions"][0]["severity"] == "warn"

    recorder.step_started("validate", NOW)
    recorder.step_ended("validate", NOW, [], [warns], ErrorFacts("stopped"), is_aborted=True)
    last = events(settings)[-1]
    assert (last["eventType"], last["job"]["facets"]["jobType"]["jobType"]) == ("ABORT", "CHECK")
    assert [each["name"].rpartition("/")[2] for each in last["inputs"]] == [
        "nightscout_entries",
        "warehouse.curated.dim_site",
    ]


def test_the_tick_of_the_schedule_is_known() -> None:
    run_id, tick = str(uuid4()), "2026-01-01T12:30:00+00:00"
    by_schedule = dg.DagsterRun("nightscout_pipeline", run_id, tags={".dagster/scheduled_execution_time": tick})
    assert run_facts(by_schedule) == RunFacts(run_id, "nightscout_pipeline", datetime(2026, 1, 1, 12, 30, tzinfo=UTC))
    assert run_facts(dg.DagsterRun("nightscout_pipeline", run_id)).scheduled_for is None


def test_datasets_of_a_bucket_and_of_a_database_that_was_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_URL", "s3://lakehouse/some/prefix")
    names = DatasetNames.of(load_settings())
    assert names.raw(ENTRIES) == DatasetName("s3://lakehouse", "some/prefix/raw/nightscout_entries")
    assert names.in_warehouse("lake.nightscout_entries") == names.processed(ENTRIES)
    assert names.in_postgres("marts.x") is None
    assert names.api(ENTRIES) == DatasetName("nightscout", "api/v1/entries")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret@db.example:6432/x")
    assert DatasetNames.of(load_settings()).in_postgres("marts.y") == DatasetName(
        "postgres://db.example:6432", "x.marts.y"
    )
