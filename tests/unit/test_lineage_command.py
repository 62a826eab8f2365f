"""A command that is no Dagster run has one of its own, and what goes wrong in that stops nothing."""

import logging

import lineage_events
import pytest

from nightscout_lakehouse.lib.lineage.command_run import CommandRun, command_run
from nightscout_lakehouse.lib.lineage.recorder import RunRecorder
from nightscout_lakehouse.lib.settings import load_settings

FILE = "exports/Clarity_Smith_Anna.csv"


@pytest.mark.parametrize(
    ("error", "state"), [(ValueError, "FAIL"), (KeyboardInterrupt, "ABORT"), (SystemExit, "ABORT")]
)
def test_what_stops_a_command_is_told_without_its_words(
    error: type[BaseException], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "false")
    settings = load_settings()
    with pytest.raises(error), command_run(settings, "import"):
        raise error(FILE)
    began, ended = lineage_events.recorded(settings.lineage_dir)
    assert (began["eventType"], ended["eventType"]) == ("START", state)
    assert {each["job"]["name"] for each in (began, ended)} == {"lakehouse_import"}
    failure = ended["run"]["facets"]["errorMessage"]
    assert failure["message"] == error.__name__
    assert "Smith" not in str(ended)
    assert not list((settings.lineage_dir / "open").iterdir())


def test_a_fault_of_the_lineage_stops_no_command(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "false")

    def full(*_arguments: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(RunRecorder, "begin", full)
    monkeypatch.setattr(RunRecorder, "step_ended", full)
    with caplog.at_level(logging.WARNING), command_run(load_settings(), "import") as lineage:
        lineage.files_were_imported([])
    assert len(caplog.records) == 2


def test_nothing_is_told_where_lineage_is_switched_off() -> None:
    settings = load_settings()
    with command_run(settings, "import") as lineage:
        assert isinstance(lineage, CommandRun)
        lineage.files_were_imported([])
        lineage.models_were_tested(None)
        lineage.stages_were_validated([])
    assert not settings.lineage_dir.exists()
