{{ config(materialized='view') }}

with newest as (
    {{ newest_readings() }}
)

select
    site,
    reading_timestamp,
    {{ age_minutes('reading_timestamp') }} as age_minutes,
    glucose_mg_dl,
    glucose_mg_dl / 18.01559 as glucose_mmol_l,
    glucose_change_mg_dl,
    glucose_category,
    glucose_range,
    direction,
    {{ trend_arrow('direction') }} as trend_arrow
from newest
