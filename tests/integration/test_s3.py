"""The lake in a bucket: the same code, the same rows as in a folder, and nothing half-written."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pyarrow as pa
import pytest

from nightscout_lakehouse.lib.care.backup import back_up
from nightscout_lakehouse.lib.care.pruning import bring_back, prune
from nightscout_lakehouse.lib.care.restore import restore
from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.errors import LakeError, LakehouseError
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.quality.conservation import compare_with_raw_files
from nightscout_lakehouse.lib.settings import load_settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect

pytestmark = pytest.mark.s3

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-4c7ad1f0"
SITE = Site("anna", "http://127.0.0.1:1", timezone="Europe/Berlin")
FETCHED_AT = datetime(2026, 11, 20, tzinfo=UTC)
START = datetime(2026, 10, 24, 18, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Bucket:
    """A bucket of a real S3 server, and the folder that the server keeps it in."""

    endpoint: str
    folder: Path


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket `lake`, which the settings point to."""
    folder = tmp_path / "s3" / "lake"
    folder.mkdir(parents=True)
    rclone = Path(sys.executable).with_name("rclone")
    for attempt in range(5):
        port = random.SystemRandom().randint(20_000, 60_000)
        server = subprocess.Popen(
            [
                *(str(rclone), "serve", "s3", str(folder.parent), "--addr", f"127.0.0.1:{port}"),
                *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", ""),
            ],
            stderr=(tmp_path / f"rclone-{attempt}.log").open("w"),
        )
        if _answers(server, port):
            break
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("LAKE_URL", "s3://lake/of anna")
    monkeypatch.setenv("LAKE_S3_ENDPOINT", endpoint)
    monkeypatch.setenv("LAKE_S3_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("LAKE_S3_SECRET_ACCESS_KEY", SECRET_KEY)
    yield Bucket(endpoint, folder)
    server.kill()
    server.wait()


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    while server.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=5, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return True
    return False


def document(number: int, minutes: int, sgv: int) -> dict[str, Any]:
    moment = START + timedelta(minutes=minutes)
    return {"_id": f"{number:024x}", "type": "sgv", "sgv": sgv, "date": int(moment.timestamp() * 1000), "device": "s"}


def build(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[Any, ...]]]:
    """Two ticks, the second with an edit, a deletion and late data; the models of each."""
    monkeypatch.setenv("LAKEHOUSE_HOME", str(home))
    settings = load_settings()
    lake = Lake.open(settings)
    first = [document(n, 5 * n, 60 + n % 150) for n in range(1, 900)]
    second = [document(10, 50, 300), document(2000, 7, 44) | {"isValid": False}, document(3000, -2881, 99)]
    ticks = ((first, ["+fact_glucose_readings"]), (second, ["+dim_glucose_date"]))
    for number, (documents, models) in enumerate(ticks, start=1):
        texts = [json.dumps(document) for document in documents]
        write_batch(lake, SITE.name, number, documents_from_json(texts), FETCHED_AT)
        process_sites([SITE], settings, lake)
        DbtProject(settings).build("duckdb", models, data_tests=False)
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        tables = ("lake.nightscout_entries", "curated.fact_glucose_readings", "curated.dim_glucose_date")
        return {table: warehouse.execute(f"from {table} order by all").fetchall() for table in tables}


def test_a_bucket_holds_what_a_folder_holds(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_bucket = build(tmp_path / "with bucket", monkeypatch)
    files = [path.relative_to(bucket.folder) for path in bucket.folder.rglob("*.parquet")]
    assert any("raw" in path.parts for path in files)
    assert any("processed" in path.parts for path in files)
    assert not (tmp_path / "with bucket" / "lake").exists()

    monkeypatch.setenv("LAKE_URL", "")
    in_folder = build(tmp_path / "with folder", monkeypatch)
    assert len(in_folder["curated.fact_glucose_readings"]) == 900
    assert in_bucket == in_folder


def test_an_upload_that_breaks_off_is_not_seen(bucket: Bucket, tmp_path: Path) -> None:
    killed = (
        "import os\n"
        "from nightscout_lakehouse.lib.lake import Lake\n"
        "from nightscout_lakehouse.lib.settings import load_settings\n"
        "lake = Lake.open(load_settings())\n"
        "stream = lake.filesystem.open_output_stream(f'{lake.root}/raw/half.parquet')\n"
        "stream.write(bytes(24_000_000))\n"
        "stream.flush()\n"
        "os._exit(9)\n"
    )
    writer = subprocess.run([sys.executable, "-c", killed], check=False, timeout=60)
    assert writer.returncode == 9
    lake = Lake.open(load_settings())
    assert lake.list_files("raw", recursive=True) == []
    lake.write_parquet("raw/half.parquet", pa.table({"n": [1, 2]}))
    assert lake.parquet_rows("raw/half.parquet") == 2


def test_a_query_that_breaks_off_leaves_the_file_that_was_there(bucket: Bucket) -> None:
    """What DuckDB writes: an error in the middle, and a process that is killed in the middle."""
    settings = load_settings()
    lake = Lake.open(settings)
    # Rows that are not compressed away, so that much is written before the end.
    many = "select md5(i::varchar) as text, random() as number from range(600_000) as t (i)"
    with connect(settings) as connection:
        lake.write_query(connection, "processed/old.parquet", "select 1 as n")
        broken = f"select *, case when text = md5('590000') then error('broken off') end as e from ({many})"
        for file in ("processed/old.parquet", "processed/new.parquet"):
            with pytest.raises(duckdb.Error, match="broken off"):
                lake.write_query(connection, file, broken)
    assert lake.list_files("processed", recursive=True) == ["processed/old.parquet"]
    assert lake.parquet_rows("processed/old.parquet") == 1

    writing = (
        "from nightscout_lakehouse.lib.lake import Lake\n"
        "from nightscout_lakehouse.lib.settings import load_settings\n"
        "from nightscout_lakehouse.lib.warehouse import connect\n"
        "settings = load_settings()\n"
        "connection = connect(settings)\n"
        "print('writing', flush=True)\n"
        f"Lake.open(settings).write_query(connection, 'processed/old.parquet', {many.replace('600_', '30_000_')!r})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", writing], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    time.sleep(0.5)
    assert writer.poll() is None
    writer.kill()
    writer.wait()
    assert lake.list_files("processed", recursive=True) == ["processed/old.parquet"]
    assert lake.parquet_rows("processed/old.parquet") == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LAKE_S3_SECRET_ACCESS_KEY", "not-the-secret-9b1f"),
        ("LAKE_S3_ENDPOINT", "http://127.0.0.1:9"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_named(
    variable: str, value: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    settings = load_settings()
    with pytest.raises(LakeError) as refused:
        Lake.open(settings).write_json("raw/x.json", {})
    message = str(refused.value)
    assert settings.lake_url in message
    assert "endpoint and keys" in message
    assert SECRET_KEY not in message
    assert "not-the-secret" not in message
    with pytest.raises(LakeError):
        Lake.open(settings).read_json("raw/x.json")


def test_a_bucket_is_backed_up_and_restored_into_an_empty_one(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings()
    lake = Lake.open(settings)
    write_batch(
        lake, "anna", 1, documents_from_json([json.dumps(document(n, 5 * n, 100)) for n in range(1, 31)]), FETCHED_AT
    )
    process_sites([SITE], settings, lake)
    manifest = back_up(settings, tmp_path / "saved", with_postgres=False)
    assert SECRET_KEY not in (tmp_path / "saved" / "manifest.json").read_text()
    with pytest.raises(LakehouseError, match="is not empty"):
        restore(settings, tmp_path / "saved", replace=True)

    monkeypatch.setenv("LAKEHOUSE_HOME", str(tmp_path / "another home"))
    monkeypatch.setenv("LAKE_URL", "s3://lake/another")
    elsewhere = load_settings()
    restore(elsewhere, tmp_path / "saved")
    saved = {file.path.removeprefix("lake/") for file in manifest.files if file.path.startswith("lake/")}
    assert saved == set(Lake.open(elsewhere).list_files("raw", recursive=True)) | set(
        Lake.open(elsewhere).list_files("processed", recursive=True)
    )
    with connect(elsewhere, elsewhere.warehouse_path, read_only=True) as warehouse:
        # The view reads the new place.
        assert warehouse.execute("select count(*) from lake.nightscout_entries").fetchall() == [(30,)]


def test_raw_files_move_from_a_bucket_into_a_folder_and_back(bucket: Bucket, tmp_path: Path) -> None:
    settings, archive = load_settings(), tmp_path / "cold"
    lake = Lake.open(settings)
    raw = bucket.folder / "of anna" / "raw" / "nightscout_entries" / "site=anna"

    def land(number: int, numbers: range, sgv: int) -> None:
        texts = [json.dumps(document(n, 5 * n, sgv)) for n in numbers]
        write_batch(lake, "anna", number, documents_from_json(texts), FETCHED_AT)
        process_sites([SITE], settings, lake)

    land(1, range(1, 300), 100)
    before = (raw / "batch=00000001.parquet").read_bytes()
    # The bucket, seen as a folder: with what is moved there its only copy would go.
    with pytest.raises(LakehouseError, match="is the lake s3://"):
        prune(settings, bucket.folder / "of anna", older_than_days=400, now=FETCHED_AT + timedelta(days=500))
    (moved,) = prune(settings, archive, older_than_days=400, now=FETCHED_AT + timedelta(days=500))
    assert (moved.first, moved.last, moved.documents, moved.size_bytes) == (1, 1, 299, len(before))
    assert list(raw.glob("batch=*")) == []
    assert [path.read_bytes() for path in archive.rglob("batch=*")] == [before]
    land(2, range(5, 6), 222)
    assert not compare_with_raw_files(settings, lake).faults

    bring_back(settings, archive)
    assert (raw / "batch=00000001.parquet").read_bytes() == before
    # This server does not list a folder in which something was removed until something is written there.
    land(3, range(6, 7), 222)
    found = compare_with_raw_files(settings, lake)
    assert (found.batches, found.pruned, found.faults) == (3, 0, ())
