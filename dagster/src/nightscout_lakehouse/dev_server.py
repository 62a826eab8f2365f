"""The Dagster webserver and daemon as children that end with this process."""

import os
import signal
import subprocess
import sys

from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings

_GRACE_SECONDS = 20


def run_dagster_dev(settings: Settings) -> int:
    """Run `dagster dev` until it ends or Ctrl-C; all that it started ends with it.

    Returns:
        Its exit code; 0 after Ctrl-C.
    """
    command = [
        sys.executable,
        "-m",
        "dagster",
        "dev",
        "--module-name",
        "nightscout_lakehouse.definitions",
        "--host",
        "127.0.0.1",
        "--port",
        str(settings.dagster_port),
    ]
    child = subprocess.Popen(command, cwd=REPOSITORY_ROOT, start_new_session=True, preexec_fn=_default_signals)  # noqa: S603
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return child.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
            child.wait(timeout=_GRACE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _default_signals() -> None:
    # A shell that starts jobs in the background hands down ignored signals; then nothing could stop the child.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt
