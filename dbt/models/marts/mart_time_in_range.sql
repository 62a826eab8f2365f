{{ config(indexes=[{'columns': ['site', 'period_days', 'range_order'], 'unique': true}]) }}

with latest as (
    select
        site,
        max(reading_date) as latest_date
    from {{ source('published', 'dim_glucose_date') }}
    group by site
),

periods (period, period_days) as (
    values ('day', 1), ('7d', 7), ('14d', 14), ('30d', 30), ('90d', 90)
),

ranges (range_name, range_order, metric) as (
    values
    ('very_low', 1, 'time_very_low_pct'),
    ('low', 2, 'time_low_pct'),
    ('in_range', 3, 'time_in_range_pct'),
    ('high', 4, 'time_high_pct'),
    ('very_high', 5, 'time_very_high_pct'),
    ('below_range', 6, 'time_below_range_pct'),
    ('above_range', 7, 'time_above_range_pct'),
    ('tight_range', 8, 'time_in_tight_range_pct')
),

-- What a reading stands for: the sensor's interval, which may differ from day to day.
intervals as (
    select
        latest.site,
        periods.period,
        sum(daily.reading_count * daily.sensor_interval_minutes) / sum(daily.reading_count) as minutes_a_reading
    from latest
    cross join periods
    inner join {{ source('published', 'dim_glucose_date') }} as daily
        on latest.site = daily.site and latest.latest_date - periods.period_days < daily.reading_date
    group by latest.site, periods.period
),

shares as (
    select
        metrics.*,
        periods.period_days,
        ranges.range_name,
        ranges.range_order,
        round(metrics.value * metrics.reading_count / 100) as readings_in_range
    from latest
    inner join {{ source('published', 'fact_glucose_metrics') }} as metrics
        on latest.site = metrics.site and latest.latest_date = metrics.period_end_date
    inner join periods on metrics.period = periods.period
    inner join ranges on metrics.metric = ranges.metric
    where metrics.day_part = 'whole' and metrics.readings_used = 'all'
)

select
    shares.site,
    shares.period_days,
    shares.range_name,
    shares.range_order,
    cast(shares.readings_in_range as bigint) as reading_count,
    shares.value as pct,
    cast(shares.readings_in_range * intervals.minutes_a_reading as double precision) as minutes,
    shares.coverage_pct as data_sufficiency_pct,
    shares.target,
    shares.is_target_met
from shares
inner join intervals on shares.site = intervals.site and shares.period = intervals.period
