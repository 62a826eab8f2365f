{{ config(materialized='view') }}

with sites as (
    select * from {{ source('published', 'dim_site') }}
    where last_reading_timestamp is not null
),

newest as (
    select
        sites.site,
        readings.*
    from sites
    cross join lateral (
        select
            facts.reading_timestamp,
            facts.glucose_mg_dl,
            facts.glucose_change_mg_dl,
            facts.glucose_category,
            facts.glucose_range,
            facts.direction
        from {{ source('published', 'fact_glucose_readings') }} as facts
        where
            facts.site = sites.site
            and facts.reading_date >= cast(sites.last_reading_timestamp at time zone sites.timezone as date)
        order by facts.reading_timestamp desc, facts.entry_id desc
        limit 1
    ) as readings
)

select
    site,
    reading_timestamp,
    cast(extract(epoch from now() - reading_timestamp) / 60 as double precision) as age_minutes,
    glucose_mg_dl,
    glucose_mg_dl / 18.01559 as glucose_mmol_l,
    glucose_change_mg_dl,
    glucose_category,
    glucose_range,
    direction,
    case direction
        when 'DoubleUp' then '⇈'
        when 'SingleUp' then '↑'
        when 'FortyFiveUp' then '↗'
        when 'Flat' then '→'
        when 'FortyFiveDown' then '↘'
        when 'SingleDown' then '↓'
        when 'DoubleDown' then '⇊'
        else ''
    end as trend_arrow
from newest
