"""Which runs and steps have begun and not ended, on disk: what a killed run leaves open is closed by the next."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from nightscout_lakehouse.lib.lineage.facts import RunFacts


@dataclass
class OpenRun:
    """A run that has begun and not ended.

    Attributes:
        run: The run.
        steps: Its steps that have begun and not ended, with the kind of each.
    """

    run: RunFacts
    steps: dict[str, str] = field(default_factory=dict)


class OpenRuns:
    """The open runs of one lakehouse, each in a file of its own.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, open_run: OpenRun) -> None:
        """Note what is open now."""
        self._folder.mkdir(parents=True, exist_ok=True)
        run = open_run.run
        content = {
            "run_id": run.run_id,
            "job": run.job,
            "scheduled_for": run.scheduled_for.isoformat() if run.scheduled_for else None,
            "steps": open_run.steps,
        }
        temporary = self._path(run).with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(self._path(run))

    def forget(self, run: RunFacts) -> None:
        """The run has ended."""
        self._path(run).unlink(missing_ok=True)

    def left_by_others(self, run: RunFacts) -> Iterator[OpenRun]:
        """What other runs left open. Who holds the lock of the lake knows that none of them goes on."""
        for path in sorted(self._folder.glob("*.json")):
            if path == self._path(run):
                continue
            try:
                kept = json.loads(path.read_bytes())
                scheduled = kept["scheduled_for"]
                facts = RunFacts(kept["run_id"], kept["job"], datetime.fromisoformat(scheduled) if scheduled else None)
                yield OpenRun(facts, dict(kept["steps"]))
            except (ValueError, KeyError, TypeError):
                path.unlink()

    def _path(self, run: RunFacts) -> Path:
        return self._folder / f"{run.run_id}.json"
