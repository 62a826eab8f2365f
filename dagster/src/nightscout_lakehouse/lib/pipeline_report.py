"""What the commands print: the summary of a run, the state of the sites, the check of the servers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.ingestion import fetch_policy, load_state
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import NightscoutClient
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site, load_sites
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
    console.print(f"  warehouse (DuckDB)   {settings.warehouse_path}", soft_wrap=True)
    console.print("Look next:")
    console.print("  make dev             the pipeline in the Dagster UI, running every 30 minutes")
    console.print("  make status          each site's last reading, rows and cursor")
    console.print(
        '  .venv/bin/lakehouse sql --marts "select * from mart_glucose_overview order by reading_date desc limit 7"'
    )


def print_status(console: Console, settings: Settings) -> None:
    """Print each site's last reading with its age, its rows and how far it has been read."""
    lake = Lake.open(settings)
    summaries = {summary.site: summary for summary in site_summaries(settings)}
    names = [site.name for site in load_sites(settings)]
    if not names and not summaries:
        console.print("Nothing has been read yet. Run `make run`.")
        return
    table = _table("site", "last reading", "age", "mg/dL", "rows", "read up to", "history", "quarantined", "time zone")
    for name in sorted({*names, *summaries}):
        summary, state = summaries.get(name), load_state(lake, name)
        table.add_row(
            name,
            _time(summary.last_reading) if summary else "none",
            _age(summary.last_reading) if summary else "",
            _number(summary.last_glucose_mg_dl, 0) if summary else "",
            f"{summary.readings:,}" if summary else "0",
            _time(datetime.fromtimestamp(state.newest_ms / 1000, UTC)) if state.newest_ms is not None else "never",
            "complete" if state.history_complete else "partial",
            f"{summary.quarantined:,}" if summary else "0",
            f"{summary.timezone} ({summary.timezone_source})" if summary else "",
        )
    console.print(table)


def print_sites_check(console: Console, settings: Settings) -> bool:
    """Ask every server for its version, units, permissions and time zone; returns whether all can be read."""
    table = _table("site", "url", "version", "units", "may read", "may write", "time zone", "clock", "problem")
    checks = [_check(site, settings) for site in load_sites(settings)]
    for row in checks:
        table.add_row(*row)
    console.print(table)
    return not any(row[-1] for row in checks)


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


_TEXT_COLUMNS = ("site", "url", "last reading", "read up to", "history", "time zone", "problem", "version", "units")


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
    return runs
