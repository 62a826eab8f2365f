"""What the commands print: the summary of a run, the state of the sites, the check of the servers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.ingestion import IngestionState, fetch_policy, load_state
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import NightscoutClient
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS
from nightscout_lakehouse.lib.quality.conservation import Conservation
from nightscout_lakehouse.lib.quality.quarantine import REMEDIES, Refused, Retried, pretty
from nightscout_lakehouse.lib.quality.stages import StageResult
from nightscout_lakehouse.lib.serving import serving_address
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site, load_sites
from nightscout_lakehouse.lib.sources.file_drop import FileImport, sites_of_files
from nightscout_lakehouse.lib.summary import SUMMARY_DAYS, SiteSummary, site_summaries

NOT_FOR_DOSING = "For insight, not for dosing decisions; it does not replace the sensor's own alarms."


@dataclass(frozen=True)
class SiteRun:
    """What a run did for one site."""

    fetched: int = 0
    stored: int = 0
    duplicates: int = 0
    quarantined: int = 0
    deletions: int = 0
    error: str | None = None


@dataclass(frozen=True)
class CollectionRun:
    """What a run did with a collection beside the entries, over all sites."""

    title: str
    fetched: int
    rows: int
    quarantined: int
    errors: tuple[str, ...]


def print_run(
    console: Console,
    settings: Settings,
    runs: Mapping[str, SiteRun],
    collections: Sequence[CollectionRun],
    seconds: float,
) -> None:
    """Print what a run brought for each site, the figures that now hold, and where to look next."""
    summaries = {summary.site: summary for summary in site_summaries(settings)}
    table = _table(
        "site",
        *("fetched", "stored", "duplicates", "quarantined", "deleted"),
        *("TIR %", "mean mg/dL", "GMI %", "last reading"),
    )
    for site in sorted({*runs, *summaries}):
        run = runs.get(site, SiteRun())
        counts = (run.fetched, run.stored, run.duplicates, run.quarantined, run.deletions)
        table.add_row(site, *(f"{count:,}" for count in counts), *_figures(summaries.get(site)))
    console.print()
    console.print(table)
    if not any(run.stored or run.quarantined or run.deletions for run in runs.values()):
        console.print("No new reading on any site.")
    if collections:
        parts = [f"{c.title} {c.fetched:,} fetched, {c.rows:,} in all" for c in collections]
        console.print("Beside the entries: " + "; ".join(parts) + ".", soft_wrap=True)
    for error in (error for collection in collections for error in collection.errors):
        console.print("[bold yellow]Not read:[/] ", end="")
        console.print(error, markup=False, soft_wrap=True)
    console.print(f"TIR, mean and GMI are of the last {SUMMARY_DAYS} days with readings. {NOT_FOR_DOSING}", style="dim")
    console.print()
    console.print(f"Done in {seconds:.1f} s. All of it is in {settings.home}", soft_wrap=True)
    console.print(f"  history (Parquet)    {settings.lake_url}/processed", soft_wrap=True)
    console.print(f"  warehouse (DuckDB)   {settings.warehouse}", soft_wrap=True)
    console.print(f"  marts (Postgres)     {serving_address(settings)}, schema marts{_while(settings)}", soft_wrap=True)
    console.print("Look next:")
    console.print("  make dashboard       the figures as charts, in the browser")
    console.print("  make dev             the pipeline in the Dagster UI, running every 30 minutes")
    console.print("  make status          each site's last reading, rows and cursor")
    console.print(
        '  .venv/bin/lakehouse sql --marts "select * from mart_glucose_overview order by reading_date desc limit 7"',
        soft_wrap=True,
    )


def _while(settings: Settings) -> str:
    return "" if settings.database_url.get_secret_value() else "; it runs while `make dev` or a command does"


def print_status(console: Console, settings: Settings) -> None:
    """Print each site's last reading with its age, its rows and how far it has been read."""
    lake = Lake.open(settings)
    summaries = {summary.site: summary for summary in site_summaries(settings)}
    of_files = {site.name for site in sites_of_files(settings, lake)}
    names = [site.name for site in load_sites(settings)]
    if not names and not of_files and not summaries:
        console.print("Nothing has been read yet. Run `make run`.")
        return
    table = _table("site", "last reading", "age", "mg/dL", "rows", "read up to", "history", "quarantined", "time zone")
    for name in sorted({*names, *of_files, *summaries}):
        summary, state = summaries.get(name), load_state(lake, name)
        table.add_row(
            name,
            _time(summary.last_reading) if summary else "none",
            _age(summary.last_reading) if summary else "",
            _number(summary.last_glucose_mg_dl, 0) if summary else "",
            f"{summary.readings:,}" if summary else "0",
            _read_up_to(state, is_of_files=name in of_files),
            "" if name in of_files else "complete" if state.history_complete else "partial",
            f"{summary.quarantined:,}" if summary else "0",
            f"{summary.timezone} ({summary.timezone_source})" if summary else "",
        )
    console.print(table)


def _read_up_to(state: IngestionState, *, is_of_files: bool) -> str:
    if is_of_files:
        return "files"
    return "never" if state.newest_ms is None else _time(datetime.fromtimestamp(state.newest_ms / 1000, UTC))


def print_sites_check(console: Console, settings: Settings) -> bool:
    """Ask every server for its version, units, permissions and time zone; returns whether all can be read."""
    table = _table("site", "url", "version", "units", "may read", "may write", "time zone", "clock", "problem")
    checks = [_check(site, settings) for site in load_sites(settings)]
    for row in checks:
        table.add_row(*row)
    console.print(table)
    of_files = [site.name for site in sites_of_files(settings, Lake.open(settings))]
    if of_files:
        console.print(f"Without a server, from files: {', '.join(of_files)}")
    return not any(row[-1] for row in checks)


def print_imports(console: Console, outcomes: Sequence[FileImport]) -> None:
    """Print what each file holds, what was refused and why, and what to do next."""
    table = _table("file", "kind", "rows", "readings", "new", "refused", "left out", "from", "to")
    for each in outcomes:
        report = each.report
        if report is None:
            table.add_row(each.file, each.title or {"known": "imported before"}.get(each.outcome, each.outcome))
            continue
        table.add_row(
            each.file,
            each.title,
            *(f"{count:,}" for count in (report.rows, report.documents)),
            "" if each.outcome == "examined" else f"{report.landed:,}",
            *(f"{sum(counts.values()):,}" for counts in (report.refused, report.left_out)),
            _time(report.first_time),
            _time(report.last_time),
        )
    console.print(table)
    for each in outcomes:
        if each.report is None:
            continue
        for reason, count in each.report.refused.items():
            lines = ", ".join(str(line) for line in each.report.refused_lines[reason])
            more = ", …" if count > len(each.report.refused_lines[reason]) else ""
            console.print(f"{each.file}: {count:,} refused, {reason} (line {lines}{more})", markup=False)
        left_out = ", ".join(f"{reason} {count:,}" for reason, count in each.report.left_out.items())
        if left_out:
            console.print(f"{each.file}: left out by rule: {left_out}", markup=False)
    zones = sorted({each.timezone for each in outcomes if each.report is not None})
    if zones:
        console.print(f"Times without a zone were read as {', '.join(zones)}.")
    if any(each.outcome == "imported" for each in outcomes):
        console.print("Imported. `make run` brings the figures up to date.")
    elif any(each.outcome == "examined" for each in outcomes):
        console.print("Nothing was imported (--dry-run).")


def print_validation(console: Console, results: Sequence[StageResult]) -> None:
    """Print what came of every expectation."""
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "expectation", "met", "severity"):
        table.add_column(title, overflow="fold")
    for title in ("evaluated", "failed"):
        table.add_column(title, justify="right")
    table.add_column("sites", overflow="fold")
    for result in results:
        for outcome in result.outcomes:
            mark = "[green]yes[/]" if outcome.is_met else "[red]NO[/]" if outcome.is_blocking else "[yellow]no[/]"
            failed = outcome.observed if outcome.failed is None else f"{outcome.failed:,}"
            sites = ", ".join(outcome.failing_sites[:5])
            name = outcome.expectation.name
            table.add_row(result.stage, name, mark, outcome.severity, f"{outcome.evaluated:,}", failed, escape(sites))
    console.print(table)
    blocking = sum(len(result.blocking) for result in results)
    warnings = sum(not o.is_met for result in results for o in result.outcomes) - blocking
    console.print(f"{blocking} critical and {warnings} others are not met.")


def print_conservation(console: Console, found: Conservation) -> None:
    """Print whether the accounting agrees with the raw files."""
    for fault in found.faults[:20]:
        console.print(fault, style="red", markup=False, soft_wrap=True)
    agree = f"{found.documents:,} documents of {found.batches:,} batches"
    console.print(f"Law of conservation: {agree}, {len(found.faults):,} do not agree.")
    if found.unaccounted:
        console.print(f"{found.unaccounted:,} batch files are not in this warehouse's accounting.")
    if found.pruned:
        console.print(f"{found.pruned:,} batches lie in an archive; of these the sums are compared.")


def print_quarantine(
    console: Console, counts: Sequence[tuple[str, str, str, int, datetime, datetime]], refused: Sequence[Refused]
) -> None:
    """Print how many documents were refused for what, and the newest of them."""
    if not counts:
        console.print("Nothing is in quarantine.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("site", "collection", "reason"):
        table.add_column(title, overflow="fold")
    table.add_column("documents", justify="right")
    for title in ("first seen", "last seen"):
        table.add_column(title)
    for site, collection, reason, number, first, last in counts:
        table.add_row(site, collection, reason, f"{number:,}", _time(first), _time(last))
    console.print(table)
    console.print()
    table = Table(box=None, pad_edge=False)
    # What the document says gives way first: `show` takes the id.
    for title in ("last seen", "site", "collection", "reason", "id"):
        table.add_column(title, no_wrap=True)
    table.add_column("document", overflow="fold")
    for each in refused:
        text = " ".join(each.document.split())
        shown = (each.site, each.collection, each.reason, each.document_id, text[:200])
        table.add_row(_time(each.last_seen_at), *(escape(value) for value in shown))
    console.print(table)
    total = sum(count[3] for count in counts)
    if len(refused) < total:
        console.print(f"{len(refused):,} of {total:,}; --limit, --site, --reason and --collection choose others.")
    console.print("A whole document, and what to do about it: lakehouse quarantine show ID")


def print_refused(console: Console, each: Refused) -> None:
    """Print a refused document whole."""
    console.print(
        f"{each.site}, {each.collection}, {each.document_id}, batch {each.batch}", soft_wrap=True, markup=False
    )
    console.print(f"Refused: {each.reason}", markup=False)
    console.print(f"First seen {_time(each.first_seen_at)}, last seen {_time(each.last_seen_at)}")
    console.print(f"What to do: {REMEDIES.get(each.reason, '')}", soft_wrap=True, markup=False)
    console.print(pretty(each.document), soft_wrap=True, markup=False)


def print_retried(console: Console, retried: Sequence[Retried]) -> None:
    """Print how many documents left quarantine."""
    if not retried:
        console.print("Nothing is in quarantine that fits.")
        return
    table = _table("site", "collection", "retried", "stored", "duplicates", "still refused")
    for each in retried:
        counts = (each.retried, each.stored, each.duplicates, each.still_refused)
        table.add_row(each.site, each.collection, *(f"{count:,}" for count in counts))
    console.print(table)
    left = sum(each.retried - each.still_refused for each in retried)
    console.print(f"{left:,} of {sum(each.retried for each in retried):,} documents left quarantine.", end=" ")
    console.print("`make run` brings the figures up to date." if left else "Nothing has changed.")


def _check(site: Site, settings: Settings) -> tuple[str, ...]:
    try:
        with NightscoutClient(site, fetch_policy(settings)) as client:
            status, permissions = client.status(), client.permissions()
            zone = site.timezone or client.profile_timezone() or "UTC (none is named)"
    except LakehouseError as error:
        return (site.name, site.url, "", "", "", "", "", "", str(error))
    clock = status.clock_difference_seconds
    return (
        site.name,
        site.url,
        status.version,
        status.units,
        "yes" if permissions.can_read else "no",
        "yes (a token that only reads is enough)" if permissions.can_write else "no",
        zone,
        "" if clock is None else f"{clock:+.0f} s",
        "" if permissions.can_read else "The token or the default role may not read.",
    )


def _figures(summary: SiteSummary | None) -> tuple[str, str, str, str]:
    if summary is None or summary.last_reading is None:
        return ("", "", "", "no readings")
    return (
        _number(summary.time_in_range_pct, 1),
        _number(summary.mean_mg_dl, 0),
        _number(summary.gmi_pct, 1),
        f"{_time(summary.last_reading)} ({_age(summary.last_reading)} ago)",
    )


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold", justify="left" if title in _TEXT_COLUMNS else "right")
    return table


_TEXT_COLUMNS = (
    "collection",
    "file",
    "kind",
    "from",
    "to",
    "site",
    "url",
    "last reading",
    "read up to",
    "history",
    "time zone",
    "problem",
    "version",
    "units",
)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _time(moment: datetime | None) -> str:
    return "none" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _age(moment: datetime | None) -> str:
    if moment is None:
        return ""
    minutes = max(0, int((datetime.now(UTC) - moment).total_seconds() // 60))
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // (24 * 60)} days"


def other_collections(metadata: Mapping[str, Mapping[str, Any]]) -> list[CollectionRun]:
    """What a run did with the collections beside the entries, from the metadata of the assets it materialized."""
    found = []
    for collection in COLLECTIONS[1:]:
        raw = metadata.get(f"raw_{collection.name}")
        processed = metadata.get(f"processed_{collection.name}")
        if raw is None or processed is None:
            continue
        found.append(
            CollectionRun(
                title=collection.name.removeprefix("nightscout_").replace("_", " "),
                fetched=raw["documents_fetched"],
                rows=processed["dagster/row_count"],
                quarantined=processed["quarantined"],
                errors=tuple(report["error"] for report in raw["reports"] if report["error"]),
            )
        )
    return found


def site_runs(metadata: Mapping[str, Mapping[str, Any]]) -> dict[str, SiteRun]:
    """What a run did for each site, from the metadata of the assets it materialized."""
    reports = metadata.get("raw_nightscout_entries", {}).get("reports", [])
    files = metadata.get("raw_file_drop", {}).get("reports", [])
    processed = {row["site"]: row for row in metadata.get("processed_nightscout_entries", {}).get("reports", [])}
    runs = {}
    for report in reports:
        row = processed.get(report["site"], {})
        runs[report["site"]] = SiteRun(
            fetched=report["fetched"],
            stored=row.get("stored", 0),
            duplicates=report["unchanged"] + row.get("duplicates", 0),
            quarantined=row.get("quarantined", 0),
            deletions=report["deletions"],
            error=report["error"],
        )
    for name in processed.keys() - runs.keys():
        # A site without a server: its documents came from files, now or by an import before this run.
        row = processed[name]
        runs[name] = SiteRun(stored=row["stored"], duplicates=row["duplicates"], quarantined=row["quarantined"])
    for report in files:
        # What a file holds that the lake knows never gets to processing.
        run = runs.get(report["site"], SiteRun())
        runs[report["site"]] = replace(
            run, fetched=run.fetched + report["documents"], duplicates=run.duplicates + report["unchanged"]
        )
    return runs
