"""Fixtures of all tests: an own lakehouse folder, and no setting from the machine or a `.env`."""

from pathlib import Path

import pytest

from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.settings import Settings, load_settings


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file share fixtures, so they run in one process; those of a named group of files as well."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.validation_alias), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAKEHOUSE_HOME", str(tmp_path / "a lakehouse"))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")


@pytest.fixture
def settings(_own_environment: None) -> Settings:
    return load_settings()


@pytest.fixture
def lake(settings: Settings) -> Lake:
    return Lake.open(settings)
