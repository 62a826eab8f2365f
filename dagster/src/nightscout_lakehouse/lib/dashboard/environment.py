"""What Superset's processes find in their environment: what they need, and nothing else of ours."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from nightscout_lakehouse.lib.embedded_postgres import generate_password, read_password, write_private_file
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings

SUPERSET_DIR: Final = REPOSITORY_ROOT / "superset"
BUNDLE_DIR: Final = SUPERSET_DIR / "dashboards" / "glucose_monitoring"
_PROGRAMS: Final = SUPERSET_DIR / ".venv" / "bin"
# Of the machine: where programs, the home folder and certificates are, and how text is encoded.
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")


def superset_program(name: str) -> Path:
    """A program of Superset's own environment.

    Raises:
        LakehouseError: It is not installed.
    """
    program = _PROGRAMS / name
    if not program.is_file():
        raise LakehouseError("Superset is not installed.", "Run `make dashboard`, or `make dashboard-setup` first.")
    return program


def superset_environment(
    settings: Settings, metadata: PostgresConnection, marts: PostgresConnection, machine: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of Superset's processes; `superset/bring_up.py` documents the variables.

    The tokens of Nightscout sites, the owner's password and other secrets of the pipeline are not in it.

    Args:
        settings: Of this lakehouse.
        metadata: Superset's own database.
        marts: The marts, as `bi_reader`.
        machine: The environment of this process.
    """
    environment = {name: machine[name] for name in _PASSED_ON if name in machine}
    environment |= {
        "SUPERSET_CONFIG_PATH": str(SUPERSET_DIR / "superset_config.py"),
        "SUPERSET_HOME": str(settings.superset_dir),
        "SUPERSET_SECRET_KEY": secret_key(settings),
        "SUPERSET_DATABASE_URL": metadata.url(hide_password=False, scheme="postgresql+psycopg2"),
        "SUPERSET_MARTS_URL": _without_password(marts).url(scheme="postgresql+psycopg2"),
        "BI_READER_PASSWORD": marts.password.get_secret_value(),
        "SUPERSET_HTTPS": str(settings.superset_https).lower(),
    }
    if admin_password := settings.superset_admin_password.get_secret_value():
        environment["SUPERSET_ADMIN_PASSWORD"] = admin_password
    return environment


def secret_key(settings: Settings) -> str:
    """The key that Superset signs sessions with: from the environment, or generated once and kept (mode 600)."""
    if given := settings.superset_secret_key.get_secret_value():
        return given
    settings.superset_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = settings.superset_dir / "secret_key"
    kept = read_password(path)
    if kept is None:
        kept = generate_password()
        write_private_file(path, kept.get_secret_value())
    return kept.get_secret_value()


def _without_password(connection: PostgresConnection) -> PostgresConnection:
    return replace(connection, password=SecretStr(""))
