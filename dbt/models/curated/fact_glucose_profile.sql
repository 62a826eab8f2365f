{{
    config(
        materialized='incremental',
        unique_key=['site', 'period', 'grid_minutes', 'minute_of_day'],
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_sites() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with latest as (
    select
        site,
        max(reading_date) as latest_date
    from {{ ref('dim_glucose_date') }}
    {% if is_incremental() %}
        where {{ is_recomputed_site(this.name) }}
    {% endif %}
    group by site
),

periods (period, period_days) as (
    values ('14d', 14), ('30d', 30), ('90d', 90)
),

readings as (
    select
        facts.site,
        periods.period,
        facts.reading_date,
        facts.reading_local_timestamp,
        facts.glucose_mg_dl
    from {{ ref('fact_glucose_readings') }} as facts
    inner join latest on facts.site = latest.site
    inner join periods on latest.latest_date - periods.period_days < facts.reading_date
),

profile as (
    {{ glucose_profile('readings') }}
)

select
    profile.site,
    profile.period,
    cast(latest.latest_date - periods.period_days + 1 as date) as period_start_date,
    latest.latest_date as period_end_date,
    profile.grid_minutes,
    profile.minute_of_day,
    profile.reading_count,
    profile.day_count,
    profile.p5_mg_dl,
    profile.p10_mg_dl,
    profile.p25_mg_dl,
    profile.p50_mg_dl,
    profile.p75_mg_dl,
    profile.p90_mg_dl,
    profile.p95_mg_dl,
    profile.smoothed_p5_mg_dl,
    profile.smoothed_p10_mg_dl,
    profile.smoothed_p25_mg_dl,
    profile.smoothed_p50_mg_dl,
    profile.smoothed_p75_mg_dl,
    profile.smoothed_p90_mg_dl,
    profile.smoothed_p95_mg_dl
from profile
inner join latest on profile.site = latest.site
inner join periods on profile.period = periods.period
