"""The figures of an AGP report, from the warehouse; reads only.

The period's figures are computed from the readings that count, by the formulas of `docs/reference/models.md`, so that
any period can be asked for. The profile is the query of the model `fact_glucose_profile` itself, over the asked period.
"""

from collections import defaultdict
from datetime import date, datetime, timedelta
from typing import Any

import duckdb
from jinja2 import Environment, StrictUndefined

from nightscout_lakehouse.lib.agp_report.content import (
    RANGES,
    AgpReport,
    CurvePoint,
    ProfilePoint,
    RangeShare,
    Unit,
)
from nightscout_lakehouse.lib.errors import LakeError, LakehouseError
from nightscout_lakehouse.lib.settings import DBT_PROJECT_DIR

MOST_DAYS = 366
SUFFICIENT_DAYS, SUFFICIENT_PCT = 14, 70
_THUMBNAIL_DAYS = 14


def choose_site(warehouse: duckdb.DuckDBPyConnection, name: str | None) -> str:
    """The site of this name, or the only one if no name is given.

    Raises:
        LakehouseError: There is no such site, or a name is needed; lists the sites.
    """
    _require_models(warehouse)
    sites = [row[0] for row in warehouse.execute("select site from curated.dim_site order by site").fetchall()]
    if not sites:
        raise LakehouseError("The warehouse has no site yet.", "Run `make run` first.")
    listed = ", ".join(sites)
    if name is None:
        if len(sites) > 1:
            raise LakehouseError(f"There are {len(sites)} sites: {listed}.", "Name the one to report on.")
        return str(sites[0])
    if name not in sites:
        raise LakehouseError(f"There is no site {name!r}.", f"There is: {listed}.")
    return name


def display_unit(warehouse: duckdb.DuckDBPyConnection, site: str) -> Unit:
    """The unit that the site's newest profile names, or mg/dL while nothing says it.

    Raises:
        LakeError: The lake's profiles cannot be read.
    """
    known = warehouse.execute(
        "select 1 from duckdb_views() where schema_name = 'lake' and view_name = 'nightscout_profiles'"
    ).fetchall()
    if not known:
        return Unit.MG_DL
    try:
        row = warehouse.execute(
            """
            select max_by(lower(units), (profile_timestamp, profile_id)) filter (units is not null)
            from lake.nightscout_profiles
            where site = ? and kind = 'profile' and not is_deleted and not is_duplicate
            """,
            [site],
        ).fetchone()
    except duckdb.IOException as error:
        raise LakeError(f"The lake cannot be read: {error}", "With --unit, it need not be.") from None
    return Unit.MMOL_L if row is not None and str(row[0]).startswith("mmol") else Unit.MG_DL


def load_report(
    warehouse: duckdb.DuckDBPyConnection, site: str, days: int, until: date | None, made_at: datetime
) -> AgpReport:
    """Read a period's figures, profile and days.

    Days before the site's first reading and after its newest one are not part of the period: nothing can be expected of
    them.

    Args:
        warehouse: An open connection whose time zone is UTC.
        site: A site of the warehouse.
        days: Length of the period in local days, 1 to 366.
        until: Its last local day; the newest one with readings if None, or if that is earlier.
        made_at: What the page gives as the time it was made.

    Raises:
        LakehouseError: The number of days is out of bounds, or there are no readings in the period.
    """
    if not 1 <= days <= MOST_DAYS:
        raise LakehouseError(
            f"A report over {days} days cannot be made.", f"Give --days a number from 1 to {MOST_DAYS}."
        )
    _require_models(warehouse)
    span = _row(
        warehouse,
        """
        select sites.timezone, min(days.reading_date), max(days.reading_date)
        from curated.dim_site as sites
        left join curated.dim_glucose_date as days on sites.site = days.site
        where sites.site = $site
        group by sites.timezone
        """,
        site=site,
    )
    timezone, first_date, newest_date = span
    if newest_date is None:
        raise LakehouseError(f"Site {site} has no readings yet.", "`make status` shows what was read.")
    end = min(until or newest_date, newest_date)
    if end < first_date:
        raise LakehouseError(
            f"Site {site} has no readings up to {end}.",
            f"Its readings are from {first_date} to {newest_date}: give --until a day in between.",
        )
    start = max(end - timedelta(days=days - 1), first_date)
    figures = _row(warehouse, _FIGURES, site=site, start=start, end=end)
    reading_count, days_with_readings, expected, mean, sd, *counts = figures
    if not reading_count:
        raise LakehouseError(
            f"Site {site} has no readings from {start} to {end}.",
            f"Its readings are from {first_date} to {newest_date}: give --until a day in between.",
        )
    shares = {name: 100.0 * count / reading_count for name, count in zip(RANGES, counts, strict=True)}
    gri = glycemia_risk_index(shares)
    active_pct = min(100.0, 100.0 * reading_count / expected)
    return AgpReport(
        site=site,
        timezone=timezone,
        start_date=start,
        end_date=end,
        days_with_readings=days_with_readings,
        reading_count=reading_count,
        active_pct=active_pct,
        is_sufficient=(end - start).days + 1 >= SUFFICIENT_DAYS and active_pct >= SUFFICIENT_PCT,
        mean_mg_dl=mean,
        sd_mg_dl=sd,
        cv_pct=None if sd is None else 100.0 * sd / mean,
        gmi_pct=3.31 + 0.02392 * mean,
        gri=gri,
        gri_zone=risk_zone(gri),
        ranges=tuple(RangeShare(name, pct) for name, pct in shares.items()),
        curve=_curve(warehouse, site, start, end),
        profiles=_profiles(warehouse, site, max(start, end - timedelta(days=_THUMBNAIL_DAYS - 1)), end),
        made_at=made_at,
        intervals=period_intervals(warehouse, site, days, end),
    )


def period_intervals(
    warehouse: duckdb.DuckDBPyConnection, site: str, days: int, end: date
) -> dict[str, tuple[float, float]]:
    """The 95 % intervals of this period by metric, from `fact_glucose_metrics`; none for a period that it lacks."""
    if not warehouse.execute(
        "select 1 from duckdb_tables() where schema_name = 'curated' and table_name = 'fact_glucose_metrics'"
    ).fetchall():
        return {}
    rows = warehouse.execute(
        """
        select metric, ci_low, ci_high
        from curated.fact_glucose_metrics
        where
            site = $site and period = $period and period_end_date = $end and day_part = 'whole'
            and readings_used = 'all' and ci_low is not null
        """,
        {"site": site, "period": f"{days}d", "end": end},
    ).fetchall()
    return {metric: (low, high) for metric, low, high in rows}


def glycemia_risk_index(shares: dict[str, float]) -> float:
    """GRI of the ranges' shares in percent (Klonoff et al., J Diabetes Sci Technol 2022); at most 100."""
    weights = {"very_low": 3.0, "low": 2.4, "very_high": 1.6, "high": 0.8}
    return min(100.0, sum(weight * shares[name] for name, weight in weights.items()))


def risk_zone(gri: float) -> str:
    """Zone of the GRI: A to 20, B to 40, C to 60, D to 80, E above."""
    return next(zone for zone, upper in zip("ABCDE", (20, 40, 60, 80, 100), strict=True) if gri <= upper)


# Nothing is expected after the newest reading, since the day goes on. Days without readings are expected too, at the
# interval of the day before.
_FIGURES = """
with newest as (
    select max(reading_timestamp) as newest_timestamp, max(reading_date) as newest_date
    from curated.fact_glucose_readings
    where site = $site
),

days as (
    select
        cast(all_days.day as date) as reading_date,
        coalesce(found.sensor_interval_minutes, last_value(found.sensor_interval_minutes ignore nulls) over (
            order by all_days.day
        ), sites.sensor_interval_minutes) as sensor_interval_minutes,
        timezone(sites.timezone, cast(all_days.day as timestamp)) as day_start,
        timezone(sites.timezone, cast(all_days.day as timestamp) + interval 1 day) as day_end
    from range(cast($start as timestamp), cast($end as timestamp) + interval 1 day, interval 1 day) as all_days (day)
    cross join (select timezone, sensor_interval_minutes from curated.dim_site where site = $site) as sites
    left join curated.dim_glucose_date as found
        on found.site = $site and found.reading_date = cast(all_days.day as date)
),

expected as (
    select
        sum(
            case
                when days.reading_date < newest.newest_date then epoch(days.day_end) - epoch(days.day_start)
                else least(
                    epoch(days.day_end) - epoch(days.day_start),
                    epoch(newest.newest_timestamp) - epoch(days.day_start) + days.sensor_interval_minutes * 60
                )
            end / 60.0 / days.sensor_interval_minutes
            order by days.reading_date
        ) as expected_reading_count
    from days
    cross join newest
)

select
    count(*),
    count(distinct reading_date),
    (select expected_reading_count from expected),
    avg(glucose_mg_dl order by glucose_mg_dl),
    stddev_samp(glucose_mg_dl order by glucose_mg_dl),
    count(*) filter (glucose_range = 'very_low'),
    count(*) filter (glucose_range = 'low'),
    count(*) filter (glucose_range = 'in_range'),
    count(*) filter (glucose_range = 'high'),
    count(*) filter (glucose_range = 'very_high')
from curated.fact_glucose_readings
where site = $site and reading_date between $start and $end
"""


def _curve(warehouse: duckdb.DuckDBPyConnection, site: str, start: date, end: date) -> tuple[CurvePoint, ...]:
    """The smoothed profile; on the 15-minute grid where most readings come more than 5 minutes apart."""
    interval = _row(
        warehouse,
        """
        select median(sensor_interval_minutes) from curated.fact_glucose_readings
        where site = $site and reading_date between $start and $end
        """,
        site=site,
        start=start,
        end=end,
    )[0]
    grid_minutes = 5 if interval <= 5 else 15
    rows = warehouse.execute(
        f"""
        with asked_readings as (
            select site, 'asked' as period, reading_date, reading_local_timestamp, glucose_mg_dl
            from curated.fact_glucose_readings
            where site = $site and reading_date between $start and $end
        )

        select
            minute_of_day, smoothed_p5_mg_dl, smoothed_p25_mg_dl, smoothed_p50_mg_dl, smoothed_p75_mg_dl,
            smoothed_p95_mg_dl
        from ({_profile_query("asked_readings")})
        where grid_minutes = $grid_minutes
        order by minute_of_day
        """,
        {"site": site, "start": start, "end": end, "grid_minutes": grid_minutes},
    ).fetchall()
    if all(row[3] is None for row in rows):
        return ()
    # A slot's percentiles are drawn at its middle.
    return tuple(CurvePoint(minute + grid_minutes / 2, *percentiles) for minute, *percentiles in rows)


def _profile_query(readings: str) -> str:
    """The query of `fact_glucose_profile` over a relation of readings."""
    text = (DBT_PROJECT_DIR / "macros" / "glucose_profile.sql").read_text(encoding="utf-8")
    # It makes SQL, not HTML.
    macros: Any = Environment(undefined=StrictUndefined, autoescape=False).from_string(text).module  # noqa: S701
    return str(macros.glucose_profile(readings))


def _profiles(
    warehouse: duckdb.DuckDBPyConnection, site: str, start: date, end: date
) -> dict[date, tuple[ProfilePoint, ...]]:
    rows = warehouse.execute(
        """
        select reading_date, reading_local_timestamp, glucose_mg_dl
        from curated.fact_glucose_readings
        where site = $site and reading_date between $start and $end
        order by reading_timestamp, entry_id
        """,
        {"site": site, "start": start, "end": end},
    ).fetchall()
    days = defaultdict[date, list[ProfilePoint]](list)
    for day, local_time, glucose in rows:
        days[day].append(ProfilePoint(local_time, glucose))
    return {day: tuple(points) for day, points in days.items()}


def _require_models(warehouse: duckdb.DuckDBPyConnection) -> None:
    names = {"dim_site", "dim_glucose_date", "fact_glucose_readings"}
    found = warehouse.execute("select table_name from duckdb_tables() where schema_name = 'curated'").fetchall()
    if not names <= {row[0] for row in found}:
        raise LakehouseError("The warehouse has no models yet.", "Run `make run` first.")


def _row(warehouse: duckdb.DuckDBPyConnection, query: str, **parameters: Any) -> tuple[Any, ...]:
    rows = warehouse.execute(query, parameters).fetchall()
    if len(rows) != 1:
        raise LakehouseError(f"The warehouse does not know site {parameters['site']!r}.", "Run `make run` first.")
    return tuple(rows[0])
