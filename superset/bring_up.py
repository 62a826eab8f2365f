"""Bring Superset up: its database, roles, the user admin, and the dashboards of this folder.

Runs in Superset's own environment (`superset/pyproject.toml`), all steps in one process, since starting Superset costs
more than most of them. What is done is kept in its database, so that a second run takes no time and changes nothing;
what somebody changed in the browser stays until the files change.

    python superset/bring_up.py                  whatever is missing or out of date
    python superset/bring_up.py import [FOLDER]  the dashboards as in the files, whatever was changed in the browser
    python superset/bring_up.py export FOLDER    the dashboards as they are now, as files
    python superset/bring_up.py reset-password   a new password for admin

A container starts with `python superset/bring_up.py && gunicorn --bind 0.0.0.0:8088 --workers 1 --worker-class gthread
--threads 8 'superset.app:create_app()'`. The environment says everything:

    SUPERSET_CONFIG_PATH     this folder's superset_config.py
    SUPERSET_SECRET_KEY      signs the sessions; at least 32 random characters
    SUPERSET_DATABASE_URL    Superset's own database, postgresql+psycopg2://user:password@host:port/database
    SUPERSET_MARTS_URL       the marts, postgresql+psycopg2://bi_reader@host:port/database, without the password
    BI_READER_PASSWORD       the password of bi_reader
    SUPERSET_ADMIN_PASSWORD  of the user admin; not set: generated and printed once. A change is taken at the next run
    SUPERSET_HTTPS           true behind a proxy that speaks https
    SUPERSET_HOME            a folder for copies of what an import replaced
    SUPERSET_RATELIMIT_STORAGE_URI  where logins are counted if there are several processes, such as redis://…

What a person should read goes to stdout, Superset's log to stderr; the last line of stderr says why it failed.
"""

import argparse
import hmac
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asset_bundle
import psycopg2

if TYPE_CHECKING:
    from flask import Flask
    from psycopg2.extensions import connection as Connection  # noqa: N812

FOLDER: Final = Path(__file__).resolve().parent
BUNDLE: Final = FOLDER / "dashboards" / "glucose_monitoring"
ADMIN: Final = "admin"
VIEWER_ROLE: Final = "Glucose viewer"
# Superset writes a line for every look at every chart.
LOG_DAYS: Final = 90
SHORTEST_SECRET_KEY: Final = 32
REQUIRED: Final = (
    *("SUPERSET_CONFIG_PATH", "SUPERSET_SECRET_KEY", "SUPERSET_DATABASE_URL", "SUPERSET_MARTS_URL"),
    *("BI_READER_PASSWORD", "SUPERSET_HOME"),
)

# To look at dashboards and use their filters; no editing, exploring, SQL, export, or list of users.
VIEWER_PERMISSIONS: Final = (
    ("menu_access", "Dashboards"),
    ("menu_access", "Home"),
    ("can_read", "Dashboard"),
    ("can_read", "Chart"),
    ("can_read", "Theme"),
    ("can_read", "CssTemplate"),
    ("can_read", "CurrentUserRestApi"),
    ("can_read", "SecurityRestApi"),
    ("can_read", "DashboardFilterStateRestApi"),
    ("can_write", "DashboardFilterStateRestApi"),
    ("can_read", "DashboardPermalinkRestApi"),
    ("can_read", "AdvancedDataType"),
    ("can_read", "AvailableDomains"),
    ("can_dashboard", "Superset"),
    ("can_dashboard_permalink", "Superset"),
    ("can_log", "Superset"),
    ("can_time_range", "Api"),
    ("can_userinfo", "UserDBModelView"),
    ("resetmypassword", "UserDBModelView"),
    ("can_this_form_get", "ResetMyPasswordView"),
    ("can_this_form_post", "ResetMyPasswordView"),
)

_STATE = """
create schema if not exists lakehouse;
create table if not exists lakehouse.bring_up (
    step text primary key,
    fingerprint text not null,
    content jsonb,
    done_at timestamptz not null default now()
);
"""


class BringUpError(Exception):
    """A failure with a known cause."""


class State:
    """What has been done to this database of Superset's, kept in a table beside Superset's own."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    def is_done(self, step: str, fingerprint: str) -> bool:
        """Whether this step was done last with this fingerprint."""
        return self._row(step)[0] == fingerprint

    def content(self, step: str) -> Any:
        """What was kept with the step; None if it was never done."""
        return self._row(step)[1]

    def done(self, step: str, fingerprint: str, content: Any = None) -> None:
        """Keep that the step was done."""
        with self._connection.cursor() as cursor:
            cursor.execute(
                "insert into lakehouse.bring_up (step, fingerprint, content) values (%s, %s, %s) on conflict (step) "
                "do update set fingerprint = excluded.fingerprint, content = excluded.content, done_at = now()",
                (step, fingerprint, None if content is None else json.dumps(content)),
            )

    def _row(self, step: str) -> tuple[str | None, Any]:
        with self._connection.cursor() as cursor:
            cursor.execute("select fingerprint, content from lakehouse.bring_up where step = %s", (step,))
            return cursor.fetchone() or (None, None)


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="bring_up.py")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("import").add_argument("folder", type=Path, nargs="?", default=BUNDLE)
    commands.add_parser("export").add_argument("folder", type=Path)
    commands.add_parser("reset-password")
    options = parser.parse_args(arguments)
    unset = [name for name in REQUIRED if not os.environ.get(name)]
    if unset:
        raise BringUpError(f"{', '.join(unset)} must be set.")
    if len(os.environ["SUPERSET_SECRET_KEY"]) < SHORTEST_SECRET_KEY:
        raise BringUpError(f"SUPERSET_SECRET_KEY is shorter than {SHORTEST_SECRET_KEY} characters.")
    with open_state() as state:
        if options.command == "export":
            if state.content("assets") is None:
                raise BringUpError("Superset has no dashboards yet: start it once before.")
            with superset_app():
                say_changes(options.folder, asset_bundle.write_bundle(options.folder, exported()))
        elif options.command == "reset-password":
            with superset_app():
                set_admin_password(os.environ.get("SUPERSET_ADMIN_PASSWORD") or secrets.token_urlsafe(18))
            state.done("admin", admin_fingerprint())
        else:
            is_import = options.command == "import"
            bring_up(state, options.folder if is_import else BUNDLE, force_import=is_import)


def bring_up(state: State, folder: Path, *, force_import: bool = False) -> None:
    """Do the steps that are not done yet, in order.

    Args:
        state: What has been done.
        folder: The files of the dashboards.
        force_import: Import the dashboards though their files did not change.
    """
    bundle = asset_bundle.read_bundle(folder)
    asset_bundle.check(bundle)
    software = software_fingerprint()
    assets = asset_bundle.fingerprint(bundle)
    viewer = sha256(f"{software}{assets}".encode()).hexdigest()
    steps: list[tuple[str, str, Callable[[], Any]]] = [
        ("database", software, prepare_database),
        ("admin", admin_fingerprint(), prepare_admin),
        ("assets", assets, lambda: import_assets(bundle, state.content("assets"))),
        ("viewer role", viewer, lambda: prepare_viewer_role(bundle)),
    ]
    missing = [
        (step, fingerprint, do)
        for step, fingerprint, do in steps
        if not state.is_done(step, fingerprint) or (force_import and step == "assets")
    ]
    if not missing:
        return
    with superset_app():
        for step, fingerprint, do in missing:
            state.done(step, fingerprint, do())


# Steps


def prepare_database() -> None:
    """Superset's tables, permissions and built-in roles; old lines of its log go."""
    from flask_migrate import upgrade
    from sqlalchemy import text
    from superset.extensions import appbuilder, db, security_manager

    say("Preparing Superset's database …")
    upgrade()
    appbuilder.add_permissions(update_perms=True)
    security_manager.sync_role_definitions()
    db.session.execute(text("delete from logs where dttm < now() - make_interval(days => :days)"), {"days": LOG_DAYS})
    db.session.commit()


def prepare_admin() -> None:
    """The user admin, with the password of the environment or a generated one."""
    from superset.extensions import security_manager

    given = os.environ.get("SUPERSET_ADMIN_PASSWORD")
    is_there = security_manager.find_user(ADMIN) is not None
    # Whoever took the password out of the environment goes on with the last one.
    if given or not is_there:
        set_admin_password(given or secrets.token_urlsafe(18))


def set_admin_password(password: str) -> None:
    """Give admin this password, making the user first where it is missing; prints a generated one."""
    from flask import current_app
    from superset.extensions import db, security_manager

    shortest = current_app.config["SHORTEST_PASSWORD"]
    if len(password) < shortest:
        raise BringUpError(f"SUPERSET_ADMIN_PASSWORD needs at least {shortest} characters.")
    user = security_manager.find_user(ADMIN)
    if user is None:
        role = security_manager.find_role("Admin")
        user = security_manager.add_user(ADMIN, "Lakehouse", "Admin", "admin@localhost", role, password)
        if not user:
            raise BringUpError("The user admin cannot be made.")
    else:
        security_manager.reset_password(user.id, password)
    db.session.commit()
    if password != os.environ.get("SUPERSET_ADMIN_PASSWORD"):
        say(
            f"User {ADMIN}, password {password} (shown this once; `lakehouse dashboard reset-password` makes a new one)"
        )


def import_assets(bundle: Mapping[str, str], last: Mapping[str, dict[str, str]] | None) -> dict[str, dict[str, str]]:
    """Import the bundle over what is there.

    Args:
        bundle: The files.
        last: What this returned the last time; None if there was none.

    Returns:
        The files that were imported, and as what they are exported.
    """
    from superset.commands.exceptions import CommandException
    from superset.commands.importers.v1.assets import ImportAssetsCommand
    from superset.extensions import security_manager
    from superset.utils.core import override_user

    say("Importing the dashboards …")
    if last is not None:
        keep_what_was_changed(last["exported"])
    try:
        with override_user(security_manager.find_user(ADMIN)):
            ImportAssetsCommand(asset_bundle.completed(bundle)).run()
    except CommandException as error:
        raise BringUpError(f"The dashboards cannot be imported: {reasons(error)}") from error
    if last is not None:
        delete_assets(last["imported"], bundle)
    return {"imported": dict(bundle), "exported": exported(bundle)}


def keep_what_was_changed(exported_last: Mapping[str, str]) -> None:
    """Keep a copy of what somebody changed in the browser before an import replaces it."""
    now = exported(exported_last)
    # The form may have changed since.
    if now == asset_bundle.canonical(exported_last, exported_last):
        return
    folder = Path(os.environ["SUPERSET_HOME"]) / "replaced" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    asset_bundle.write_bundle(folder, now)
    say(f"Dashboards had been changed in the browser. The files replace that; a copy is in {folder}")


def delete_assets(imported_last: Mapping[str, str], bundle: Mapping[str, str]) -> None:
    """Delete what came from the files and is in them no longer."""
    from superset.connectors.sqla.models import SqlaTable
    from superset.extensions import db
    from superset.models.dashboard import Dashboard
    from superset.models.slice import Slice

    for kind, model in (("dashboards", Dashboard), ("charts", Slice), ("datasets", SqlaTable)):
        gone = asset_bundle.uuids(imported_last, kind) - asset_bundle.uuids(bundle, kind)
        for asset in db.session.query(model).filter(model.uuid.in_(gone)).all() if gone else ():
            # Somebody may have made charts of their own on a dataset.
            if not (kind == "datasets" and db.session.query(Slice).filter_by(datasource_id=asset.id).first()):
                db.session.delete(asset)
        db.session.commit()


def prepare_viewer_role(bundle: Mapping[str, str]) -> None:
    """The role for people who only look: the dashboards' datasets, and no way to change anything."""
    from superset.connectors.sqla.models import SqlaTable
    from superset.extensions import db, security_manager

    role = security_manager.add_role(VIEWER_ROLE)
    datasets = db.session.query(SqlaTable).filter(SqlaTable.uuid.in_(asset_bundle.uuids(bundle, "datasets")))
    wanted = [*VIEWER_PERMISSIONS, *(("datasource_access", dataset.get_perm()) for dataset in datasets)]
    role.permissions = [security_manager.add_permission_view_menu(*each) for each in wanted]
    db.session.commit()


def exported(known: Mapping[str, str] | None = None) -> dict[str, str]:
    """The dashboards as they are now, with all that they show, in the form of the repository.

    Args:
        known: A bundle whose dashboards these are, and whose files give the names; the repository's if None.
    """
    from superset.commands.dashboard.export import ExportDashboardsCommand
    from superset.extensions import db, security_manager
    from superset.models.dashboard import Dashboard
    from superset.utils.core import override_user

    known = asset_bundle.read_bundle(BUNDLE) if known is None else known
    wanted = asset_bundle.uuids(known, "dashboards")
    ids = [each.id for each in db.session.query(Dashboard).filter(Dashboard.uuid.in_(wanted))] if wanted else []
    with override_user(security_manager.find_user(ADMIN)):
        files = {name: text() for name, text in ExportDashboardsCommand(ids).run()} if ids else {}
    defaults = json.loads((FOLDER / "editor_defaults.json").read_text(encoding="utf-8"))
    return asset_bundle.canonical(files, known, defaults)


# Around the steps


@contextmanager
def open_state() -> Iterator[State]:
    """The table of what was done; one process at a time works on it."""
    url = os.environ["SUPERSET_DATABASE_URL"].replace("postgresql+psycopg2://", "postgresql://", 1)
    try:
        connection = psycopg2.connect(url, connect_timeout=10, application_name="nightscout-lakehouse-superset")
    except psycopg2.OperationalError as error:
        raise BringUpError(f"Superset's database cannot be reached: {str(error).strip()}") from None
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("select pg_advisory_lock(hashtext('nightscout-lakehouse bring-up'))")
            cursor.execute("set client_min_messages = warning")
            cursor.execute(_STATE)
        yield State(connection)
    finally:
        connection.close()


@contextmanager
def superset_app() -> Iterator["Flask"]:
    """Superset, loaded; takes seconds."""
    from superset.app import create_app

    # Its migrations print.
    with redirect_stdout(sys.stderr):
        app = create_app()
        with app.app_context():
            yield app


def software_fingerprint() -> str:
    """Changes with Superset's version, its configuration and the steps here."""
    digest = sha256(version("apache-superset").encode())
    for name in ("superset_config.py", "bring_up.py", "asset_bundle.py"):
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()


def admin_fingerprint() -> str:
    """Changes with the password in the environment, and does not tell it."""
    given = os.environ.get("SUPERSET_ADMIN_PASSWORD", "")
    return hmac.new(os.environ["SUPERSET_SECRET_KEY"].encode(), given.encode(), "sha256").hexdigest()


def reasons(error: BaseException) -> str:
    """All that an import found wrong, in one line: each file with the keys that are wrong, or else the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    found = [
        f"{name}: {json.dumps(messages)}" if isinstance(messages, dict) else f"{name}: {messages}"
        for each in getattr(error, "_exceptions", [])
        for name, messages in each.normalized_messages().items()
    ]
    return "; ".join(found) or f"{type(error).__name__}: {error}"


def say_changes(folder: Path, changed: list[str]) -> None:
    """Tell which files an export changed."""
    say(f"{len(changed)} files changed in {folder}" + "".join(f"\n  {name}" for name in changed))


def say(message: str) -> None:
    """Tell the person who started this."""
    print(message, file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (BringUpError, asset_bundle.BundleError) as error:
        raise SystemExit(str(error)) from None
