{{ config(indexes=[{'columns': ['site', 'period', 'grid_minutes', 'minute_of_day'], 'unique': true}]) }}

select
    site,
    period,
    period_start_date,
    period_end_date,
    grid_minutes,
    minute_of_day,
    to_char(time '00:00' + minute_of_day * interval '1 minute', 'HH24:MI') as time_of_day,
    reading_count,
    day_count,
    p5_mg_dl,
    p10_mg_dl,
    p25_mg_dl,
    p50_mg_dl,
    p75_mg_dl,
    p90_mg_dl,
    p95_mg_dl,
    smoothed_p5_mg_dl,
    smoothed_p10_mg_dl,
    smoothed_p25_mg_dl,
    smoothed_p50_mg_dl,
    smoothed_p75_mg_dl,
    smoothed_p90_mg_dl,
    smoothed_p95_mg_dl
from {{ source('published', 'fact_glucose_profile') }}
