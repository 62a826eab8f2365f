"""`lakehouse dev` as a user has it: the UI comes up with all that runs by itself, and Ctrl-C leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from free_ports import free_port

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.settings import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.postgres]

START_SECONDS = 240
STOP_SECONDS = 120
LOADED = """
{ repositoriesOrError { ... on RepositoryConnection { nodes {
    location { name }
    jobs { name }
    schedules { name scheduleState { status } }
    sensors { name sensorState { status } }
} } } }
"""


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def dev(port: int, tmp_path: Path, settings: Settings) -> Iterator[subprocess.Popen[str]]:
    # Parsed here, where it is parsed once for all tests; `test_definitions.py` loads the definitions without it.
    DbtProject(settings).prepare_manifest()
    environment = os.environ | {"DAGSTER_PORT": str(port), "LAKEHOUSE_HOME": str(tmp_path / "a lakehouse")}
    started = subprocess.Popen(
        [sys.executable, "-m", "nightscout_lakehouse.cli", "dev"],
        stdout=(tmp_path / "out.txt").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    yield started
    for process in psutil.Process(started.pid).children(recursive=True) if started.poll() is None else []:
        process.kill()
    started.kill()
    started.wait()


def _printed(tmp_path: Path) -> str:
    return (tmp_path / "out.txt").read_text()


def _wait_for_the_ui(dev: subprocess.Popen[str], tmp_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while "Dagster UI" not in _printed(tmp_path):
        assert dev.poll() is None, _printed(tmp_path)
        assert time.monotonic() < deadline, _printed(tmp_path)
        time.sleep(0.05)


def _started(dev: subprocess.Popen[str]) -> dict[psutil.Process, str]:
    """What it has started, with the command lines; some of that ends soon."""
    found = {}
    for child in psutil.Process(dev.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found[child] = " ".join(child.cmdline())
    return found


def _postgres(home: Path) -> list[psutil.Process]:
    """The server of this lakehouse, which runs apart from whoever started it."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_opens_the_ui_and_stops_all_it_started(
    sign: signal.Signals, dev: subprocess.Popen[str], port: int, tmp_path: Path
) -> None:
    _wait_for_the_ui(dev, tmp_path)

    answer: dict[str, Any] = httpx.post(
        f"http://127.0.0.1:{port}/graphql", json={"query": LOADED}, timeout=180, trust_env=False
    ).json()
    (location,) = answer["data"]["repositoriesOrError"]["nodes"]
    assert location["location"]["name"] == "nightscout_lakehouse"
    assert {"nightscout_pipeline", "nightscout_backfill"} <= {job["name"] for job in location["jobs"]}
    assert location["schedules"] == [{"name": "nightscout_every_30_min", "scheduleState": {"status": "RUNNING"}}]
    assert {"name": "pipeline_failure_alert", "sensorState": {"status": "RUNNING"}} in location["sensors"]

    started = psutil.Process(dev.pid).children(recursive=True)
    started += _postgres(tmp_path / "a lakehouse")
    commands = " ".join(" ".join(process.cmdline()) for process in started)
    assert all(name in commands for name in ("code-server", "dagster-webserver", "dagster-daemon", "postgres"))
    assert "0.0.0.0" not in commands
    assert "Warning" not in _printed(tmp_path)

    dev.send_signal(sign)
    code = dev.wait(timeout=STOP_SECONDS)
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []
    assert code == (0 if sign is signal.SIGINT else 128 + signal.SIGTERM)
    assert "Traceback" not in _printed(tmp_path)


def test_sigterm_stops_all_it_started_while_it_is_still_starting(dev: subprocess.Popen[str], tmp_path: Path) -> None:
    """When Postgres and what loads the definitions are there."""
    deadline = time.monotonic() + START_SECONDS
    while not any("dagster api grpc" in command for command in _started(dev).values()):
        assert dev.poll() is None, _printed(tmp_path)
        assert time.monotonic() < deadline, _printed(tmp_path)
        time.sleep(0.02)
    postgres = _postgres(tmp_path / "a lakehouse")
    assert postgres != []
    started = [*_started(dev), *postgres]
    dev.send_signal(signal.SIGTERM)
    assert dev.wait(timeout=STOP_SECONDS) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []
    assert _postgres(tmp_path / "a lakehouse") == []
    # What is interrupted while it imports says so; the command itself does not.
    assert "nightscout_lakehouse/cli.py" not in _printed(tmp_path)


def test_says_so_when_the_port_is_taken(port: int, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        refused = subprocess.run(
            [sys.executable, "-m", "nightscout_lakehouse.cli", "dev"],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"DAGSTER_PORT": str(port)},
            timeout=120,
        )
    assert refused.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in refused.stderr
    assert "DAGSTER_PORT" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert _postgres(tmp_path / "a lakehouse") == []


def test_says_so_when_a_part_of_dagster_ends_by_itself(dev: subprocess.Popen[str], tmp_path: Path) -> None:
    _wait_for_the_ui(dev, tmp_path)
    started = psutil.Process(dev.pid).children(recursive=True)
    next(process for process in started if "dagster-daemon" in " ".join(process.cmdline())).kill()
    assert dev.wait(timeout=STOP_SECONDS) == 1
    assert "Dagster's daemon ended by itself" in _printed(tmp_path)
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []
