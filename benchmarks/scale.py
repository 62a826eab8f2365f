"""Millions of readings through the whole pipeline: what a tick costs with a long history, and with a tenth of it.

Batch files are written as reading a server writes them, a month each; then `lakehouse run` takes them in, and runs
again for each tick. The servers are real ones that hold a single new reading a site at every tick. A tick should cost
what its new data costs: ten times the history may not cost much more. One model is shown by itself and left out:
percentiles and MAGE of all time need every reading. Processor time is compared, since others may use the machine.
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
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import dagster as dg

from nightscout_lakehouse.demo import DemoServer, DemoStore
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.settings import load_settings

READINGS_A_BATCH = 30 * 288
INTERVAL = timedelta(minutes=5)
WARM_UP = timedelta(hours=2)
TICKS = 2
# Other work on the machine moves the figure by a tenth; beyond this, a tick pays for its history.
MOST_TIMES = 1.25
GROWS = "int_glucose_period_sums"


@dataclass(frozen=True)
class Cost:
    """What a run cost: processor and wall-clock seconds, and the wall-clock seconds of its parts."""

    cpu_seconds: float
    seconds: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """A history and what was measured with it; of the ticks the cheapest."""

    readings: int
    first_run: Cost
    tick: Cost
    is_complete: bool


def main() -> int:
    """Run it; 1 if a reading got lost, or if ten times the history makes a tick cost too much more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=int, default=10_000_000, help="over all sites; and a tenth of it")
    parser.add_argument("--sites", type=int, default=20)
    arguments = parser.parse_args()
    short, long = (measure(readings, arguments.sites) for readings in (arguments.readings // 10, arguments.readings))
    print(f"\n| share of a tick | {short.readings:,} readings | {long.readings:,} readings |\n|---|---:|---:|")
    # Shares, not seconds: the machine's other work stretches both runs, and not alike.
    for name in long.tick.parts:
        shares = [100 * each.tick.parts.get(name, 0) / each.tick.seconds for each in (short, long)]
        print(f"| {name} | {shares[0]:.0f} % | {shares[1]:.0f} % |")
    print(f"| processor, s | {short.tick.cpu_seconds:.1f} | {long.tick.cpu_seconds:.1f} |")
    with_it, times = long.tick.cpu_seconds / short.tick.cpu_seconds, _without(long.tick) / _without(short.tick)
    print(
        f"\nWith ten times the history a tick takes {with_it:.2f} times the processor time, and {times:.2f} times "
        f"without {GROWS}; {MOST_TIMES} is too much."
    )
    return 0 if short.is_complete and long.is_complete and times < MOST_TIMES else 1


def _without(tick: Cost) -> float:
    """Processor seconds of a tick without the model that grows, by its share."""
    return tick.cpu_seconds * (1 - tick.parts[_GROWING] / tick.seconds)


def measure(readings: int, sites: int) -> Measured:
    """Write a history, run once, then tick."""
    per_site = readings // sites
    newest = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(days=1)
    stores = {f"site{number:03d}": DemoStore() for number in range(sites)}
    with tempfile.TemporaryDirectory(prefix="scale-") as folder, ExitStack() as servers:
        # Where this runs as root, Postgres runs as another user, who has to pass here.
        Path(folder).chmod(0o711)
        urls = {name: servers.enter_context(DemoServer(store)).url for name, store in stores.items()}
        environment = _environment(Path(folder), urls)
        _land(environment, list(stores), per_site, newest)
        first_run = _run(environment, f"{per_site * sites:,} readings, first run")
        ticks = []
        for tick in range(1, TICKS + 1):
            for number, store in enumerate(stores.values()):
                store.put(json.loads(_entry(per_site + number * TICKS + tick, newest + tick * INTERVAL)))
            ticks.append(_run(environment, f"tick {tick}"))
        stored = _count(environment, "select count(*) as n from curated.fact_glucose_readings")
    expected = (per_site + TICKS) * sites
    print(f"{stored:,} readings in fact_glucose_readings, {expected:,} expected", flush=True)
    cheapest = min(ticks, key=lambda cost: cost.cpu_seconds)
    return Measured(per_site * sites, first_run, cheapest, is_complete=stored == expected)


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
    # A new sensor every ten days, which sends nothing while it warms up: a session that never ends is nobody's.
    return (_entry(number, newest - number * INTERVAL - number // (10 * 288) * WARM_UP) for number in numbers)


def _entry(number: int, moment: datetime) -> str:
    # A day's wave with a slower one on it: enough for every range to occur.
    glucose = 150 + 70 * math.sin(number / 46) + 45 * math.sin(number / 601)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return (
        f'{{"_id":"{int(moment.timestamp()):08x}{number:016x}","type":"sgv","sgv":{glucose:.0f},'
        f'"date":{int(moment.timestamp()) * 1000},"dateString":"{text}","sysTime":"{text}","utcOffset":0,'
        f'"device":"xDrip-DexcomG6","direction":"Flat"}}'
    )


def _run(environment: dict[str, str], name: str) -> Cost:
    before, started = _cpu_seconds(), time.monotonic()
    command = [sys.executable, "-m", "nightscout_lakehouse.cli", "run"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    cost = Cost(_cpu_seconds() - before, time.monotonic() - started, _parts(Path(environment["LAKEHOUSE_HOME"])))
    # The greatest of all children so far; the first run is the greater one.
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"{name}: {cost.cpu_seconds:.1f} s of processor, {cost.seconds:.0f} s, at most {peak_gib:.2f} GiB", flush=True
    )
    return cost


def _cpu_seconds() -> float:
    """Processor time of the runs so far; Postgres, which goes on by itself, is not in it."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _parts(home: Path) -> dict[str, float]:
    """Where the last run's time went: the steps of Dagster, and within them what dbt says of its models and tests."""
    parts: defaultdict[str, float] = defaultdict(float)
    with patch.dict(os.environ, DAGSTER_HOME=str(home / "dagster")), dg.DagsterInstance.get() as instance:
        (run,) = instance.get_runs(limit=1)
        for step in instance.get_run_step_stats(run.run_id):
            if step.start_time is not None and step.end_time is not None:
                parts[_PARTS.get(step.step_key.split("_")[0], step.step_key)] += step.end_time - step.start_time
    for target in ("duckdb", "postgres"):
        results = json.loads((home / "dbt" / target / "run_results.json").read_text(encoding="utf-8"))["results"]
        for result in results:
            kind = str(result["unique_id"]).split(".")[0]
            parts[f"… of that dbt's {kind}s on {target}"] += result["execution_time"]
            if result["unique_id"].endswith(f".{GROWS}"):
                parts[_GROWING] += result["execution_time"]
    return dict(parts)


_GROWING = f"… of that {GROWS}"
_PARTS = {"raw": "reading the servers", "processed": "processing", "published": "publishing"}


def _count(environment: dict[str, str], query: str) -> int:
    command = [sys.executable, "-m", "nightscout_lakehouse.cli", "sql", query, "--format", "json"]
    answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(answer.stdout)[0]["n"])


if __name__ == "__main__":
    raise SystemExit(main())
