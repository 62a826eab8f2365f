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
),

-- An episode of level 2 lies within one of level 1, and is told by that one's name.
severe as (
    select
        site,
        kind,
        start_timestamp,
        start_date
    from {{ source('published', 'fact_glucose_episodes') }}
    where level = 2
)

select
    episodes.site,
    periods.period,
    units.unit,
    episodes.episode_id,
    episodes.start_local_timestamp,
    episodes.kind,
    case
        when exists (
            select 1 from severe
            where
                severe.site = episodes.site
                and severe.kind = episodes.kind
                and severe.start_date >= episodes.start_date
                and severe.start_timestamp >= episodes.start_timestamp
                and severe.start_timestamp < coalesce(episodes.end_timestamp, 'infinity')
        ) then case episodes.kind when 'hypoglycemia' then 'Very low' else 'Very high' end
        else case episodes.kind when 'hypoglycemia' then 'Low' else 'High' end
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
where episodes.level = 1
