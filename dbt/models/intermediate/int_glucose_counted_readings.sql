{{ config(materialized='view') }}

-- Every figure is there twice: with all readings, and as if the flagged ones had never been sent.
with readings as (
    select
        entry_id,
        site,
        reading_date,
        reading_timestamp,
        epoch_ms(reading_timestamp) as reading_ms,
        hour_of_day,
        case when hour_of_day < 6 then 'night' else 'day' end as part_of_reading,
        glucose_mg_dl,
        sensor_interval_minutes
    from {{ ref('int_glucose_enriched') }}
    where not is_near_duplicate
),

flags as (
    select entry_id from {{ ref('int_reading_flags') }}
)

select
    'all' as readings_used,
    readings.*
from readings
union all
select
    'unflagged' as readings_used,
    readings.*
from readings
where not exists (select flags.entry_id from flags where flags.entry_id = readings.entry_id)
