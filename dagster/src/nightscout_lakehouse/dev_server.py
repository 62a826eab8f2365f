"""Dagster's webserver and daemon as children that end with this process."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

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
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings

_MODULE = "nightscout_lakehouse.definitions"
# The webserver and the daemon share one server of the definitions: they are loaded once, and a reload in the UI
# reaches both.
_WORKSPACE = """\
load_from:
  - grpc_server:
      socket: {socket}
      location_name: nightscout_lakehouse
"""
_CODE_SERVER = "Dagster's code server"
_WEBSERVER = "Dagster's webserver"
_START_SECONDS = 180
_HINT = "See its messages above."


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
    check_port_is_free(port, "Set DAGSTER_PORT to another one, or stop the other `lakehouse dev`.")
    url = f"http://{HOST}:{port}"
    children: dict[str, subprocess.Popen[bytes]] = {}
    # In the system's own folder for such things, since the path of a socket may not be long.
    with TemporaryDirectory(prefix="lakehouse-dev-") as folder:
        socket_path, workspace = Path(folder, "code.sock"), Path(folder, "workspace.yaml")
        workspace.write_text(_WORKSPACE.format(socket=socket_path), encoding="utf-8")
        try:
            children[_CODE_SERVER] = _start(
                *("dagster", "code-server", "start", "--log-level=warning"),
                *(f"--socket={socket_path}", f"--module-name={_MODULE}"),
            )
            wait_until(socket_path.exists, children, _CODE_SERVER, _START_SECONDS, _HINT)
            children[_WEBSERVER] = _start(
                *("dagster-webserver", "--dagster-log-level=warning"),
                *(f"--host={HOST}", f"--port={port}", f"--workspace={workspace}"),
            )
            children["Dagster's daemon"] = _start(
                "dagster-daemon", "run", "--log-level=warning", f"--workspace={workspace}"
            )
            wait_until(lambda: is_listening(port) and _answers(url), children, _WEBSERVER, _START_SECONDS, _HINT)
            when_ready(url)
            while True:
                check_all_run(children, _HINT)
                time.sleep(POLL_SECONDS)
        finally:
            # Last started, first stopped: nobody misses the definitions.
            stop_children(list(children.values())[::-1])


def _start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return start_child([str(Path(sys.executable).with_name(program)), *arguments], REPOSITORY_ROOT)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/server_info", timeout=_START_SECONDS, trust_env=False).is_success
    except httpx.HTTPError:
        return False
