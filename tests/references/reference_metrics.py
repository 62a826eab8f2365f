"""What iglu-python and py-agata compute for a series of readings, under our metric names.

The two run in the environment that `pyproject.toml` and `uv.lock` of this folder describe, in one process for the whole
test run; the first call brings that environment up to date.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Literal

from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT

FOLDER = Path(__file__).parent
ORIGIN = datetime(2000, 1, 1)  # noqa: DTZ001  local time without a zone, as the programs take it

Figures = dict[str, dict[str, float | None]]


Part = Literal["iglu", "iglu mage", "agata", "agata pairs"]


def reference_metrics(
    readings: Sequence[tuple[datetime, float]], interval_minutes: int, parts: Sequence[Part] = ("iglu", "agata")
) -> Figures:
    """The programs' figures: metric -> program -> value, None where the program gives NaN.

    Programs are `iglu`, `agata` and, for ranges, `agata_our_rule` (see `worker.py`). One without the metric has no key.

    Args:
        readings: (local time, mg/dL) in order, at most one in each interval counted from midnight; at least one.
        interval_minutes: The nominal interval.
        parts: What to compute: all figures of a program, or those alone that take long (see `worker.py`).

    Raises:
        RuntimeError: A program failed.
    """
    process = _worker()
    assert process.stdin is not None
    assert process.stdout is not None
    request = {
        "times": [(at.replace(tzinfo=None) - ORIGIN).total_seconds() / 60 for at, _ in readings],
        "glucose": [glucose for _, glucose in readings],
        "interval": interval_minutes,
        "parts": list(parts),
    }
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline() or '{"error": "the process ended"}')
    if "error" in answer:
        raise RuntimeError(answer["error"])
    figures: Figures = answer["figures"]
    return figures


@cache
def _worker() -> subprocess.Popen[str]:
    """The process; it ends when this one does and its input closes."""
    environment = FOLDER / ".venv"
    subprocess.run(
        [
            *(REPOSITORY_ROOT / ".uv" / "bin" / "uv", "sync", "--frozen", "--quiet"),
            *("--project", FOLDER, "--python", sys.executable),
        ],
        env=os.environ | {"UV_PROJECT_ENVIRONMENT": str(environment)},
        check=True,
    )
    return subprocess.Popen(
        [environment / "bin" / "python", FOLDER / "worker.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
