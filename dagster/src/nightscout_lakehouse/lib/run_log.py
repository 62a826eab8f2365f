"""The log: one JSON object a line in `logs/lakehouse.jsonl` of LAKEHOUSE_HOME, with run, step, site and event.

Two loggers end there: `nightscout_lakehouse`, which people also see in the terminal and in the Dagster UI, and
`lakehouse_events`, which is for programs alone: when a run, a step or the reading of a site began and ended.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, Final

from nightscout_lakehouse.lib.redaction import Redactor
from nightscout_lakehouse.lib.settings import Settings

PACKAGE_LOGGER: Final = "nightscout_lakehouse"
EVENT_LOGGER: Final = "lakehouse_events"
ROTATE_BYTES: Final = 10_000_000
KEPT_FILES: Final = 5

_events = logging.getLogger(EVENT_LOGGER)
_context: ContextVar[Mapping[str, str]] = ContextVar("log_context", default={})  # noqa: B039 - a mapping is read only
_FORMATTER: Final = logging.Formatter()


@contextmanager
def log_context(**values: str) -> Iterator[None]:
    """Have every line that is logged within, in this thread, say what it is about, such as its `site`."""
    before = _context.get()
    _context.set({**before, **values})
    try:
        yield
    finally:
        # Not by a token: Dagster may leave a resource from another context than it entered it from.
        _context.set(before)


def log_event(event: str, **details: Any) -> None:
    """Log what happened, for programs.

    Args:
        event: Its name, such as `run_started`.
        details: What belongs to it; `run_id`, `step` and `site` stand at the top of the line.
    """
    _events.info("%s", event, extra={"event": event, "details": details})


class RedactingFilter(logging.Filter):
    """Takes secrets out of every record before anything formats it: of its text, its values and its traceback."""

    def __init__(self, redactor: Callable[[], Redactor]) -> None:
        super().__init__()
        self._redactor = redactor

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean a record; none is held back."""
        redactor = self._redactor()
        record.msg, record.args = redactor.clean(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = _FORMATTER.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redactor.clean(record.exc_text)
        if record.stack_info:
            record.stack_info = redactor.clean(record.stack_info)
        if details := getattr(record, "details", None):
            record.details = redactor.clean_value(details)
        return True


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON.

    Args:
        step: Says which step of the run is under way in this thread; None for none.
    """

    def __init__(self, step: Callable[[], str | None] = lambda: None) -> None:
        super().__init__()
        self._step = step

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        details = dict(getattr(record, "details", {}))
        context = {**_context.get()}
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", None),
            "message": record.getMessage(),
            "run_id": details.pop("run_id", None) or context.get("run_id"),
            "step": details.pop("step", None) or context.get("step") or self._step(),
            "site": details.pop("site", None) or context.get("site"),
            **details,
            "traceback": record.exc_text,
        }
        return json.dumps({name: value for name, value in line.items() if value is not None}, default=str)


@contextmanager
def log_file(
    settings: Settings, redactor: Callable[[], Redactor], step: Callable[[], str | None] = lambda: None
) -> Iterator[None]:
    """Write what is logged within to the log file, without secrets; a command's own log file gives way meanwhile.

    Args:
        settings: Which file, and what is worth logging.
        redactor: Knows the secrets of the moment: those of the sites are known once the sites are.
        step: Says which step of a run this thread works on.
    """
    loggers = [logging.getLogger(name) for name in (PACKAGE_LOGGER, EVENT_LOGGER)]
    before = [
        (logger.level, logger.propagate, [h for h in logger.handlers if isinstance(h, _LogFile)]) for logger in loggers
    ]
    handler = _open_file(settings, redactor, step)
    for logger in loggers:
        # The first one, so that whoever comes after it, Dagster's log included, gets the record without secrets.
        logger.handlers = [handler, *(each for each in logger.handlers if not isinstance(each, _LogFile))]
        logger.setLevel(settings.log_level)
    # It is for programs: neither the terminal nor Dagster shows it.
    loggers[1].propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate, files) in zip(loggers, before, strict=True):
            # Others may have come and gone meanwhile.
            logger.handlers = [*files, *(each for each in logger.handlers if each is not handler)]
            logger.propagate = propagate
            logger.setLevel(level)
        handler.close()


def log_of_command(settings: Settings, redactor: Redactor, terminal: logging.Handler) -> None:
    """Have all that a command logs go to the terminal and to the log file, without secrets.

    Args:
        settings: Which file, what is worth logging, and whether the terminal gets text or lines of JSON.
        redactor: Knows the secrets.
        terminal: Shows text.
    """
    if settings.log_format == "json":
        # Not where the rows of a query go.
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setFormatter(JsonFormatter())
    terminal.addFilter(RedactingFilter(lambda: redactor))
    file = _open_file(settings, lambda: redactor, lambda: None)
    package, events = logging.getLogger(PACKAGE_LOGGER), logging.getLogger(EVENT_LOGGER)
    package.handlers = [terminal, file]
    events.handlers = [terminal, file] if settings.log_format == "json" else [file]
    for logger in (package, events):
        logger.setLevel(settings.log_level)
        logger.propagate = False
    # Its request log would show every URL.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _open_file(settings: Settings, redactor: Callable[[], Redactor], step: Callable[[], str | None]) -> logging.Handler:
    """The log file; no run and no command fails where it cannot be written."""
    try:
        handler: logging.Handler = _LogFile(log_path(settings))
    except OSError as error:
        logging.getLogger(PACKAGE_LOGGER).warning(
            "Nothing is logged to %s: %s. Give that file to the user who runs this.", log_path(settings), error.strerror
        )
        handler = logging.NullHandler()
    handler.setFormatter(JsonFormatter(step))
    handler.addFilter(RedactingFilter(redactor))
    return handler


def log_path(settings: Settings) -> Path:
    """The file that is written now; older ones end with .1, .2 and so on."""
    return settings.log_dir / "lakehouse.jsonl"


def rotate_log(settings: Settings) -> None:
    """Begin a new log file where the present one is large. Called by the run that holds the lake's lock.

    Others that write meanwhile notice it, since their handler looks before each line whether the file is still its own.
    """
    path = log_path(settings)
    if not path.is_file() or path.stat().st_size < ROTATE_BYTES:
        return
    # A folder that belongs to somebody else: the file grows on, and no run fails for it.
    with suppress(OSError):
        for number in range(KEPT_FILES - 1, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            if older.is_file():
                older.replace(path.with_name(f"{path.name}.{number + 1}"))
        path.replace(path.with_name(f"{path.name}.1"))


class _LogFile(WatchedFileHandler):
    """Appends to a file that only its owner reads: it names people's sites and when they were read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        super().__init__(path, encoding="utf-8")

    def _open(self) -> Any:
        self.path.touch(mode=0o600)
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line; what cannot be logged, since the folder is gone or the disk full, fails nobody's work."""
        with suppress(OSError):
            super().emit(record)
