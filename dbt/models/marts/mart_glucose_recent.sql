{{
    config(indexes=[
        {'columns': ['site', 'reading_timestamp']},
        {'columns': ['site', 'reading_local_timestamp']},
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
    facts.entry_id,
    facts.site,
    facts.reading_timestamp,
    facts.reading_local_timestamp,
    facts.reading_date,
    facts.glucose_mg_dl,
    facts.glucose_mg_dl / 18.01559 as glucose_mmol_l,
    facts.glucose_category,
    facts.glucose_range,
    facts.glucose_change_mg_dl,
    facts.direction
from latest
inner join {{ source('published', 'fact_glucose_readings') }} as facts
    on latest.site = facts.site and latest.latest_date - 14 < facts.reading_date
