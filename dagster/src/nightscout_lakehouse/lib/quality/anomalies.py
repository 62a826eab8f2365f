"""What is unusual in a site's readings, though each of them is plausible: silence, gaps, a stuck sensor, a drift.

All but the freshness look back from the site's newest reading, so that they say the same whenever they are asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import duckdb

# The hours of a day are compared with the same hours of so many earlier weeks.
WEEKS = 4
LEAST_SHARE_OF_USUAL_PCT = 50
# A sensor that warms up is silent for two hours at the most.
LONGEST_GAP_HOURS = 3
STUCK_HOURS = 2
STUCK_READINGS = 8
DRIFT_DAYS = 28
LEAST_DRIFT_DAYS = 14
# A robust z-score: 1.4826 * the median of absolute deviations is the standard deviation of a normal distribution.
DRIFT_LIMIT = 4.0
LEAST_DRIFT_MG_DL = 30


@dataclass(frozen=True)
class Anomaly:
    """Something unusual.

    Attributes:
        check: Which check found it.
        site: Whose readings.
        observed: What was found.
        limit: What would not be unusual.
        message: One sentence with both.
    """

    check: str
    site: str
    observed: float
    limit: float
    message: str


CHECKS: Mapping[str, str] = {
    "readings_are_fresh": "No site is silent for longer than LAKEHOUSE_STALE_MINUTES.",
    "volume_is_as_usual": f"The last 24 hours have at least {LEAST_SHARE_OF_USUAL_PCT} % of the readings that the same "
    f"hours of the {WEEKS} weeks before had (median).",
    "no_long_sensor_gap": f"No gap of more than {LONGEST_GAP_HOURS} hours reaches into the last 24 hours of readings.",
    "no_stuck_sensor": f"No sensor shows the same value for {STUCK_HOURS} hours or more within the last 24 hours.",
    "daily_mean_does_not_drift": f"The mean of the last 24 hours is not far from the {DRIFT_DAYS} days before.",
}


def find_anomalies(warehouse: duckdb.DuckDBPyConnection, now: datetime, stale_minutes: int) -> dict[str, list[Anomaly]]:
    """Look at the newest readings of every site.

    Args:
        warehouse: With the curated models.
        now: The time, for the freshness.
        stale_minutes: After how long without a reading a site counts as silent.

    Returns:
        The anomalies of each of `CHECKS`, sorted by site.
    """
    found = {
        "readings_are_fresh": _stale(warehouse, now, stale_minutes),
        "volume_is_as_usual": _volume(warehouse),
        "no_long_sensor_gap": _gaps(warehouse),
        "no_stuck_sensor": _stuck(warehouse),
        "daily_mean_does_not_drift": _drift(warehouse),
    }
    return {check: found[check] for check in CHECKS}


_NEWEST = """
newest as (
    select site, last_reading_timestamp as last_reading
    from curated.dim_site
    where last_reading_timestamp is not null
),

recent as (
    select facts.*, newest.last_reading
    from curated.fact_glucose_readings as facts
    inner join newest on facts.site = newest.site
    -- The date bound lets DuckDB skip most of the history.
    where facts.reading_date >= cast(newest.last_reading as date) - 2
        and facts.reading_timestamp > newest.last_reading - interval 24 hours
)
"""


def _stale(warehouse: duckdb.DuckDBPyConnection, now: datetime, stale_minutes: int) -> list[Anomaly]:
    rows = warehouse.execute(
        f"""
        with {_NEWEST}

        select site, epoch_ms(?::timestamptz) / 60000.0 - epoch_ms(last_reading) / 60000.0 as minutes
        from newest
        where minutes > ?
        order by site
        """,
        [now, stale_minutes],
    ).fetchall()
    return [
        Anomaly("readings_are_fresh", site, minutes, stale_minutes, f"{site}: no reading for {_duration(minutes)}.")
        for site, minutes in rows
    ]


def _volume(warehouse: duckdb.DuckDBPyConnection) -> list[Anomaly]:
    rows = warehouse.execute(
        f"""
        with {_NEWEST},

        now_count as (
            select site, count(*) as readings, any_value(last_reading) as last_reading from recent group by site
        ),

        weeks as (
            select now_count.site, week, count(facts.entry_id) as readings
            from now_count
            cross join range(1, {WEEKS + 1}) as weeks (week)
            left join curated.fact_glucose_readings as facts
                on facts.site = now_count.site
                and facts.reading_date between cast(now_count.last_reading as date) - 7 * {WEEKS} - 2
                    and cast(now_count.last_reading as date)
                and facts.reading_timestamp <= now_count.last_reading - to_days(7 * cast(week as integer))
                and facts.reading_timestamp > now_count.last_reading - to_days(7 * cast(week as integer) + 1)
            group by now_count.site, week
        ),

        usual as (
            select site, median(readings) as readings from weeks where readings > 0 group by site having count(*) >= 2
        )

        select now_count.site, now_count.readings, usual.readings
        from now_count
        inner join usual on now_count.site = usual.site
        where now_count.readings < usual.readings * {LEAST_SHARE_OF_USUAL_PCT} / 100
        order by now_count.site
        """
    ).fetchall()
    return [
        Anomaly(
            "volume_is_as_usual",
            site,
            readings,
            usual * LEAST_SHARE_OF_USUAL_PCT / 100,
            f"{site}: {readings} readings in 24 hours, where {usual:.0f} are usual.",
        )
        for site, readings, usual in rows
    ]


def _gaps(warehouse: duckdb.DuckDBPyConnection) -> list[Anomaly]:
    rows = warehouse.execute(
        f"""
        with {_NEWEST}

        select newest.site, max(gaps.gap_minutes)
        from newest
        inner join curated.fact_sensor_gaps as gaps on newest.site = gaps.site
        where gaps.end_timestamp > newest.last_reading - interval 24 hours
            and gaps.gap_minutes > 60 * {LONGEST_GAP_HOURS}
        group by newest.site
        order by newest.site
        """
    ).fetchall()
    return [
        Anomaly(
            "no_long_sensor_gap",
            site,
            minutes,
            60 * LONGEST_GAP_HOURS,
            f"{site}: a gap of {_duration(minutes)} that ended within the last 24 hours of readings.",
        )
        for site, minutes in rows
    ]


def _stuck(warehouse: duckdb.DuckDBPyConnection) -> list[Anomaly]:
    rows = warehouse.execute(
        f"""
        with {_NEWEST},

        numbered as (
            select
                site, device, glucose_mg_dl, reading_timestamp,
                row_number() over (partition by site, device order by reading_timestamp, entry_id)
                - row_number() over (
                    partition by site, device, glucose_mg_dl order by reading_timestamp, entry_id
                ) as run
            from recent
        ),

        runs as (
            select
                site, device, glucose_mg_dl, count(*) as readings,
                date_diff('minute', min(reading_timestamp), max(reading_timestamp)) as minutes
            from numbered
            group by site, device, glucose_mg_dl, run
        )

        select site, max(minutes), arg_max(glucose_mg_dl, minutes)
        from runs
        where minutes >= 60 * {STUCK_HOURS} and readings >= {STUCK_READINGS}
        group by site
        order by site
        """
    ).fetchall()
    return [
        Anomaly(
            "no_stuck_sensor",
            site,
            minutes,
            60 * STUCK_HOURS,
            f"{site}: {value:.0f} mg/dL without a change for {_duration(minutes)}; the sensor may be stuck.",
        )
        for site, minutes, value in rows
    ]


def _drift(warehouse: duckdb.DuckDBPyConnection) -> list[Anomaly]:
    rows = warehouse.execute(
        f"""
        with {_NEWEST},

        last_day as (
            select site, avg(glucose_mg_dl) as mean, count(*) as readings, any_value(last_reading) as last_reading
            from recent
            group by site
        ),

        days as (
            select daily.site, daily.avg_glucose_mg_dl as mean
            from curated.dim_glucose_date as daily
            inner join last_day on daily.site = last_day.site
            where daily.reading_date < cast(last_day.last_reading as date) - 1
                and daily.reading_date >= cast(last_day.last_reading as date) - 1 - {DRIFT_DAYS}
                and daily.data_sufficiency_pct >= 50
        ),

        usual as (
            select site, median(mean) as middle, 1.4826 * mad(mean) as spread, count(*) as days
            from days
            group by site
        )

        select last_day.site, last_day.mean, usual.middle, usual.spread
        from last_day
        inner join usual on last_day.site = usual.site
        where usual.days >= {LEAST_DRIFT_DAYS}
            and abs(last_day.mean - usual.middle) > greatest({DRIFT_LIMIT} * usual.spread, {LEAST_DRIFT_MG_DL})
        order by last_day.site
        """
    ).fetchall()
    return [
        Anomaly(
            "daily_mean_does_not_drift",
            site,
            mean,
            max(DRIFT_LIMIT * spread, LEAST_DRIFT_MG_DL),
            f"{site}: a mean of {mean:.0f} mg/dL in 24 hours, where {middle:.0f} is usual.",
        )
        for site, mean, middle, spread in rows
    ]


def _duration(minutes: float) -> str:
    hours, rest = divmod(round(minutes), 60)
    if hours >= 48:
        return f"{hours // 24} days"
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min"
