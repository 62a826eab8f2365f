"""The `lakehouse` command."""

import csv
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nightscout_lakehouse.commands.alerts import alerts_app
from nightscout_lakehouse.commands.care import care_app
from nightscout_lakehouse.commands.dashboard import dashboard_app
from nightscout_lakehouse.commands.lineage import lineage_app
from nightscout_lakehouse.commands.shared import EXIT_FAILURE, console, errors
from nightscout_lakehouse.commands.shared import home_can_be_written as _home_can_be_written
from nightscout_lakehouse.commands.shared import prepare as _prepare
from nightscout_lakehouse.commands.shared import says_what_went_wrong as _says_what_went_wrong
from nightscout_lakehouse.lib.agp_report.content import Unit
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.garbage_collection import collect_seldom
from nightscout_lakehouse.lib.settings import Settings, load_settings

if TYPE_CHECKING:
    from nightscout_lakehouse.instance import JobOutcome
    from nightscout_lakehouse.lib.lake import Lake
    from nightscout_lakehouse.lib.sites import Site

app = typer.Typer(
    help="Nightscout Lakehouse: your glucose data in Parquet, DuckDB and Postgres.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
sites_app = typer.Typer(help="The Nightscout servers that are read.", no_args_is_help=True)
app.add_typer(sites_app, name="sites")
quarantine_app = typer.Typer(help="Documents that were refused: list, show, judge anew.", no_args_is_help=True)
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(alerts_app, name="alerts")
app.add_typer(care_app)
app.add_typer(lineage_app, name="lineage")
app.add_typer(dashboard_app, name="dashboard")


@app.callback()
def _begin() -> None:
    collect_seldom()


SiteOption = Annotated[str | None, typer.Option("--site", help="Only of this site.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Only those refused for this reason.")]
CollectionOption = Annotated[
    Literal["entries", "treatments", "device_status", "profiles"] | None,
    typer.Option("--collection", help="Only of this collection."),
]

MOST_ROWS = 1_000_000
# Wider than any row: a file or a pipe has no edge to fold at.
_UNFOLDED_WIDTH = 100_000


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


@app.command()
@_says_what_went_wrong
def run() -> None:
    """Run the whole pipeline once: read every site, process, build the models, publish, build the marts."""
    settings = _prepare()
    with _not_while_running(settings), _demo_if_no_site(settings) as configured:
        _run_pipeline(configured)


@app.command()
@_says_what_went_wrong
def backfill(
    since: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Read everything from this day (UTC) again.")],
) -> None:
    """Read everything since a day again, then bring all that follows up to date."""
    settings = _prepare()
    from nightscout_lakehouse.lib.ingestion import ingest_sites
    from nightscout_lakehouse.lib.lake import Lake
    from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS, DEVICE_STATUS, ENTRIES
    from nightscout_lakehouse.lib.sites import load_sites

    moment = since.replace(tzinfo=UTC)
    if moment > datetime.now(UTC):
        raise LakehouseError(f"--since {since.date()} is in the future.", "Give a day that has been.")
    with _not_while_running(settings), _demo_if_no_site(settings) as configured:
        sites, lake = load_sites(configured), Lake.open(configured)
        reports = ingest_sites(sites, configured, lake, since=moment)
        readable = [site for site, report in zip(sites, reports, strict=True) if not report.error]
        others = [c for c in COLLECTIONS[1:] if c is not DEVICE_STATUS or configured.read_device_status]
        for collection in others if readable else ():
            reports += ingest_sites(readable, configured, lake, since=moment, collection=collection)
        for report in reports:
            console.print(
                f"{report.site}, {report.collection}: {report.fetched:,} documents read again, "
                f"{report.landed:,} new or changed, {report.deletions:,} deleted"
            )
        _run_pipeline(configured)
    if any(report.error for report in reports if report.collection == ENTRIES.name):
        raise typer.Exit(EXIT_FAILURE)


@app.command()
@_says_what_went_wrong
def dev() -> None:
    """Open the Dagster UI, with the schedule and the sensors running; Ctrl-C stops all of it."""
    settings = _prepare()
    from nightscout_lakehouse.dev_server import run_dagster
    from nightscout_lakehouse.instance import check_storage
    from nightscout_lakehouse.lib.alerts.targets import check_targets, load_targets
    from nightscout_lakehouse.lib.quality.stages import SUITE_FILES, stage_suite
    from nightscout_lakehouse.lib.serving import serving_database

    check_storage(settings)
    # Dagster would show a malformed suite as a traceback of its own.
    for stage in SUITE_FILES:
        stage_suite(stage)
    check_targets(load_targets(settings))
    with _demo_if_no_site(settings) as configured, serving_database(configured):
        console.print("Starting Dagster …   (Ctrl-C stops everything)")
        with suppress(KeyboardInterrupt):
            run_dagster(configured, lambda url: console.print(f"Dagster UI: {url}"))
    console.print("Stopped.")


@app.command()
@_says_what_went_wrong
def status() -> None:
    """Show each site: last reading and its age, rows, cursor, quarantined documents."""
    settings = _prepare()
    from nightscout_lakehouse.lib.alerts.store import undelivered_alerts
    from nightscout_lakehouse.lib.pipeline_report import print_status

    print_status(console, settings)
    if count := undelivered_alerts(settings.alerts_dir, datetime.now(UTC)):
        console.print(f"{count} alert{'s' if count > 1 else ''} could not be delivered: lakehouse alerts list")


@sites_app.command("check")
@_says_what_went_wrong
def sites_check() -> None:
    """Reach every site: version, units, permissions, time zone, clock."""
    settings = _prepare()
    from nightscout_lakehouse.lib.pipeline_report import print_sites_check

    with _demo_if_no_site(settings) as configured:
        all_can_be_read = print_sites_check(console, configured)
    if not all_can_be_read:
        raise typer.Exit(EXIT_FAILURE)


@app.command()
@_says_what_went_wrong
def doctor() -> None:
    """Check what the lakehouse needs: what is missing, and how to mend it."""
    from nightscout_lakehouse.lib.doctor import examine

    findings = examine()
    table = Table(box=None, pad_edge=False)
    for title in ("", "check", "what was found", "how to mend it"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.is_ok else "[yellow]![/]" if finding.is_warning else "[red]no[/]"
        table.add_row(mark, finding.check, finding.found, "" if finding.is_ok else finding.remedy)
    console.print(table)
    if not all(finding.is_ok or finding.is_warning for finding in findings):
        raise typer.Exit(EXIT_FAILURE)


@app.command()
@_says_what_went_wrong
def check(
    full: Annotated[bool, typer.Option("--full", help="Test the whole history, not only what is new.")] = False,
) -> None:
    """Run the data tests of the models: on what no tests have passed yet or, with --full, on everything."""
    settings = _prepare()
    from nightscout_lakehouse.lib.dbt_project import DbtError, DbtProject
    from nightscout_lakehouse.lib.lineage.command_run import command_run

    if not settings.has_warehouse:
        raise LakehouseError("There is nothing to check yet.", "Run the pipeline first.")
    with _not_while_running(settings), command_run(settings, "check") as lineage:
        error: DbtError | None = None
        try:
            result = DbtProject(settings).check(full=full)
        except DbtError as failure:
            if failure.result is None:
                raise
            error, result = failure, failure.result
        lineage.models_were_tested(error)
    found = [node for node in result.nodes if node.status != "pass"]
    for node in found:
        errors.print(f"{node.status}: {node.name}: {node.message or ''}", markup=False, soft_wrap=True)
    extent = "the whole history" if full else "what was not tested yet"
    console.print(f"{len(result.nodes) - len(found)} of {len(result.nodes)} tests passed on {extent}.", soft_wrap=True)
    if error is not None:
        raise typer.Exit(EXIT_FAILURE)


@app.command()
@_says_what_went_wrong
def sql(
    query: Annotated[str, typer.Argument(help="The query; it can only read.")],
    marts: Annotated[bool, typer.Option("--marts", help="Ask the marts in Postgres instead of DuckDB.")] = False,
    output: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.TABLE,
) -> None:
    """Ask the warehouse (DuckDB) or, with --marts, the serving database (Postgres); read-only."""
    settings = _prepare()
    names, rows = _read_marts(settings, query) if marts else _read_warehouse(settings, query)
    _print_rows(names, rows, output)


@app.command()
@_says_what_went_wrong
def validate(
    full: Annotated[bool, typer.Option("--full", help="The whole history, not only what has changed.")] = False,
    suite: Annotated[list[Path] | None, typer.Option(help="Only check that this file is a suite.")] = None,
) -> None:
    """Hold the data to the suites in great_expectations/, without reading a server; 1 if something critical fails."""
    settings = _prepare()
    from nightscout_lakehouse.lib.lake import Lake
    from nightscout_lakehouse.lib.lineage.command_run import command_run
    from nightscout_lakehouse.lib.pipeline_report import print_conservation, print_validation
    from nightscout_lakehouse.lib.quality.conservation import compare_with_raw_files
    from nightscout_lakehouse.lib.quality.report import write_report
    from nightscout_lakehouse.lib.quality.stages import check_suites, validate_stages

    if suite:
        for found in check_suites(suite):
            console.print(f"{found.path}: {len(found.expectations)} expectations, well-formed.", soft_wrap=True)
        return
    lake, run_id = Lake.open(settings), uuid.uuid4().hex
    with _not_while_running(settings), command_run(settings, "validate") as lineage:
        results = validate_stages(settings, lake, _known_sites(settings, lake), run_id, everything=full)
        lineage.stages_were_validated(results)
        conservation = compare_with_raw_files(settings, lake) if full else None
        if conservation is not None:
            lineage.history_was_compared(conservation)
    print_validation(console, results)
    is_sound = not any(result.blocking for result in results)
    if conservation is not None:
        print_conservation(console, conservation)
        is_sound = is_sound and not conservation.faults
    console.print(f"Report: {write_report(settings, run_id)}", soft_wrap=True)
    if not is_sound:
        raise typer.Exit(EXIT_FAILURE)


@quarantine_app.command("list")
@_says_what_went_wrong
def quarantine_list(
    site: SiteOption = None,
    reason: ReasonOption = None,
    collection: CollectionOption = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="How many documents to list.")] = 50,
    output: Annotated[Format, typer.Option("--format", help="How to print; csv and json list the documents.")] = (
        Format.TABLE
    ),
) -> None:
    """Count the refused documents by site and reason, and list them, the newest first."""
    settings = _prepare()
    from nightscout_lakehouse.lib.pipeline_report import print_quarantine
    from nightscout_lakehouse.lib.quality.quarantine import Choice, Refused, count_refused, list_refused
    from nightscout_lakehouse.lib.redaction import redactor_with_sites

    choice = Choice(site, reason, collection)
    clean = redactor_with_sites(settings).clean
    refused = [replace(each, document=clean(each.document)) for each in list_refused(settings, choice, limit)]
    if output is Format.TABLE:
        print_quarantine(_console_of_tables(), count_refused(settings, choice), refused)
        return
    names = [field.name for field in fields(Refused)]
    _print_rows(names, [[getattr(each, name) for name in names] for each in refused], output)


@quarantine_app.command("show")
@_says_what_went_wrong
def quarantine_show(
    document_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the document, or SITE/ID.")],
) -> None:
    """Show a refused document whole, why it was refused and what to do about it."""
    settings = _prepare()
    from nightscout_lakehouse.lib.pipeline_report import print_refused
    from nightscout_lakehouse.lib.quality.quarantine import find_refused
    from nightscout_lakehouse.lib.redaction import redactor_with_sites

    clean = redactor_with_sites(settings).clean
    for each in find_refused(settings, document_id):
        print_refused(console, replace(each, document=clean(each.document)))


@quarantine_app.command("retry")
@_says_what_went_wrong
def quarantine_retry(site: SiteOption = None, reason: ReasonOption = None, collection: CollectionOption = None) -> None:
    """Judge refused documents anew, by the rules of today and the time of now."""
    settings = _prepare()
    from nightscout_lakehouse.lib.lake import Lake
    from nightscout_lakehouse.lib.pipeline_report import print_retried
    from nightscout_lakehouse.lib.quality.quarantine import Choice, retry_refused

    with _not_while_running(settings):
        lake = Lake.open(settings)
        retried = retry_refused(settings, lake, _known_sites(settings, lake), Choice(site, reason, collection))
    print_retried(console, retried)


@app.command("import")
@_says_what_went_wrong
def import_files(
    path: Annotated[Path, typer.Argument(exists=True, help="A file, or a folder of files.")],
    site: Annotated[str, typer.Option("--site", help="Whose readings these are.")],
    timezone: Annotated[str | None, typer.Option(help="Zone of times without zone (IANA name).")] = None,
    date_order: Annotated[
        Literal["day_first", "month_first"] | None, typer.Option(help="Where the dates do not show it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the files hold; import nothing.")] = False,
) -> None:
    """Import exported files (Dexcom Clarity, LibreView, CSV) from anywhere; the files stay where they are."""
    settings = _prepare()
    from nightscout_lakehouse.lib.lineage.command_run import command_run
    from nightscout_lakehouse.lib.pipeline_report import print_imports
    from nightscout_lakehouse.lib.sources.file_drop import import_path

    with _not_while_running(settings), nullcontext() if dry_run else command_run(settings, "import") as lineage:
        outcomes = import_path(path, site, settings, timezone=timezone, date_order=date_order, dry_run=dry_run)
        if lineage is not None:
            lineage.files_were_imported(outcomes)
    print_imports(console, outcomes)
    problems = [outcome.message for outcome in outcomes if outcome.outcome in ("failed", "waiting")]
    for problem in problems:
        errors.print("[bold red]Error:[/] ", end="")
        errors.print(problem, markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(EXIT_FAILURE)


@app.command("sources")
@_says_what_went_wrong
def sources() -> None:
    """List the kinds of file that can be imported, and where to drop them."""
    from nightscout_lakehouse.lib.sources.registry import FORMATS

    settings = load_settings()
    table = Table(box=None, pad_edge=False)
    for title in ("name", "kind of file", "what becomes of it"):
        table.add_column(title, overflow="fold")
    for each in FORMATS:
        table.add_row(each.name, each.title, each.summary)
    console.print(table)
    console.print(f"Drop them into {settings.drop_dir}/SITE/, or: lakehouse import FILE --site SITE", soft_wrap=True)


@app.command()
@_says_what_went_wrong
def report(
    site: Annotated[str | None, typer.Argument(help="Name of the site; needed where there are several.")] = None,
    days: Annotated[int, typer.Option(help="Local days of the report.")] = 14,
    unit: Annotated[
        Unit | None,
        typer.Option(case_sensitive=False, help="Unit of glucose; that of the site's profile if not given."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to; LAKEHOUSE_HOME/reports if not given.")
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="Last local day; the newest with readings if not given."),
    ] = None,
) -> None:
    """Write the one-page AGP report of a site as PDF and HTML."""
    settings = _prepare()
    from nightscout_lakehouse.lib.agp_report import write_report
    from nightscout_lakehouse.lib.agp_report.load import choose_site, display_unit, load_report
    from nightscout_lakehouse.lib.warehouse import open_to_read

    with open_to_read(settings) as warehouse:
        name = choose_site(warehouse, site)
        shown_in = unit or display_unit(warehouse, name)
        content = load_report(warehouse, name, days, until.date() if until else None, datetime.now(UTC))
    files = write_report(content, shown_in, output or settings.home / "reports")
    if until is not None and content.end_date < until.date():
        console.print(f"{name} has no readings after {content.end_date}: the report ends there.")
    if content.days < days:
        console.print(f"{name} has no readings before {content.start_date}: the report begins there.")
    if not content.is_sufficient:
        console.print("Too little data for firm figures; the report says so.")
    for file in files:
        console.print(str(file), markup=False, soft_wrap=True)


@app.command()
@_says_what_went_wrong
def metrics() -> None:
    """Print the metrics of the runs as Prometheus reads them; after each run they are in metrics/lakehouse.prom."""
    from nightscout_lakehouse.lib.run_journal import RunJournal
    from nightscout_lakehouse.lib.run_metrics import metrics_text

    settings = load_settings()
    if not settings.journal_path.is_file():
        raise LakehouseError("No run is on record yet.", "Run the pipeline first.")
    sys.stdout.write(metrics_text(RunJournal(settings.journal_path)))


@app.command("demo-server")
@_says_what_went_wrong
def demo_server(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 1337,
    host: Annotated[str, typer.Option(help="Address to listen on; another one only in a container.")] = "127.0.0.1",
) -> None:
    """Serve the made-up person's data as a Nightscout server would, until Ctrl-C."""
    from nightscout_lakehouse.demo import serve_forever

    console.print(f"Demo Nightscout: http://{host}:{port}   (Ctrl-C stops it)")
    serve_forever(port=port, host=host)


@app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_says_what_went_wrong
def execute(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="Program and arguments, best after `--`.")],
) -> None:
    """Run another program, such as dagster or dagster-daemon, with the environment of this lakehouse."""
    from nightscout_lakehouse.instance import prepare_environment

    settings = load_settings()
    with _home_can_be_written(settings):
        prepare_environment(settings)
    program = shutil.which(command[0], path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise LakehouseError(f"There is no program {command[0]}.", "Give one of this environment or of the PATH.")
    os.execv(program, [program, *command[1:]])  # noqa: S606 - that is what it is for


@app.command()
@_says_what_went_wrong
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove the folder of this lakehouse with all its data, after asking."""
    from nightscout_lakehouse.lib.locking import lake_lock

    settings = load_settings()
    if not settings.home.is_dir():
        console.print(f"There is nothing at {settings.home}.", soft_wrap=True)
        return
    if not (settings.home / "dagster" / "dagster.yaml").is_file():
        raise LakehouseError(f"{settings.home} is not the folder of a lakehouse.", "Check LAKEHOUSE_HOME.")
    console.print(f"This removes {settings.home} with the history, the warehouse and the marts.", soft_wrap=True)
    if not yes and not typer.confirm("Remove it?"):
        console.print("Nothing was removed.")
        raise typer.Exit(EXIT_FAILURE)
    with lake_lock(settings, "lakehouse clean", wait_seconds=0):
        shutil.rmtree(settings.home)
    console.print("Removed.")


def _known_sites(settings: Settings, lake: "Lake") -> "list[Site]":
    """Every site with data; where none is configured, the demo person, whose server need not run."""
    from nightscout_lakehouse.lib.sites import Site, load_sites
    from nightscout_lakehouse.lib.sources.file_drop import sites_of_files

    return [*load_sites(settings), *sites_of_files(settings, lake)] or [Site("demo", "http://127.0.0.1:1")]


def _run_pipeline(settings: Settings) -> None:
    """Run the pipeline in this process and print its summary; ends the command with 1 if anything failed."""
    from nightscout_lakehouse.instance import execute_job
    from nightscout_lakehouse.lib.pipeline_report import other_collections, print_run, site_runs

    started = time.monotonic()
    outcome = execute_job("nightscout_pipeline")
    _alert_on(outcome, settings)
    runs = site_runs(outcome.metadata)
    if outcome.success:
        print_run(console, settings, runs, other_collections(outcome.metadata), time.monotonic() - started)
    problems = [*outcome.errors, *(run.error for run in runs.values() if run.error)]
    problems += outcome.metadata.get("raw_file_drop", {}).get("problems", [])
    told = {"every_site_was_read", "every_file_was_read"}
    checks = [
        check
        for check in outcome.failed_checks
        if check not in told and not any(f"the check {check} failed" in error for error in outcome.errors)
    ]
    if checks:
        problems.append(f"Failed checks: {', '.join(checks)}.")
    for problem in problems:
        errors.print("[bold red]Error:[/] ", end="")
        errors.print(problem, markup=False, soft_wrap=True)
    if problems:
        errors.print(f"Run {outcome.run_id[:8]} with all its steps: make dev", style="dim")
        raise typer.Exit(EXIT_FAILURE)


def _alert_on(outcome: "JobOutcome", settings: Settings) -> None:
    """What the sensors do for a run of the daemon: whoever runs this by cron is told, too."""
    from nightscout_lakehouse.lib.alerts.runs import run_failed, run_succeeded

    job, run_id = "nightscout_pipeline", outcome.run_id
    steps = [error for error in outcome.errors if error not in outcome.check_errors]
    try:
        if outcome.success:
            run_succeeded(settings, job=job, run_id=run_id)
        else:
            run_failed(settings, job=job, run_id=run_id, steps=steps, checks=outcome.check_errors)
    except LakehouseError as error:
        # What the run did is printed all the same.
        errors.print(f"Nobody was told: {error}", markup=False, soft_wrap=True)


@contextmanager
def _not_while_running(settings: Settings) -> Iterator[None]:
    """Say at once that another run is writing this lake, instead of waiting for it."""
    from nightscout_lakehouse.lib.locking import lake_lock

    with lake_lock(settings, "lakehouse", wait_seconds=0):
        yield


@contextmanager
def _demo_if_no_site(settings: Settings) -> Iterator[Settings]:
    """Serve the demo person while no site is configured; the settings then name it."""
    from nightscout_lakehouse.lib.lake import Lake
    from nightscout_lakehouse.lib.sites import load_sites
    from nightscout_lakehouse.lib.sources.file_drop import sites_of_files

    if load_sites(settings) or sites_of_files(settings, Lake.open(settings)):
        yield settings
        return
    from nightscout_lakehouse.demo import DemoServer

    with DemoServer() as server:
        console.print(f"No site is configured (NIGHTSCOUT_URL): reading the bundled demo person at {server.url}")
        os.environ["NIGHTSCOUT_URL"] = server.url
        os.environ["NIGHTSCOUT_SITE"] = "demo"
        try:
            yield load_settings()
        finally:
            del os.environ["NIGHTSCOUT_URL"], os.environ["NIGHTSCOUT_SITE"]


def _read_warehouse(settings: Settings, query: str) -> tuple[Sequence[str], list[tuple[Any, ...]]]:
    from nightscout_lakehouse.lib.warehouse_query import query_warehouse

    result = query_warehouse(settings, query)
    return result.columns, result.rows


def _read_marts(settings: Settings, query: str) -> tuple[Sequence[str], list[tuple[Any, ...]]]:
    from nightscout_lakehouse.lib.serving import read_query, reader_connection, serving_database

    with serving_database(settings) as owner:
        result = read_query(reader_connection(settings, owner) or owner, query, max_rows=MOST_ROWS)
    if result.is_cut:
        errors.print(f"Only the first {MOST_ROWS:,} rows are shown.")
    return result.columns, result.rows


def _print_rows(names: Sequence[str], rows: Sequence[Sequence[Any]], output: Format) -> None:
    if output is Format.CSV:
        writer = csv.writer(sys.stdout)
        writer.writerow(names)
        writer.writerows(rows)
    elif output is Format.JSON:
        json.dump([dict(zip(names, row, strict=True)) for row in rows], sys.stdout, default=str, indent=1)
        sys.stdout.write("\n")
    else:
        table = Table(box=None, pad_edge=False)
        for name in names:
            table.add_column(escape(name), overflow="fold")
        for row in rows:
            table.add_row(*(escape("" if value is None else str(value)) for value in row))
        _console_of_tables().print(table)


def _console_of_tables() -> Console:
    """A terminal's width folds a table; a pipe or a file gets each row in one line."""
    return console if sys.stdout.isatty() else Console(highlight=False, width=_UNFOLDED_WIDTH)


if __name__ == "__main__":
    app()
