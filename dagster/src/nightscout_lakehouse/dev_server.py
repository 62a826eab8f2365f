"""Dagster's webserver and daemon as children that end with this process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from nightscout_lakehouse.lib.errors import ConfigurationError, LakehouseError
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings

HOST = "127.0.0.1"
_MODULE = "nightscout_lakehouse.definitions"
# The webserver and the daemon share one server of the definitions: they are loaded once, and a reload in the UI
# reaches both.
_WORKSPACE = """\
load_from:
  - grpc_server:
      socket: {socket}
      location_name: nightscout_lakehouse
"""
_POLL_SECONDS = 0.5
_START_SECONDS = 180
_GRACE_SECONDS = 20


def run_dagster(settings: Settings, when_ready: Callable[[str], None]) -> None:
    """Run the webserver and the daemon until this process is interrupted; all that they started ends with them.

    Args:
        settings: Names the port.
        when_ready: Called with the address once the UI answers.

    Raises:
        ConfigurationError: The port is taken.
        LakehouseError: One of the processes ended by itself, or does not come up.
    """
    port = settings.dagster_port
    _check_is_free(port)
    url = f"http://{HOST}:{port}"
    children: dict[str, subprocess.Popen[bytes]] = {}
    # In the system's own folder for such things, since the path of a socket may not be long.
    with TemporaryDirectory(prefix="lakehouse-dev-") as folder:
        socket_path, workspace = Path(folder, "code.sock"), Path(folder, "workspace.yaml")
        workspace.write_text(_WORKSPACE.format(socket=socket_path), encoding="utf-8")
        try:
            children["code server"] = _start(
                *("dagster", "code-server", "start", "--log-level=warning"),
                *(f"--socket={socket_path}", f"--module-name={_MODULE}"),
            )
            _wait_until(socket_path.exists, "code server", children)
            children["webserver"] = _start(
                *("dagster-webserver", "--dagster-log-level=warning"),
                *(f"--host={HOST}", f"--port={port}", f"--workspace={workspace}"),
            )
            children["daemon"] = _start("dagster-daemon", "run", "--log-level=warning", f"--workspace={workspace}")
            _wait_until(lambda: _answers(url), "webserver", children)
            when_ready(url)
            while True:
                _check_all_run(children)
                time.sleep(_POLL_SECONDS)
        finally:
            # Last started, first stopped: nobody misses the definitions.
            _stop(list(children.values())[::-1])


def _check_is_free(port: int) -> None:
    with socket.socket() as probe:
        # As the webserver does: a port whose last connections are still fading away is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ConfigurationError(
                f"Port {port} on {HOST} is in use by another program.",
                "Set DAGSTER_PORT to another one, or stop the other `lakehouse dev`.",
            ) from None


def _start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    # A session of its own: Ctrl-C reaches this process only, which then stops each with all its children.
    return subprocess.Popen(  # noqa: S603
        command, cwd=REPOSITORY_ROOT, start_new_session=True, preexec_fn=_default_signals
    )


def _wait_until(is_ready: Callable[[], bool], name: str, children: dict[str, subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not is_ready():
        _check_all_run(children)
        if time.monotonic() > deadline:
            raise LakehouseError(f"Dagster's {name} does not come up.", "See its messages above.")
        time.sleep(_POLL_SECONDS)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/server_info", timeout=_START_SECONDS, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _check_all_run(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, child in children.items():
        if child.poll() is not None:
            raise LakehouseError(
                f"Dagster's {name} ended by itself (exit code {child.returncode}).", "See its messages above."
            )


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the children with all that they started: first by asking, in the end by force."""
    # An impatient second Ctrl-C would leave them behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _GRACE_SECONDS
        for child in children:
            _signal_group(child.pid, sign)
        while time.monotonic() < deadline:
            # Without polling, an ended child stays in its group for ever.
            if not [child for child in children if child.poll() is None or _signal_group(child.pid, 0)]:
                return
            time.sleep(_POLL_SECONDS / 5)


def _signal_group(group: int, sign: int) -> bool:
    """Send a signal to a process group (0 only asks); returns whether there is anybody left in it."""
    try:
        os.killpg(group, sign)
    except ProcessLookupError:
        return False
    return True


def _default_signals() -> None:
    # A shell that starts jobs in the background hands down ignored signals; then nothing could stop the child.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
