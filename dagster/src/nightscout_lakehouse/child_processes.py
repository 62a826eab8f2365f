"""Servers as children that end with this process, whatever ends it."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from nightscout_lakehouse.lib.errors import ConfigurationError, LakehouseError

HOST = "127.0.0.1"
POLL_SECONDS = 0.5
_GRACE_SECONDS = 20


def check_port_is_free(port: int, hint: str) -> None:
    """Raise a `ConfigurationError` with this hint if another program listens on the port."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still fading away is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ConfigurationError(f"Port {port} on {HOST} is in use by another program.", hint) from None


def is_listening(port: int) -> bool:
    """Whether somebody answers on the port; cheap enough to be asked again and again."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def start_child(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    *,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own: Ctrl-C reaches this process only, which then stops it.

    Args:
        command: The program and its arguments.
        folder: Where it runs.
        environment: Its environment; that of this process if None.
        stdout: Where its output goes; to that of this process if None.
        stderr: The same of its error output.
    """
    return subprocess.Popen(  # noqa: S603
        command,
        cwd=folder,
        env=environment,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=_default_signals,
    )


def wait_until(
    is_ready: Callable[[], bool], children: Mapping[str, subprocess.Popen[bytes]], name: str, seconds: float, hint: str
) -> None:
    """Wait for a child to be ready.

    Args:
        is_ready: Asked again and again.
        children: All children by their names, none of which may end meanwhile.
        name: The one that is waited for.
        seconds: How long at most.
        hint: Where to look when it does not come up.

    Raises:
        LakehouseError: A child ended by itself, or the time is over.
    """
    deadline = time.monotonic() + seconds
    while not is_ready():
        check_all_run(children, hint)
        if time.monotonic() > deadline:
            raise LakehouseError(f"{name} does not come up.", hint)
        time.sleep(POLL_SECONDS / 10)


def check_all_run(children: Mapping[str, subprocess.Popen[bytes]], hint: str) -> None:
    """Raise a `LakehouseError` if a child has ended by itself."""
    for name, child in children.items():
        if child.poll() is not None:
            raise LakehouseError(f"{name} ended by itself (exit code {child.returncode}).", hint)


def stop_children(children: Sequence[subprocess.Popen[bytes]]) -> None:
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
            time.sleep(POLL_SECONDS / 10)


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
