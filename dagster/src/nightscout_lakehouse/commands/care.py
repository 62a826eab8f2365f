"""`lakehouse backup`, `restore`, `export`, `forget`, `compact` and `prune`: taking care of what is kept."""

import logging
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nightscout_lakehouse.commands.shared import EXIT_FAILURE, console, errors, prepare, says_what_went_wrong
from nightscout_lakehouse.lib.errors import LakehouseError

if TYPE_CHECKING:
    from nightscout_lakehouse.lib.care.forget import Forgotten, Survey
    from nightscout_lakehouse.lib.care.pruning import Planned
    from nightscout_lakehouse.lib.settings import Settings

care_app = typer.Typer()

WithoutPostgres = Annotated[bool, typer.Option("--without-postgres", help="Leave the serving database out.")]


@care_app.command()
@says_what_went_wrong
def backup(
    target: Annotated[Path, typer.Argument(help="Folder to make; it appears when the backup is whole.")],
    without_postgres: WithoutPostgres = False,
) -> None:
    """Save the lake, the warehouse, Postgres, runs, alerts and lineage into one folder, with checksums."""
    settings = prepare()
    from nightscout_lakehouse.lib.care.backup import back_up

    manifest = back_up(settings, target, with_postgres=not without_postgres)
    size = f"{manifest.size_bytes / 1e6:,.1f} MB"
    console.print(f"{len(manifest.files):,} files, {size}: {target}", markup=False, soft_wrap=True)
    for site, figures in manifest.figures.items():
        console.print(
            f"{site}: {figures['readings']:,} readings, {figures['first_reading']} to {figures['last_reading']}",
            markup=False,
            soft_wrap=True,
        )
    console.print("Not in it:")
    for what, reason in manifest.left_out.items():
        console.print(f"  {what}: {reason}", markup=False, soft_wrap=True)
    console.print("It is not encrypted, and holds health data: keep it where only you can read it.", soft_wrap=True)


@care_app.command()
@says_what_went_wrong
def restore(
    source: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the backup.")],
    replace: Annotated[bool, typer.Option("--replace", help="Something may be there; it is moved aside.")] = False,
    verify_only: Annotated[bool, typer.Option("--verify", help="Only hold the backup to its checksums.")] = False,
    without_postgres: WithoutPostgres = False,
) -> None:
    """Bring a backup back into LAKEHOUSE_HOME; all of it is verified before anything is touched."""
    from nightscout_lakehouse.lib.care.backup import read_manifest, verify

    if verify_only:
        manifest = read_manifest(source)
        verify(source, manifest)
        console.print(f"{len(manifest.files):,} files of {manifest.created_at} are as they were saved.", soft_wrap=True)
        return
    # Not prepared: that would make folders in the place where the backup goes.
    from nightscout_lakehouse.lib.care.restore import restore as bring_back
    from nightscout_lakehouse.lib.settings import load_settings

    logging.getLogger("nightscout_lakehouse").setLevel(logging.WARNING)
    settings = load_settings()
    done = bring_back(settings, source, replace=replace, with_postgres=not without_postgres)
    saved = f"{len(done.manifest.files):,} files of {done.manifest.created_at}"
    console.print(f"{saved}: {settings.home}", markup=False, soft_wrap=True)
    for site, figures in done.manifest.figures.items():
        console.print(f"{site}: {figures['readings']:,} readings, as in the backup", markup=False, soft_wrap=True)
    if not done.has_postgres:
        console.print("Postgres was not restored: the next run publishes all of it.")
    if done.replaced is not None:
        console.print(
            f"What was there before: {done.replaced}. Remove it when all is well.", markup=False, soft_wrap=True
        )


@care_app.command()
@says_what_went_wrong
def export(
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    site: Annotated[list[str] | None, typer.Option("--site", help="Whose data; everybody's if not given.")] = None,
    what: Annotated[
        list[str] | None, typer.Option("--what", help="readings, treatments, daily, episodes or all.")
    ] = None,
    file_format: Annotated[str, typer.Option("--format", help="csv or parquet.")] = "csv",
    since: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First local day.")] = None,
    until: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last local day.")] = None,
    de_identify: Annotated[
        bool, typer.Option("--de-identify", help="Leave out who it is, and move the dates by whole weeks.")
    ] = False,
) -> None:
    """Write readings, treatments, days and episodes as files, with what each column means."""
    settings = prepare()
    from nightscout_lakehouse.lib.care.export import Format, What, exportable_sites
    from nightscout_lakehouse.lib.care.export import export as write_export
    from nightscout_lakehouse.lib.warehouse import open_to_read

    tables = [What(_one_of(each, [*What], "--what")) for each in what or ["all"]]
    written_as = Format(_one_of(file_format, [*Format], "--format"))
    with open_to_read(settings) as warehouse:
        exported = write_export(
            warehouse,
            target,
            sites=site or exportable_sites(warehouse),
            what=tables,
            file_format=written_as,
            since=since.date() if since else None,
            until=until.date() if until else None,
            deidentify=de_identify,
        )
    for table in exported:
        console.print(f"{target / table.file}: {table.rows:,} rows", markup=False, soft_wrap=True)
    if de_identify and until is None:
        console.print(
            "It reaches up to today, so whoever knows the day of this export can count back the weeks:"
            " an --until some weeks ago is safer.",
            soft_wrap=True,
        )


@care_app.command()
@says_what_went_wrong
def forget(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    with_dropped_files: Annotated[
        bool, typer.Option("--with-dropped-files", help="Remove its exported files in the drop folder too.")
    ] = False,
) -> None:
    """Remove one person from everywhere in this lakehouse, and search all that remains to prove it."""
    settings = prepare()
    from nightscout_lakehouse.lib.care.forget import check_not_configured, survey
    from nightscout_lakehouse.lib.care.forget import forget as forget_site

    check_not_configured(settings, site)
    found = survey(settings, site)
    if found.is_empty:
        raise LakehouseError(f"There is nothing of a site {site} here.", "`lakehouse status` lists the sites.")
    _print_survey(found)
    if not yes and typer.prompt(f"This cannot be undone. Type {site} to remove it") != site:
        console.print("Nothing was removed.")
        raise typer.Exit(EXIT_FAILURE)
    done = forget_site(settings, found, with_dropped_files=with_dropped_files)
    _print_forgotten(done, len(found.traces.probes))
    if done.left:
        raise typer.Exit(EXIT_FAILURE)


@care_app.command()
@says_what_went_wrong
def compact(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Put the many small raw files of the ticks together into few; nothing in them changes."""
    settings = prepare()
    from nightscout_lakehouse.lib.care.compaction import compact as compact_lake

    reports = compact_lake(settings, dry_run=dry_run)
    for report in reports:
        sizes = "" if dry_run else f", {report.bytes_before / 1e6:,.1f} to {report.bytes_after / 1e6:,.1f} MB"
        console.print(
            f"{report.site}, {report.collection}: {report.files_before:,} files "
            f"{'would become' if dry_run else 'became'} {report.files_after:,}{sizes}",
            markup=False,
            soft_wrap=True,
        )
    if not reports:
        console.print("There is nothing to put together.")


@care_app.command()
@says_what_went_wrong
def prune(
    archive: Annotated[Path, typer.Argument(help="Folder outside of the lake, such as on a cold disk.")],
    older_than: Annotated[
        int, typer.Option("--older-than", min=1, help="Days since the last document of a file was fetched.")
    ] = 400,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    bring_back: Annotated[
        bool, typer.Option("--bring-back", help="Copy the files of the archive back, as before a rebuild.")
    ] = False,
) -> None:
    """Move old raw files into an archive, once all of them together have been seen to give what is in use."""
    settings = prepare()
    if bring_back:
        if dry_run:
            raise LakehouseError("--bring-back does not go with --dry-run.", "It removes nothing: leave one out.")
        _bring_back(settings, archive)
        return
    from nightscout_lakehouse.lib.care.pruning import plan_pruning
    from nightscout_lakehouse.lib.care.pruning import prune as prune_lake

    planned = plan_pruning(settings, archive, older_than_days=older_than)
    if not planned:
        console.print(f"There are no processed raw files whose documents were all fetched {older_than:,} days ago.")
        return
    if dry_run or not yes:
        _print_planned(planned, "would move")
    if dry_run:
        return
    if not yes and not typer.confirm(f"Compare with a rebuild, and move them to {archive}?"):
        console.print("Nothing was moved.")
        raise typer.Exit(EXIT_FAILURE)
    done = prune_lake(settings, archive, older_than_days=older_than)
    _print_planned(done, "moved")
    console.print(
        f"{sum(each.size_bytes for each in done) / 1e6:,.1f} MB of the lake are free. {archive} is now the only place "
        "of these files: it is not encrypted and in no backup, so keep a copy of it where only you can read it.",
        markup=False,
        soft_wrap=True,
    )


def _bring_back(settings: "Settings", archive: Path) -> None:
    from nightscout_lakehouse.lib.care.pruning import bring_back

    back, elsewhere = bring_back(settings, archive)
    for each in back:
        console.print(
            f"{each.site}, {each.collection}: {each.files:,} files are back, {each.size_bytes / 1e6:,.1f} MB",
            markup=False,
            soft_wrap=True,
        )
    for what, place in elsewhere.items():
        console.print(f"{what}: not here; it was moved to {place}", markup=False, soft_wrap=True)
    if not back:
        raise LakehouseError(f"Nothing of this lake was moved to {archive}.")
    console.print(f"{archive} keeps its copies; the next prune replaces them.", markup=False, soft_wrap=True)


def _print_planned(planned: "list[Planned]", verb: str) -> None:
    for each in planned:
        if each.contents:
            console.print(
                f"{each.name}: {len(each.contents):,} files {verb}, batches {each.first:,} to {each.last:,}, "
                f"{each.documents:,} documents, {each.size_bytes / 1e6:,.1f} MB",
                markup=False,
                soft_wrap=True,
            )
        else:
            console.print(
                f"{each.name}: {len(each.leftovers):,} copies of files in the archive {verb} out",
                markup=False,
                soft_wrap=True,
            )


def _print_survey(found: "Survey") -> None:
    console.print(f"Of {found.traces.site} there are:", markup=False)
    for collection, documents in found.documents.items():
        console.print(f"  {documents:,} documents of {collection}")
    console.print(f"  {found.batch_files:,} raw batch files, {found.warehouse_rows:,} rows in the warehouse")
    if found.dropped_files:
        console.print(f"  {len(found.dropped_files)} files in the drop folder")
    for archive in found.archives:
        console.print(f"  raw files in the archive {archive}, or there were", markup=False, soft_wrap=True)


def _print_forgotten(done: "Forgotten", probes: int) -> None:
    for what, count in done.removed.items():
        console.print(f"Removed: {count:,} {what}", markup=False)
    console.print(
        f"Searched for the name and {probes} ids, devices and notes that only this person has: the lake, all tables of "
        f"the warehouse and Postgres, and {done.searched_files:,} files ({done.searched_bytes / 1e6:,.1f} MB).",
        soft_wrap=True,
    )
    if done.left:
        errors.print("[bold red]Error:[/] something is left:")
        for place in done.left:
            errors.print(f"  {place.place}: {place.what}", markup=False, soft_wrap=True)
    else:
        console.print("Nothing was found.")
    console.print(
        "Not reached from here: backups and exports, copies of an archive of `lakehouse prune`, old versions in a "
        "bucket, the write-ahead log and backups of a database of your own, copies at a lineage server, and Nightscout "
        "itself.",
        soft_wrap=True,
    )


def _one_of(value: str, choices: list[str], option: str) -> str:
    if value not in choices:
        raise LakehouseError(f"{option} {value!r} is not known.", f"It is one of {', '.join(choices)}.")
    return value
