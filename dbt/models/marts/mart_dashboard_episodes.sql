{{ config(materialized='view') }}

with latest as (
    select
        site,
        cast(last_reading_timestamp at time zone timezone as date) as latest_date
    from {{ source('published', 'dim_site') }}
    where last_reading_timestamp is not null
),

periods (period, period_name, period_days) as (
    {{ dashboard_periods() }}
),

units (unit, mg_dl_per_unit, decimals, step) as (
    {{ glucose_units() }}
)

select
    episodes.site,
    periods.period,
    units.unit,
    episodes.episode_id,
    episodes.start_local_timestamp,
    episodes.kind,
    episodes.level,
    case
        when episodes.kind = 'hypoglycemia' and episodes.level = 2 then 'Very low'
        when episodes.kind = 'hypoglycemia' then 'Low'
        when episodes.level = 2 then 'Very high'
        else 'High'
    end as kind_label,
    episodes.duration_minutes,
    {{ shown('episodes.extreme_mg_dl') }} as extreme_glucose,
    concat_ws(
        ', ',
        case when episodes.is_open then 'still going on' end,
        case when episodes.is_nocturnal then 'at night' end,
        case
            when
                episodes.is_prolonged_below_54 or episodes.is_prolonged_below_70
                or episodes.is_prolonged_above_180 or episodes.is_prolonged_above_250
                then '2 hours or more'
        end,
        case when episodes.has_suspect_readings then 'perhaps pressure on the sensor' end,
        case when episodes.has_warm_up_readings then 'new sensor' end,
        case when episodes.has_gap then 'readings missing' end
    ) as notes
from latest
cross join periods
cross join units
inner join {{ source('published', 'fact_glucose_episodes') }} as episodes
    on latest.site = episodes.site and latest.latest_date - periods.period_days < episodes.start_date
