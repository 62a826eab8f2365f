"""`lakehouse dashboard`: Superset on the marts."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from nightscout_lakehouse.commands.shared import console, prepare, says_what_went_wrong
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.settings import Settings

dashboard_app = typer.Typer(help="The dashboards in Superset.", no_args_is_help=True)


@dashboard_app.command()
@says_what_went_wrong
def serve() -> None:
    """Set up what is missing, import the dashboards if they changed, and serve them; Ctrl-C stops all of it."""
    settings = prepare()
    from nightscout_lakehouse.dashboard_server import check_superset_port, run_bring_up, run_superset

    check_superset_port(settings)
    with _superset(settings) as environment:
        run_bring_up(settings, environment)
        console.print("Starting Superset …   (Ctrl-C stops everything)")
        environment.pop("SUPERSET_ADMIN_PASSWORD", None)
        with suppress(KeyboardInterrupt):
            run_superset(settings, environment, lambda url: console.print(f"Dashboards: {url}   (user: admin)"))
    console.print("Stopped.")


@dashboard_app.command()
@says_what_went_wrong
def setup() -> None:
    """Set up what is missing and import the dashboards if they changed, as `serve` does, without serving."""
    settings = prepare()
    from nightscout_lakehouse.dashboard_server import run_bring_up

    with _superset(settings) as environment:
        run_bring_up(settings, environment)


@dashboard_app.command("import")
@says_what_went_wrong
def import_assets(
    folder: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="The repository's files if not given.")
    ] = None,
) -> None:
    """Bring charts and dashboards back to the state of the files, whatever was changed in the browser."""
    settings = prepare()
    from nightscout_lakehouse.dashboard_server import run_bring_up
    from nightscout_lakehouse.lib.dashboard.environment import BUNDLE_DIR

    with _superset(settings) as environment:
        run_bring_up(settings, environment, "import", str((folder or BUNDLE_DIR).absolute()))


@dashboard_app.command("export")
@says_what_went_wrong
def export_assets(
    folder: Annotated[Path | None, typer.Option(help="Where to write; the repository's files if not given.")] = None,
) -> None:
    """Write what was changed in the browser back to the files under superset/dashboards/."""
    settings = prepare()
    from nightscout_lakehouse.dashboard_server import run_bring_up
    from nightscout_lakehouse.lib.dashboard.environment import BUNDLE_DIR

    with _superset(settings) as environment:
        run_bring_up(settings, environment, "export", str((folder or BUNDLE_DIR).absolute()))


@dashboard_app.command("reset-password")
@says_what_went_wrong
def reset_password() -> None:
    """Give the user admin a new password, SUPERSET_ADMIN_PASSWORD or a generated one, and print that once."""
    settings = prepare()
    from nightscout_lakehouse.dashboard_server import run_bring_up

    with _superset(settings) as environment:
        run_bring_up(settings, environment, "reset-password")


@contextmanager
def _superset(settings: Settings) -> Iterator[dict[str, str]]:
    """The environment of Superset's processes, while its databases run."""
    from nightscout_lakehouse.lib.dashboard.databases import marts_connection, metadata_connection
    from nightscout_lakehouse.lib.dashboard.environment import superset_environment, superset_program
    from nightscout_lakehouse.lib.serving import serving_database

    superset_program("python")
    # No need to make an embedded Postgres to find nothing in it.
    if not settings.database_url.get_secret_value() and not settings.postgres_dir.is_dir():
        raise LakehouseError("There are no marts to show yet.", "Run `make run` first.")
    with serving_database(settings) as owner:
        marts = marts_connection(settings, owner)
        yield superset_environment(settings, metadata_connection(settings, owner), marts)
