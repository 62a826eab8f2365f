"""The quarantine as a place: what is in it, since when, why, and how a document leaves it."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import LAYOUT_FILE, Lake, batch_file, partition_files
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES, TREATMENTS, Collection
from nightscout_lakehouse.lib.processing import process_sites, upgrade_layout
from nightscout_lakehouse.lib.quality.conservation import compare_with_raw_files
from nightscout_lakehouse.lib.quality.quarantine import (
    REMEDIES,
    Choice,
    find_refused,
    list_refused,
    refused_shares,
    retry_refused,
)
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect, open_warehouse

NOW = datetime.now(UTC).replace(microsecond=0)
ANNA, BEN = (Site(name, "http://127.0.0.1:1", timezone="UTC") for name in ("anna", "ben"))
TOKEN = "reader-0123456789abcdef"


def entry(number: int, sgv: Any, at: datetime = NOW - timedelta(hours=12), **more: Any) -> str:
    date = int((at + timedelta(minutes=5 * number)).timestamp() * 1000)
    return json.dumps({"_id": f"{number:024x}", "type": "sgv", "sgv": sgv, "date": date, "device": "sensor", **more})


def arrive(
    settings: Settings,
    lake: Lake,
    site: Site,
    number: int,
    texts: list[str],
    at: datetime = NOW,
    collection: Collection = ENTRIES,
) -> None:
    write_batch(lake, site.name, number, documents_from_json(texts, collection), at, collection)
    process_sites([site], settings, lake, collection)


def accounting(settings: Settings, site: str = "anna") -> list[tuple[int, ...]]:
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        return warehouse.execute(
            "select batch, documents, stored, duplicates, quarantined from ops.batches"
            " where site = ? and collection = 'nightscout_entries' order by batch",
            [site],
        ).fetchall()


def test_a_document_is_first_seen_once_however_often_it_comes(settings: Settings, lake: Lake) -> None:
    first, second, third = (NOW - timedelta(hours=hours) for hours in (9, 6, 3))
    arrive(settings, lake, ANNA, 1, [entry(1, "HIGH"), entry(2, 120)], first)
    arrive(settings, lake, ANNA, 2, [entry(1, "LOW")], second)
    (refused,) = list_refused(settings, Choice(), 10)
    assert (refused.reason, refused.batch, json.loads(refused.document)["sgv"]) == ("glucose_sentinel", 2, "LOW")
    assert (refused.first_seen_at, refused.last_seen_at) == (first, second)
    # It leaves, comes back, and is still first seen when it was.
    arrive(settings, lake, ANNA, 3, [entry(1, 140)], third)
    assert list_refused(settings, Choice(), 10) == []
    arrive(settings, lake, ANNA, 4, [entry(1, -1)], NOW)
    (refused,) = list_refused(settings, Choice(), 10)
    assert (refused.first_seen_at, refused.last_seen_at) == (first, NOW)


def test_the_model_and_the_command_show_the_same(settings: Settings, lake: Lake) -> None:
    treatment = json.dumps({"_id": "a" * 24, "eventType": "Bolus", "insulin": 900, "created_at": NOW.isoformat()})
    gone = entry(3, "LOW", isValid=False)
    arrive(settings, lake, ANNA, 1, [entry(1, "HIGH"), entry(2, 120), gone, '["no object"]'])
    arrive(settings, lake, BEN, 1, [treatment], collection=TREATMENTS)
    DbtProject(settings).build("duckdb", ["stg_nightscout_quarantine"])
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        rows = warehouse.execute(
            "from staging.stg_nightscout_quarantine order by last_seen_at desc, site, collection, document_id"
        ).fetchall()
    listed = list_refused(settings, Choice(), 10)
    assert [tuple(vars(each).values()) for each in listed] == rows
    assert {(each.site, each.collection, each.reason) for each in listed} == {
        ("anna", "entries", "glucose_sentinel"),
        ("anna", "entries", "not_a_json_object"),
        ("ben", "treatments", "insulin_out_of_range"),
    }
    assert [each.site for each in list_refused(settings, Choice(collection="treatments"), 10)] == ["ben"]
    assert [each.document_id for each in find_refused(settings, f"ben/{'a' * 24}")] == ["a" * 24]
    with pytest.raises(LakehouseError, match="No document b' or '1'='1 is in quarantine"):
        find_refused(settings, "b' or '1'='1")


def test_what_was_only_ahead_of_its_time_leaves_in_a_retry(settings: Settings, lake: Lake) -> None:
    # Fetched when the clock of this machine was two hours behind.
    behind = NOW - timedelta(hours=2)
    early = [entry(number, 100 + number, NOW - timedelta(minutes=60)) for number in range(3)]
    same = entry(9, 100, NOW - timedelta(minutes=60 + 45))
    arrive(settings, lake, ANNA, 1, [*early, entry(20, "HIGH"), same], behind)
    assert accounting(settings) == [(1, 5, 0, 0, 5)]
    (report,) = retry_refused(settings, lake, [ANNA, BEN], Choice(reason="timestamp_in_future"))
    # Two of them are of one moment and device: the later counts.
    assert (report.retried, report.stored, report.duplicates, report.still_refused) == (4, 3, 1, 0)
    (report,) = retry_refused(settings, lake, [ANNA, BEN], Choice())
    assert (report.retried, report.stored, report.still_refused) == (1, 0, 1)
    assert accounting(settings) == [(1, 5, 0, 0, 5), (2, 4, 3, 1, 0), (3, 1, 0, 1, 0)]
    assert [each.reason for each in list_refused(settings, Choice(), 10)] == ["glucose_sentinel"]
    found = compare_with_raw_files(settings, lake)
    assert (found.batches, found.documents, found.unaccounted, found.faults) == (3, 10, 0, ())
    assert retry_refused(settings, lake, [ANNA], Choice(reason="missing_id")) == []


def test_what_is_refused_again_for_another_reason_is_quarantined_once(settings: Settings, lake: Lake) -> None:
    behind = NOW - timedelta(hours=2)
    arrive(settings, lake, ANNA, 1, [entry(0, "HIGH", NOW - timedelta(minutes=60))], behind)
    assert [each.reason for each in list_refused(settings, Choice(), 10)] == ["timestamp_in_future"]
    (report,) = retry_refused(settings, lake, [ANNA], Choice(reason="timestamp_in_future"))
    assert (report.stored, report.duplicates, report.still_refused) == (0, 0, 1)
    assert [each.reason for each in list_refused(settings, Choice(), 10)] == ["glucose_sentinel"]


def test_a_retry_does_not_overtake_what_waits(settings: Settings, lake: Lake) -> None:
    arrive(settings, lake, ANNA, 1, [entry(1, "HIGH")])
    write_batch(lake, "anna", 2, documents_from_json([entry(1, 150)]), NOW)
    with pytest.raises(LakehouseError, match="Site anna has batches of entries that are not processed yet"):
        retry_refused(settings, lake, [ANNA], Choice())
    assert not lake.exists(batch_file("anna", 3))
    with pytest.raises(LakehouseError, match=r"No site is named carl\. There are: anna"):
        retry_refused(settings, lake, [ANNA], Choice(site="carl"))


def test_a_lake_of_the_time_before_first_fetched_at_is_brought_up(settings: Settings, lake: Lake) -> None:
    arrive(settings, lake, ANNA, 1, [entry(1, "HIGH"), entry(2, 120)], NOW - timedelta(hours=3))
    lake.delete(LAYOUT_FILE)
    files = [file for kind in ENTRIES.all_kinds for file in partition_files(lake, kind, "anna").values()]
    assert len(files) == 2
    with connect(settings) as engine:
        for file in files:
            source = f"read_parquet('{lake.duckdb_path(file)}', hive_partitioning = false)"
            lake.write_query(engine, file, f"select * exclude (first_fetched_at) from {source}")
    # Killed after the first file.
    upgrade_layout(settings, lake)
    lake.delete(LAYOUT_FILE)
    arrive(settings, lake, ANNA, 2, [entry(1, "LOW")])
    (refused,) = list_refused(settings, Choice(), 10)
    assert (refused.first_seen_at, refused.last_seen_at) == (NOW - timedelta(hours=3), NOW)


def test_conservation_is_held_against_the_files(settings: Settings, lake: Lake) -> None:
    for number in (1, 2, 3):
        arrive(settings, lake, ANNA, number, [entry(number, 100), entry(number + 10, 101)])
    write_batch(lake, "anna", 2, documents_from_json([entry(2, 100)]), NOW)
    lake.delete(batch_file("anna", 3))
    write_batch(lake, "anna", 4, documents_from_json([entry(4, 100)]), NOW)
    found = compare_with_raw_files(settings, lake)
    assert (found.batches, found.unaccounted) == (3, 1)
    assert found.faults == (
        "anna, nightscout_entries, batch 2: the file holds 1 documents and 0 deletions; accounted for are 2 and 0, "
        "of which 2 are stored, duplicates or quarantined.",
        "anna, nightscout_entries, batch 3: its file is gone; 2 documents were accounted for.",
    )


def test_a_large_share_of_refused_documents_warns_by_site(settings: Settings, lake: Lake) -> None:
    arrive(settings, lake, ANNA, 1, [entry(n, 100 if n > 2 else "HIGH") for n in range(30)])
    arrive(settings, lake, BEN, 1, [entry(n, "HIGH") for n in range(19)])
    with open_warehouse(settings) as warehouse:
        (share,) = refused_shares(warehouse, ENTRIES, 5.0, datetime.now(UTC))
        assert (share.site, share.documents, share.quarantined, share.share_pct) == ("anna", 30, 3, 10.0)
        assert refused_shares(warehouse, ENTRIES, 10.0, datetime.now(UTC)) == []
        assert refused_shares(warehouse, ENTRIES, 5.0, datetime.now(UTC) + timedelta(hours=25)) == []
        assert refused_shares(warehouse, TREATMENTS, 0.0, datetime.now(UTC)) == []


def test_every_reason_has_a_remedy_and_is_in_the_guide() -> None:
    lib = REPOSITORY_ROOT / "dagster" / "src" / "nightscout_lakehouse" / "lib"
    code = "".join(path.read_text() for path in [*lib.glob("parse_*.py"), lib / "document_sql.py"])
    kinds = {"quarantined", "sgv", "mbg", "loop", "openaps"}
    reasons = set(re.findall(r"then '([a-z_]+)'$", code, re.MULTILINE)) - kinds
    assert reasons == set(REMEDIES)
    guide = (REPOSITORY_ROOT / "docs" / "guide" / "04-parquet.md").read_text()
    assert [reason for reason in REMEDIES if f"`{reason}`" not in guide] == []


def lakehouse(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert TOKEN not in result.output
    return result


def test_the_commands(settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCOUT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("NIGHTSCOUT_TOKEN", TOKEN)
    monkeypatch.setenv("NIGHTSCOUT_SITE", "anna")
    monkeypatch.setenv("DAGSTER_HOME", "")
    assert "There is no warehouse yet" in lakehouse("quarantine", "list").stderr
    behind = NOW - timedelta(hours=2)
    odd = entry(1, "HIGH", notes=f"https://x/?token={TOKEN} [bold]é[/]")
    arrive(settings, lake, ANNA, 1, [odd, entry(2, 120, NOW - timedelta(minutes=70)), entry(-100, 100)], behind)

    listed = lakehouse("quarantine", "list")
    assert listed.exit_code == 0
    counts, _, documents = listed.stdout.partition("\n\n")
    assert re.search(r"anna +entries +timestamp_in_future +1 ", counts)
    # In its own column: the start of the document holds the id too.
    assert re.search(rf"glucose_sentinel +{1:024x} +\{{", documents)
    assert "1 of 2; --limit" in lakehouse("quarantine", "list", "--limit", "1").stdout
    rows = json.loads(lakehouse("quarantine", "list", "--format", "json", "--reason", "glucose_sentinel").stdout)
    assert [row["document_id"] for row in rows] == [f"{1:024x}"]
    assert json.loads(rows[0]["document"])["notes"] == "https://x/?token=*** [bold]é[/]"
    assert lakehouse("quarantine", "list", "--format", "csv").stdout.startswith("site,collection,document_id,reason,")
    assert "Nothing is in quarantine" in lakehouse("quarantine", "list", "--site", "ben").stdout

    shown = lakehouse("quarantine", "show", f"{1:024x}").stdout
    assert "Refused: glucose_sentinel" in shown
    assert REMEDIES["glucose_sentinel"] in shown
    assert '"notes": "https://x/?token=*** [bold]é[/]"' in shown
    half = entry(3, 120, behind - timedelta(hours=9)).replace('"sensor"', '"\\ud83d é"')
    arrive(settings, lake, ANNA, 2, [half], behind)
    (refused,) = list_refused(settings, Choice(reason="not_a_json_object"), 10)
    shown = lakehouse("quarantine", "show", f"anna/{refused.document_id}").stdout
    assert "Refused: not_a_json_object" in shown
    assert r'"device": "\ud83d \u00e9"' in shown
    assert r"\ud83d" in lakehouse("quarantine", "list").stdout
    missing = lakehouse("quarantine", "show", "nothing")
    assert missing.exit_code == 1
    assert "No document nothing is in quarantine" in missing.stderr

    retried = lakehouse("quarantine", "retry")
    assert retried.exit_code == 0, retried.stderr
    assert "1 of 3 documents left quarantine." in retried.stdout
    assert "0 of 2 documents left quarantine. Nothing has changed." in lakehouse("quarantine", "retry").stdout
    assert "Nothing is in quarantine that fits." in lakehouse("quarantine", "retry", "--reason", "missing_id").stdout
    assert "No site is named ben." in lakehouse("quarantine", "retry", "--site", "ben").stderr
