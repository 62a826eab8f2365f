"""Fixtures of all tests: an own lakehouse folder, and no setting from the machine or a `.env`."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from xdist.scheduler import LoadFileScheduling

from nightscout_lakehouse.lib.garbage_collection import collect_seldom
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.settings import Settings, load_settings

# What a process takes that has run the pipeline, with the servers that its tests start.
BYTES_PER_PROCESS = 1_500_000_000
MOST_PROCESSES = 6

# Files whose tests share something: Superset, and the process of the programs that figures are compared with.
SHARES = {
    "test_dashboard*.py": "superset",
    "test_glucose_metrics.py": "reference programs",
    "test_mage.py": "reference programs",
    "test_reference_metrics.py": "reference programs",
}

# For as long as the tests are collected: what they import stays.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that at the end no process works on while the others have nothing."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections: a third of the time of collecting tests, 5 % of the rest."""
    gc.freeze()
    collect_seldom()
    gc.enable()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `-n auto` starts: one more than there are cores, since tests wait for servers and browsers.

    On two cores three end a fifth sooner than two, and four no sooner: each costs some seconds of imports.
    """
    fitting = psutil.virtual_memory().available // BYTES_PER_PROCESS
    return max(1, min((os.cpu_count() or 1) + 1, MOST_PROCESSES, int(fitting)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Give files of tests that share what takes long to one process, which brings it up once."""
    return _TogetherInOneProcess(config, log) if config.getvalue("dist") == "loadfile" else None


class _TogetherInOneProcess(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        scope: str = super()._split_scope(nodeid)
        return next((share for names, share in SHARES.items() if Path(scope).match(names)), scope)


@pytest.fixture(autouse=True, scope="session")
def _no_lineage() -> Iterator[None]:
    """Lineage is off, also for what modules of tests share; the tests of lineage switch it on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENLINEAGE_DISABLED", "true")
        yield


@pytest.fixture(autouse=True)
def _own_environment(_no_lineage: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.validation_alias), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAKEHOUSE_HOME", str(tmp_path / "a lakehouse"))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")


@pytest.fixture
def settings(_own_environment: None) -> Settings:
    return load_settings()


@pytest.fixture
def lake(settings: Settings) -> Lake:
    return Lake.open(settings)
