{{ config(indexes=[{'columns': ['site', 'day_of_week', 'hour_of_day'], 'unique': true}]) }}

with latest as (
    select
        site,
        max(reading_date) as latest_date
    from {{ source('published', 'dim_glucose_date') }}
    group by site
),

readings as (
    select facts.*
    from latest
    inner join {{ source('published', 'fact_glucose_readings') }} as facts
        on latest.site = facts.site and latest.latest_date - 90 < facts.reading_date
)

select
    site,
    day_of_week,
    hour_of_day,
    count(*) as reading_count,
    avg(glucose_mg_dl) as avg_glucose_mg_dl,
    percentile_cont(0.5) within group (order by glucose_mg_dl) as median_glucose_mg_dl,
    percentile_cont(0.05) within group (order by glucose_mg_dl) as p5_glucose_mg_dl,
    percentile_cont(0.25) within group (order by glucose_mg_dl) as p25_glucose_mg_dl,
    percentile_cont(0.75) within group (order by glucose_mg_dl) as p75_glucose_mg_dl,
    percentile_cont(0.95) within group (order by glucose_mg_dl) as p95_glucose_mg_dl,
    cast(
        100.0 * count(*) filter (where glucose_mg_dl between 70 and 180) / count(*) as double precision
    ) as time_in_range_pct
from readings
group by site, day_of_week, hour_of_day
