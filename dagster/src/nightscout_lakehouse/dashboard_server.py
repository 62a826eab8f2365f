"""Superset as a child that ends with this process, in its own Python environment."""

import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from nightscout_lakehouse.child_processes import (
    HOST,
    POLL_SECONDS,
    check_all_run,
    check_port_is_free,
    is_listening,
    start_child,
    stop_children,
    wait_until,
)
from nightscout_lakehouse.lib.dashboard.environment import superset_program
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings

BRING_UP = REPOSITORY_ROOT / "superset" / "bring_up.py"
_SUPERSET = "Superset"
_START_SECONDS = 180
_LOG_LIMIT_BYTES = 10_000_000
# One process, since the limit on logins counts in memory; threads, since charts wait for Postgres.
_GUNICORN = (
    *("--workers=1", "--worker-class=gthread", "--threads=8", "--timeout=120", "--graceful-timeout=5"),
    *("--limit-request-line=8190", "--log-level=warning"),
)


def run_bring_up(settings: Settings, environment: Mapping[str, str], *arguments: str) -> None:
    """Run `superset/bring_up.py`; what it tells the user goes to our output, Superset's own log to a file.

    Args:
        settings: Of this lakehouse.
        environment: Of `superset_environment`.
        *arguments: What to do; nothing for the whole bring-up.

    Raises:
        LakehouseError: It failed; the message is its own last line.
    """
    log_path = _log_file(settings, "bring-up.log")
    before = log_path.stat().st_size
    with log_path.open("ab") as log:
        command = [str(superset_program("python")), str(BRING_UP), *arguments]
        child = start_child(command, settings.superset_dir, environment, stderr=log)
        try:
            while child.poll() is None:
                time.sleep(POLL_SECONDS / 5)
        except BaseException:
            # Ctrl-C, too: nothing that was started here stays.
            stop_children([child])
            raise
    if child.returncode:
        with log_path.open("rb") as log:
            log.seek(before)
            lines = log.read().decode(errors="replace").strip().splitlines()
        raise LakehouseError(
            f"Superset cannot be set up: {lines[-1] if lines else 'it says nothing'}", f"See {log_path}."
        )


def run_superset(settings: Settings, environment: Mapping[str, str], when_ready: Callable[[str], None]) -> None:
    """Serve Superset until this process is interrupted; all that it started ends with it.

    Args:
        settings: Names the port.
        environment: Of `superset_environment`.
        when_ready: Called with the address once the login page answers.

    Raises:
        ConfigurationError: The port is taken.
        LakehouseError: It ended by itself, or does not come up.
    """
    log_path = _log_file(settings, "server.log")
    hint = f"See {log_path}."
    children: dict[str, subprocess.Popen[bytes]] = {}
    url = f"http://{HOST}:{settings.superset_port}"
    check_superset_port(settings)
    with log_path.open("ab") as log:
        try:
            children[_SUPERSET] = start_child(
                [
                    str(superset_program("gunicorn")),
                    f"--bind={HOST}:{settings.superset_port}",
                    *_GUNICORN,
                    "superset.app:create_app()",
                ],
                settings.superset_dir,
                environment,
                stdout=log,
                stderr=log,
            )
            wait_until(
                lambda: is_listening(settings.superset_port) and _answers(url),
                *(children, _SUPERSET, _START_SECONDS, hint),
            )
            when_ready(url)
            while True:
                check_all_run(children, hint)
                time.sleep(POLL_SECONDS)
        finally:
            stop_children(list(children.values()))


def check_superset_port(settings: Settings) -> None:
    """Raise a `ConfigurationError` if another program listens on the port."""
    check_port_is_free(settings.superset_port, "Set SUPERSET_PORT to another one, or stop the other `make dashboard`.")


def _log_file(settings: Settings, name: str) -> Path:
    settings.superset_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = settings.superset_dir / name
    if path.is_file() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.1"))
    path.touch(mode=0o600)
    return path


def _answers(url: str) -> bool:
    # Its /health is well even where no page is.
    try:
        return httpx.get(f"{url}/login/", timeout=_START_SECONDS, trust_env=False, follow_redirects=True).is_success
    except httpx.HTTPError:
        return False
