{{ config(indexes=[{'columns': ['site', 'meal_timestamp']}]) }}

with latest as (
    select
        site,
        max(reading_date) as latest_date
    from {{ source('published', 'fact_daily_insulin') }}
    group by site
)

select
    facts.meal_id,
    facts.site,
    facts.meal_timestamp,
    facts.meal_local_timestamp,
    facts.reading_date,
    facts.carbs_g,
    facts.bolus_units,
    facts.extended_units,
    facts.first_bolus_minutes,
    facts.has_meal_within_3h,
    facts.has_bolus_within_3h,
    facts.response_coverage_pct,
    facts.is_response_covered,
    facts.start_glucose_mg_dl,
    facts.peak_glucose_mg_dl,
    facts.minutes_to_peak,
    facts.rise_mg_dl,
    facts.two_hour_glucose_mg_dl,
    facts.nadir_glucose_mg_dl,
    facts.incremental_area_mg_dl_min
from latest
inner join {{ source('published', 'fact_meals') }} as facts
    on latest.site = facts.site and latest.latest_date - 90 < facts.reading_date
