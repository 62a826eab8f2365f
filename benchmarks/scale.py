"""Millions of readings through the whole pipeline: how long it takes, and how much memory, first and at the next tick.

Batch files are written as reading a server writes them, a month each; then `lakehouse run` takes them in, twice. The
servers are real ones that hold a single new reading a site at the second run.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nightscout_lakehouse.demo import DemoServer, DemoStore
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.settings import load_settings

READINGS_A_BATCH = 30 * 288
INTERVAL = timedelta(minutes=5)


def main() -> int:
    """Run it; 1 if a reading got lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=int, default=10_000_000, help="over all sites")
    parser.add_argument("--sites", type=int, default=20)
    arguments = parser.parse_args()
    per_site = arguments.readings // arguments.sites
    newest = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(days=1)
    stores = {f"site{number:03d}": DemoStore() for number in range(arguments.sites)}
    with tempfile.TemporaryDirectory(prefix="scale-") as folder, ExitStack() as servers:
        # Where this runs as root, Postgres runs as another user, who has to pass here.
        Path(folder).chmod(0o711)
        urls = {name: servers.enter_context(DemoServer(store)).url for name, store in stores.items()}
        environment = _environment(Path(folder), urls)
        started = time.monotonic()
        _land(environment, list(stores), per_site, newest)
        print(f"{per_site * arguments.sites:,} documents written in {time.monotonic() - started:.0f} s")
        _run(environment, "first run")
        for number, store in enumerate(stores.values()):
            store.put(json.loads(_entry(per_site + number, newest + INTERVAL)))
        _run(environment, "next tick")
        stored = _count(environment, "select count(*) as n from curated.fact_glucose_readings")
    expected = (per_site + 1) * arguments.sites
    print(f"{stored:,} readings in fact_glucose_readings, {expected:,} expected")
    return 0 if stored == expected else 1


def _environment(folder: Path, urls: dict[str, str]) -> dict[str, str]:
    sites = folder / "sites.toml"
    sites.write_text(
        "\n".join(f'[[sites]]\nname = "{name}"\nurl = "{url}"\ntimezone = "UTC"\n' for name, url in urls.items()),
        encoding="utf-8",
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSCOUT_")}
    return inherited | {"LAKEHOUSE_HOME": str(folder / "lakehouse"), "LAKEHOUSE_SITES_FILE": str(sites)}


def _land(environment: dict[str, str], sites: list[str], per_site: int, newest: datetime) -> None:
    os.environ.update(environment)
    lake = Lake.open(load_settings())
    for site in sites:
        for batch, first in enumerate(range(0, per_site, READINGS_A_BATCH), start=1):
            numbers = range(first, min(first + READINGS_A_BATCH, per_site))
            documents = documents_from_json(_entries(numbers, newest))
            write_batch(lake, site, batch, documents, newest + timedelta(days=1))


def _entries(numbers: range, newest: datetime) -> Iterator[str]:
    return (_entry(number, newest - number * INTERVAL) for number in numbers)


def _entry(number: int, moment: datetime) -> str:
    # A day's wave with a slower one on it: enough for every range to occur.
    glucose = 150 + 70 * math.sin(number / 46) + 45 * math.sin(number / 601)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return (
        f'{{"_id":"{int(moment.timestamp()):08x}{number:016x}","type":"sgv","sgv":{glucose:.0f},'
        f'"date":{int(moment.timestamp()) * 1000},"dateString":"{text}","sysTime":"{text}","utcOffset":0,'
        f'"device":"xDrip-DexcomG6","direction":"Flat"}}'
    )


def _run(environment: dict[str, str], name: str) -> None:
    started = time.monotonic()
    command = [sys.executable, "-m", "nightscout_lakehouse.cli", "run"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    # The greatest of all children so far; the first run is the greater one.
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{name}: {time.monotonic() - started:.0f} s, at most {peak_gib:.2f} GiB", flush=True)


def _count(environment: dict[str, str], query: str) -> int:
    command = [sys.executable, "-m", "nightscout_lakehouse.cli", "sql", query, "--format", "json"]
    answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(answer.stdout)[0]["n"])


if __name__ == "__main__":
    raise SystemExit(main())
