{{
    config(indexes=[
        {'columns': ['episode_id'], 'unique': true},
        {'columns': ['site', 'start_timestamp']},
    ])
}}

with latest as (
    select
        site,
        max(reading_date) as latest_date
    from {{ source('published', 'dim_glucose_date') }}
    group by site
)

select
    episodes.episode_id,
    episodes.site,
    episodes.kind,
    episodes.level,
    episodes.start_timestamp,
    episodes.start_local_timestamp,
    episodes.start_date,
    cast(extract(hour from episodes.start_local_timestamp) as integer) as start_hour,
    episodes.end_timestamp,
    episodes.duration_minutes,
    episodes.extreme_mg_dl,
    episodes.extreme_mg_dl / 18.01559 as extreme_mmol_l,
    episodes.extreme_timestamp,
    episodes.area_mg_dl_minutes,
    episodes.time_to_recovery_minutes,
    episodes.reading_count,
    episodes.is_open,
    episodes.has_gap,
    episodes.is_prolonged_below_54,
    episodes.is_prolonged_below_70,
    episodes.is_prolonged_above_180,
    episodes.is_prolonged_above_250,
    episodes.is_nocturnal,
    episodes.has_suspect_readings,
    episodes.has_warm_up_readings
from latest
inner join {{ source('published', 'fact_glucose_episodes') }} as episodes
    on latest.site = episodes.site and latest.latest_date - 90 < episodes.start_date
