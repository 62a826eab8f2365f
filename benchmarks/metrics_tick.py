"""What one new reading costs on a site with ten years of readings, model by model, against building everything.

Usage: metrics_tick.py [YEARS]
"""

import json
import math
import os
import random
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta

from nightscout_lakehouse.lib.dbt_project import DbtBuildResult, DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import load_settings
from nightscout_lakehouse.lib.sites import Site

MODELS = ["tag:stg", "tag:int", "tag:curated"]
LARGEST_SHARE = 0.5


def documents(start: datetime, count: int) -> list[str]:
    """Readings every five minutes that wander around 140 mg/dL; the seed is fixed."""
    chance = random.Random(1)
    level = 140.0
    texts = []
    for slot in range(count):
        level += 0.03 * (140 + 50 * math.sin(slot / 30) - level) + chance.gauss(0, 6)
        level = min(max(level, 40.0), 400.0)
        texts.append(document(slot, start + timedelta(minutes=5 * slot), round(level)))
    return texts


def document(number: int, moment: datetime, sgv: int) -> str:
    """One reading as Nightscout sends it."""
    return json.dumps(
        {"_id": f"{number:024x}", "type": "sgv", "sgv": sgv, "date": int(moment.timestamp() * 1000), "device": "sensor"}
    )


def main() -> int:
    """Print the seconds of each model; 1 if a tick costs more than half of building everything."""
    days = int(float(sys.argv[1]) * 365) if len(sys.argv) > 1 else 3650
    with tempfile.TemporaryDirectory() as home:
        os.environ["LAKEHOUSE_HOME"] = home
        settings = load_settings()
        lake, project = Lake.open(settings), DbtProject(settings)
        site = Site("bench", "http://127.0.0.1:1", timezone="Europe/Berlin")
        end = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=1)
        count = days * 288

        write_batch(lake, "bench", 1, documents_from_json(documents(end - days * timedelta(days=1), count)), end)
        process_sites([site], settings, lake)
        whole, whole_seconds = timed(project)
        write_batch(lake, "bench", 2, documents_from_json([document(count, end, 120)]), end)
        process_sites([site], settings, lake)
        tick, tick_seconds = timed(project)

    print(f"| model, {count:,} readings | everything, s | one new reading, s |\n|---|---|---|")
    for name, seconds in whole.items():
        print(f"| `{name}` | {seconds:.2f} | {tick[name]:.2f} |")
    models_whole, models_tick = sum(whole.values()), sum(tick.values())
    print(f"| all models | {models_whole:.2f} | {models_tick:.2f} |")
    print(f"| with dbt and its tests | {whole_seconds:.2f} | {tick_seconds:.2f} |")
    return int(models_tick > LARGEST_SHARE * models_whole)


def timed(project: DbtProject) -> tuple[dict[str, float], float]:
    """Build once: seconds by model, and of all of it."""
    began = time.monotonic()
    result: DbtBuildResult = project.build("duckdb", MODELS)
    seconds = time.monotonic() - began
    return {node.name: node.execution_seconds for node in result.nodes if node.resource_type == "model"}, seconds


if __name__ == "__main__":
    sys.exit(main())
