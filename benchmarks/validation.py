"""Ten million readings validated by Great Expectations and by plain SQL that asks the same: time, ratio and memory.

The rows are made up in the warehouse itself, in the columns of `int_glucose_enriched`. Both sides run in one process,
after each other; the ratio of their times is the figure to keep, since machines differ.
"""

import argparse
import os
import resource
import sys
import tempfile
import time

from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.quality.stages import stage_suite, validate_stage
from nightscout_lakehouse.lib.settings import load_settings
from nightscout_lakehouse.lib.warehouse import open_warehouse

READINGS_A_SITE = 1_000_000

TABLE = f"""
create schema if not exists intermediate;
create or replace table intermediate.int_glucose_enriched as
with numbers as (
    select
        number,
        number // {READINGS_A_SITE} as site_number,
        timestamptz '2016-01-01 00:00:00+00' + to_minutes(5 * (number % {READINGS_A_SITE})) as reading_timestamp,
        round(140 + 60 * sin(number / 37.0) + 20 * sin(number / 5.0))::double as glucose_mg_dl
    from range(?) as t (number)
)

select
    'site-' || site_number || '/' || printf('%024x', number) as entry_id,
    'site-' || site_number as site,
    printf('%024x', number) as nightscout_id,
    reading_timestamp,
    timezone('UTC', reading_timestamp) as reading_local_timestamp,
    timezone('UTC', reading_timestamp)::date as reading_date,
    hour(timezone('UTC', reading_timestamp))::integer as hour_of_day,
    isodow(timezone('UTC', reading_timestamp))::integer as day_of_week,
    glucose_mg_dl,
    case
        when glucose_mg_dl < 70 then 'hypoglycemia' when glucose_mg_dl <= 180 then 'in_range' else 'hyperglycemia'
    end as glucose_category,
    'in_range' as glucose_range,
    0.5::double as glucose_change_mg_dl,
    5.0::double as minutes_since_previous,
    5.0::double as gap_minutes,
    'Flat' as direction,
    'sensor' as device,
    5.0::double as sensor_interval_minutes,
    false as is_near_duplicate
from numbers
"""

# What the suite asks, in one pass and one grouping.
SQL = """
select
    count(*) filter (glucose_mg_dl is null) as without_value,
    count(*) filter (glucose_mg_dl not between 20 and 600) as implausible,
    count(*) filter (reading_timestamp is null) as without_time,
    count(*) filter (reading_timestamp > now() + interval 15 minutes) as in_future,
    count(*) filter (glucose_category not in ('hypoglycemia', 'in_range', 'hyperglycemia')) as unknown_category,
    count(*) filter (glucose_category <> case
        when glucose_mg_dl < 70 then 'hypoglycemia' when glucose_mg_dl <= 180 then 'in_range' else 'hyperglycemia'
    end) as other_category,
    count(*) filter (abs(glucose_change_mg_dl / minutes_since_previous) > 25) as jumps,
    count(*) filter (hour_of_day not between 0 and 23) as no_hour,
    count(*) filter (is_near_duplicate) as near_duplicates,
    count(*) - count(distinct entry_id) as repeated
from intermediate.int_glucose_enriched
"""
MEANS = """
select site from (
    select site, glucose_mg_dl, reading_date > max(reading_date) over (partition by site) - 14 as is_recent
    from intermediate.int_glucose_enriched
) where is_recent group by site having avg(glucose_mg_dl) not between 80 and 250
"""


def main() -> int:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readings", type=int, default=10_000_000)
    readings = parser.parse_args().readings
    with tempfile.TemporaryDirectory(prefix="lakehouse-benchmark-") as home:
        os.environ["LAKEHOUSE_HOME"] = home
        settings = load_settings()
        with open_warehouse(settings) as warehouse:
            warehouse.execute(TABLE, [readings])
        started = time.monotonic()
        with open_warehouse(settings) as warehouse:
            found = warehouse.execute(SQL).fetchone()
            means = warehouse.execute(MEANS).fetchall()
        sql_seconds = time.monotonic() - started
        sql_peak = _peak_mib()
        started = time.monotonic()
        import great_expectations  # noqa: F401

        import_seconds = time.monotonic() - started
        result = validate_stage("enriched", settings, Lake.open(settings), [], everything=True)
    print(f"{readings:,} readings, {len(stage_suite('enriched').expectations)} expectations")
    print(f"plain SQL            {sql_seconds:7.1f} s   peak {sql_peak:,.0f} MiB")
    print(
        f"Great Expectations   {result.seconds:7.1f} s   peak {_peak_mib():,.0f} MiB   (import {import_seconds:.1f} s)"
    )
    print(f"ratio                {result.seconds / sql_seconds:7.1f}")
    met = all(outcome.is_met for outcome in result.outcomes)
    if not met or any(found or ()) or means:
        print("The two sides do not agree that everything is met.", file=sys.stderr)
        return 1
    return 0


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
