{{ config(materialized='view') }}

-- A profile of fewer than 14 days is none, so the shortest period shows that of 14.
with periods (period, profile_period) as (
    values ('7 days', '14d'), ('14 days', '14d'), ('30 days', '30d'), ('90 days', '90d')
),

units (unit, mg_dl_per_unit, decimals, step) as (
    {{ glucose_units() }}
),

-- As in the report: a sensor that reads every 15 minutes leaves most slots of five empty.
grids as (
    select
        site,
        case when sensor_interval_minutes > 5 then 15 else 5 end as grid_minutes
    from {{ source('published', 'dim_site') }}
)

select
    profile.site,
    periods.period,
    units.unit,
    profile.minute_of_day,
    timestamp '2000-01-01 00:00' + profile.minute_of_day * interval '1 minute' as clock_time,
    profile.day_count,
    {{ shown('profile.smoothed_p5_mg_dl') }} as p5_glucose,
    {{ shown('profile.smoothed_p25_mg_dl') }} as p25_glucose,
    {{ shown('profile.smoothed_p50_mg_dl') }} as median_glucose,
    {{ shown('profile.smoothed_p75_mg_dl') }} as p75_glucose,
    {{ shown('profile.smoothed_p95_mg_dl') }} as p95_glucose,
    {{ shown('70') }} as target_low,
    {{ shown('180') }} as target_high
from grids
cross join periods
cross join units
inner join {{ source('published', 'fact_glucose_profile') }} as profile
    on
        grids.site = profile.site
        and periods.profile_period = profile.period
        and grids.grid_minutes = profile.grid_minutes
