"""What the lakehouse holds, in a few figures: for the run's summary, `lakehouse status` and asset metadata."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import duckdb

from nightscout_lakehouse.lib.nightscout_collections import DEVICE_STATUS, ENTRIES, PROFILES, TREATMENTS, Collection
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.table_profile import PREVIEW_ROWS, markdown_table
from nightscout_lakehouse.lib.warehouse import connect_warehouse

SUMMARY_DAYS = 14

# Which columns a collection's preview shows.
_PREVIEW = {
    ENTRIES.name: ("glucose_mg_dl", "direction", "device"),
    TREATMENTS.name: ("event_type", "insulin_units", "carbs_g", "duration_minutes", "entered_by"),
    DEVICE_STATUS.name: ("device", "iob_units", "cob_g", "pump_reservoir_units", "uploader_battery_pct"),
    PROFILES.name: ("default_profile_name", "timezone", "units"),
}


@dataclass(frozen=True)
class CollectionOverview:
    """The processed documents of a collection at a glance; times are UTC. Live rows are not deleted nor repeated."""

    live_rows: int
    rows_by_kind: dict[str, int]
    quarantine_by_reason: dict[str, int]
    first_time: datetime | None
    last_time: datetime | None
    preview: str


@dataclass(frozen=True)
class SiteSummary:
    """One site: how much it holds, and its figures over the last days with readings.

    Attributes:
        site: Name of the site.
        timezone: Zone that its days are counted in.
        timezone_source: `configuration`, `profile` or `default`.
        readings: Readings that count, over all time.
        quarantined: Documents in quarantine.
        last_reading: Time of the newest reading, UTC.
        last_glucose_mg_dl: Its value.
        days: Local days the figures below are from, at most 14.
        sufficiency_pct: Readings present of those expected in these 14 days, or since the site's first.
        mean_mg_dl: Mean glucose.
        time_in_range_pct: Share of readings from 70 to 180 mg/dL.
        time_below_range_pct: Share below 70 mg/dL.
        gmi_pct: Glucose management indicator.
    """

    site: str
    timezone: str
    timezone_source: str
    readings: int
    quarantined: int
    last_reading: datetime | None
    last_glucose_mg_dl: float | None
    days: int
    sufficiency_pct: float | None
    mean_mg_dl: float | None
    time_in_range_pct: float | None
    time_below_range_pct: float | None
    gmi_pct: float | None


def collection_overview(connection: duckdb.DuckDBPyConnection, collection: Collection) -> CollectionOverview:
    """Counts, reasons and the newest rows of a collection; live rows are those of its first kind."""
    counts = f"ops.partitions where collection = '{collection.name}'"
    moment = collection.time_column
    kinds = connection.execute(f"select label, sum(row_count)::bigint from {counts} group by 1 order by 1")
    rows_by_kind = dict(kinds.fetchall())
    reasons = connection.execute(
        f"select quarantine_reason, sum(row_count)::bigint from {counts} and kind = 'quarantined'"
        " group by 1 order by 2 desc, 1"
    ).fetchall()
    live, first, last = connection.execute(
        f"select coalesce(sum(live_row_count), 0)::bigint, min(first_live_time), max(last_live_time) from {counts}"
    ).fetchall()[0]
    # The months that the newest rows are in: a literal, so that no file of another month is opened.
    months = connection.execute(
        f"select month, sum(live_row_count) from {counts} and live_row_count > 0 group by 1 order by 1 desc"
    ).fetchall()
    shown = ", ".join(["site", moment, *_PREVIEW[collection.name]])
    newest = connection.execute(
        f"select {shown} from lake.{collection.name} where kind = '{collection.kinds[0]}'"
        f" and month >= '{_month_of_newest(months)}' and not is_deleted and not is_duplicate"
        f" order by {moment} desc, site limit {PREVIEW_ROWS}"
    )
    preview = markdown_table([column[0] for column in newest.description or []], newest.fetchall())
    return CollectionOverview(live, rows_by_kind, dict(reasons), first, last, preview)


def _month_of_newest(months: Sequence[tuple[str, int]]) -> str:
    """The month from which on there are as many rows as a preview shows, of months with their rows, newest first."""
    rows = 0
    for month, count in months:
        rows += count
        if rows >= PREVIEW_ROWS:
            return month
    return ""


def site_summaries(settings: Settings) -> list[SiteSummary]:
    """The figures of every site in the warehouse, in the order of their names; empty before the first run."""
    if not settings.has_warehouse:
        return []
    with connect_warehouse(settings, read_only=True) as connection:
        try:
            rows = connection.execute(
                _SITE_SUMMARY_SQL, {"days": SUMMARY_DAYS, "period": f"{SUMMARY_DAYS}d"}
            ).fetchall()
        except duckdb.CatalogException:
            # The first run was stopped before its models were built.
            return []
    return [SiteSummary(*row) for row in rows]


_SITE_SUMMARY_SQL = """
with totals as (
    select site, sum(reading_count)::bigint as readings, max(reading_date) as last_date
    from curated.dim_glucose_date
    group by site
),

recent_days as (
    select days.site, count(*) as days
    from curated.dim_glucose_date as days
    inner join totals on days.site = totals.site
    where days.reading_date > totals.last_date - $days::integer
    group by days.site
),

newest as (
    select
        facts.site,
        max_by(facts.glucose_mg_dl, facts.reading_timestamp) as last_glucose_mg_dl,
        max(facts.reading_timestamp) as last_reading
    from curated.fact_glucose_readings as facts
    inner join totals on facts.site = totals.site and facts.reading_date = totals.last_date
    group by facts.site
),

figures as (
    pivot (
        select site, metric, value from curated.fact_glucose_metrics
        where period = $period and day_part = 'whole' and readings_used = 'all'
    )
    on metric in ('coverage_pct', 'mean_mg_dl', 'time_in_range_pct', 'time_below_range_pct', 'gmi_pct')
    using any_value(value)
    group by site
),

refused as (
    select site, count(*) as quarantined from lake.nightscout_entries where kind = 'quarantined' group by site
)

select
    sites.site,
    sites.timezone,
    sites.timezone_source,
    coalesce(totals.readings, 0),
    coalesce(refused.quarantined, 0),
    newest.last_reading,
    newest.last_glucose_mg_dl,
    coalesce(recent_days.days, 0),
    figures.coverage_pct,
    figures.mean_mg_dl,
    figures.time_in_range_pct,
    figures.time_below_range_pct,
    figures.gmi_pct
from ops.sites as sites
left join totals on sites.site = totals.site
left join recent_days on sites.site = recent_days.site
left join newest on sites.site = newest.site
left join figures on sites.site = figures.site
left join refused on sites.site = refused.site
order by sites.site
"""
