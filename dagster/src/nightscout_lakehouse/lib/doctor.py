"""What the lakehouse needs, examined one by one."""

import importlib.metadata
import importlib.util
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nightscout_lakehouse.lib.alerts.targets import check_targets, load_targets
from nightscout_lakehouse.lib.dashboard.environment import superset_program
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.quality.stages import check_suites
from nightscout_lakehouse.lib.serving import serving_database
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings, can_be_read_by_others, load_settings
from nightscout_lakehouse.lib.sites import load_sites
from nightscout_lakehouse.lib.sources.file_drop import sites_of_files
from nightscout_lakehouse.lib.warehouse import connect_warehouse, link_extension

_PACKAGES = ("dagster", "dbt-core", "dbt-duckdb", "dbt-postgres", "duckdb", "pyarrow")
_LEAST_FREE_GB = 1.0


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and how to mend it where it is not well; a warning keeps nothing from running."""

    check: str
    is_ok: bool
    found: str
    remedy: str = ""
    is_warning: bool = False


def examine() -> list[Finding]:
    """Run all checks; each failure is a finding, never an exception."""
    findings = [_python(), _packages(), _folders_without_packages()]
    try:
        settings = load_settings()
    except LakehouseError as error:
        return [*findings, Finding("settings", False, str(error), error.hint)]
    findings.append(Finding("settings", True, f"LAKEHOUSE_HOME is {settings.home}"))
    checks: list[tuple[str, Callable[[Settings], str]]] = [
        ("sites", _sites),
        ("suites", _suites),
        ("folder", _folder),
        ("lake", _lake),
        ("warehouse", _warehouse),
        ("DuckDB extensions", _extensions),
        ("Postgres", _postgres),
        ("alerts", _alerts),
        ("port", _port),
        ("dashboards", _dashboards),
    ]
    private = replace(_finding("secrets", secrets_are_private, settings), is_warning=True)
    return [*findings, private, *(_finding(name, check, settings) for name, check in checks)]


def _finding(name: str, check: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(name, True, check(settings))
    except LakehouseError as error:
        return Finding(name, False, str(error.args[0]), error.hint)
    except OSError as error:
        return Finding(name, False, f"{error.filename}: {error.strerror}.", "See what is said of the folder.")


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("Python", sys.version_info >= (3, 11), version, "Install Python 3.11 or newer.")


def _packages() -> Finding:
    missing = [name for name in _PACKAGES if not _is_installed(name)]
    found = (
        f"{', '.join(missing)} missing"
        if missing
        else ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    )
    return Finding("packages", not missing, found, "Run `make setup`.")


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _folders_without_packages() -> Finding:
    shadows = [name for name in ("dagster", "dbt") if _is_shadowed(name)]
    return Finding(
        "imports",
        not shadows,
        f"{', '.join(shadows)} imports a folder of the repository" if shadows else "dagster and dbt are the packages",
        "Remove the __init__.py from that folder.",
    )


def _is_shadowed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(REPOSITORY_ROOT / name)


def _sites(settings: Settings) -> str:
    sites = [*load_sites(settings), *sites_of_files(settings, Lake.open(settings))]
    return (
        ", ".join(f"{site.name} ({site.url or 'from files'})" for site in sites)
        or "none: the bundled demo person is read"
    )


def secrets_are_private(settings: Settings) -> str:
    """Who can read the files that hold secrets.

    Raises:
        LakehouseError: Others can read `.env`.
    """
    dotenv = Path(".env")
    others = f"; {settings.secrets_file} is closed to others" if settings.secrets_file else ""
    if not dotenv.is_file():
        return f"no .env here{others}"
    if can_be_read_by_others(dotenv):
        raise LakehouseError(".env can be read by others on this machine.", "Run: chmod 600 .env")
    return f"only you can read .env{others}"


def _suites(_: Settings) -> str:
    suites = check_suites()
    return ", ".join(f"{suite.path.name} ({len(suite.expectations)} expectations)" for suite in suites)


def _folder(settings: Settings) -> str:
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.home):
            pass
    except OSError as error:
        raise LakehouseError(
            f"{settings.home} cannot be written ({error.strerror}).", "Set LAKEHOUSE_HOME to a folder of yours."
        ) from None
    free_gb = shutil.disk_usage(settings.home).free / 1e9
    if free_gb < _LEAST_FREE_GB:
        raise LakehouseError(f"Only {free_gb:.1f} GB are free.", "Make room, or set LAKEHOUSE_HOME to another disk.")
    return f"writable, {free_gb:.0f} GB free"


def _lake(settings: Settings) -> str:
    lake = Lake.open(settings)
    lake.list_folders("raw")
    return lake.url


def _warehouse(settings: Settings) -> str:
    if not settings.has_warehouse:
        return "not built yet"
    with connect_warehouse(settings, read_only=True):
        if settings.is_warehouse_remote:
            return settings.warehouse
        return f"{settings.warehouse_path.stat().st_size / 1e6:.0f} MB"


def _extensions(settings: Settings) -> str:
    link_extension(settings.duckdb_extension_dir, "httpfs")
    return "httpfs is installed"


def _postgres(settings: Settings) -> str:
    with serving_database(settings) as connection:
        return connection.url()


def _alerts(settings: Settings) -> str:
    targets = load_targets(settings)
    check_targets(targets)
    return ", ".join(target.name for target in targets) or "nobody is told: LAKEHOUSE_ALERT_URLS is not set"


def _port(settings: Settings) -> str:
    if _is_in_use(settings.dagster_port):
        return f"{settings.dagster_port} is in use (by `make dev`, most likely)"
    return f"{settings.dagster_port} is free for the Dagster UI"


def _dashboards(settings: Settings) -> str:
    try:
        superset_program("gunicorn")
    except LakehouseError:
        return "Superset is not installed yet; `make dashboard` installs it"
    if _is_in_use(settings.superset_port):
        return f"Superset is installed; {settings.superset_port} is in use (by `make dashboard`, most likely)"
    return f"Superset is installed; {settings.superset_port} is free for it"


def _is_in_use(port: int) -> bool:
    with _free_socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _free_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        yield probe
