{{ config(materialized='view') }}

-- A view: both units and four periods of every reading would be much to write at every run, and a chart asks for one.
with latest as (
    select
        site,
        timezone,
        cast(last_reading_timestamp at time zone timezone as date) as latest_date
    from {{ source('published', 'dim_site') }}
    where last_reading_timestamp is not null
),

periods (period, period_name, period_days) as (
    {{ dashboard_periods() }}
),

units (unit, mg_dl_per_unit, decimals, step) as (
    {{ glucose_units() }}
),

readings as (
    select
        latest.site,
        periods.period,
        units.unit,
        facts.entry_id as point_id,
        facts.reading_local_timestamp,
        facts.glucose_range,
        {{ shown('facts.glucose_mg_dl') }} as glucose,
        {{ shown('70') }} as target_low,
        {{ shown('180') }} as target_high
    from latest
    cross join periods
    cross join units
    inner join {{ source('published', 'fact_glucose_readings') }} as facts
        on latest.site = facts.site and latest.latest_date - periods.period_days < facts.reading_date
),

-- A line must not run across a gap: a point without a value breaks it.
gaps as (
    select
        latest.site,
        periods.period,
        units.unit,
        facts.gap_id as point_id,
        timezone(latest.timezone, facts.start_timestamp + facts.sensor_interval_minutes * interval '1 minute')
            as reading_local_timestamp,
        cast(null as text) as glucose_range,
        cast(null as double precision) as glucose,
        {{ shown('70') }} as target_low,
        {{ shown('180') }} as target_high
    from latest
    cross join periods
    cross join units
    inner join {{ source('published', 'fact_sensor_gaps') }} as facts
        on latest.site = facts.site and latest.latest_date - periods.period_days < facts.start_date
),

points as (
    select * from readings
    union all
    select * from gaps
)

select
    site,
    period,
    unit,
    point_id,
    reading_local_timestamp,
    glucose,
    case when glucose_range = 'very_low' then glucose end as glucose_very_low,
    case when glucose_range = 'low' then glucose end as glucose_low,
    case when glucose_range = 'in_range' then glucose end as glucose_in_range,
    case when glucose_range = 'high' then glucose end as glucose_high,
    case when glucose_range = 'very_high' then glucose end as glucose_very_high,
    target_low,
    target_high
from points
