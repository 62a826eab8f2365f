{{ config(materialized='view') }}

with readings as (
    select * from {{ ref('int_glucose_enriched') }}
    where not is_near_duplicate
),

flagged as (
    select distinct entry_id from {{ ref('int_reading_flags') }}
),

-- Every figure is there twice: with all readings, and as if the flagged ones had never been sent.
choices (readings_used) as (
    values ('all'), ('unflagged')
)

select
    choices.readings_used,
    readings.entry_id,
    readings.site,
    readings.reading_date,
    readings.reading_timestamp,
    epoch_ms(readings.reading_timestamp) as reading_ms,
    readings.hour_of_day,
    case when readings.hour_of_day < 6 then 'night' else 'day' end as part_of_reading,
    readings.glucose_mg_dl,
    readings.sensor_interval_minutes
from readings
left join flagged on readings.entry_id = flagged.entry_id
cross join choices
where choices.readings_used = 'all' or flagged.entry_id is null
