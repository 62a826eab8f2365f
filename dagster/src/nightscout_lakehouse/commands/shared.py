"""What all commands share: where they print, how they end, what they prepare."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.logging import RichHandler

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.settings import Settings, load_settings

# Tables that go to a file or a pipe are not squeezed into 80 columns.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
errors = Console(stderr=True, highlight=False)

EXIT_FAILURE = 1

P = ParamSpec("P")
R = TypeVar("R")


def says_what_went_wrong(command: Callable[P, R]) -> Callable[P, R]:
    """A user's mistake ends with one clear message and exit code 1, not with a traceback."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        signal.signal(signal.SIGTERM, _terminate)
        try:
            return command(*args, **kwargs)
        except LakehouseError as error:
            errors.print("[bold red]Error:[/] ", end="")
            errors.print(str(error), markup=False)
            raise typer.Exit(EXIT_FAILURE) from None
        except KeyboardInterrupt:
            errors.print("Stopped.")
            raise typer.Exit(130) from None

    return wrapped


def _terminate(signum: int, _frame: FrameType | None) -> None:
    """Leave by an exception, so that what was started (Postgres, the demo server, Dagster) is stopped."""
    raise SystemExit(128 + signum)


def prepare() -> Settings:
    """The settings, with all that other programs read from the environment set from them."""
    from nightscout_lakehouse.instance import prepare_environment

    settings = load_settings()
    with home_can_be_written(settings):
        prepare_environment(settings)
        _log_to(console, settings)
    return settings


@contextmanager
def home_can_be_written(settings: Settings) -> Iterator[None]:
    """Say plainly that the lakehouse's folder is not one that may be written."""
    try:
        yield
    except OSError as error:
        raise LakehouseError(
            f"LAKEHOUSE_HOME {settings.home} cannot be written ({error.strerror}).", "Set it to a folder of yours."
        ) from None


def _log_to(target: Console, settings: Settings) -> None:
    from nightscout_lakehouse.lib.redaction import redactor_with_sites
    from nightscout_lakehouse.lib.run_log import log_of_command

    handler = RichHandler(console=target, show_path=False, show_level=False, omit_repeated_times=False, markup=False)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log_of_command(settings, redactor_with_sites(settings), handler)
