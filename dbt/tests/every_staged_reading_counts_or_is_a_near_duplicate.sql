{{ config(meta={"dagster": {"ref": {"name": "fact_glucose_readings"}}}) }}
-- No reading is lost between staging and the fact table, on any day.
with counted as (
    select
        site,
        reading_date,
        1 as staged_readings,
        0 as kept_readings
    from {{ ref('stg_nightscout_glucose') }}
    where
        {{ partitions_of_unchecked(ref('fact_glucose_readings')) }}
        and {{ is_unchecked(ref('fact_glucose_readings')) }}
    union all
    select
        site,
        reading_date,
        0 as staged_readings,
        1 as kept_readings
    from {{ ref('int_glucose_enriched') }}
    where is_near_duplicate and {{ is_unchecked(ref('fact_glucose_readings')) }}
    union all
    select
        site,
        reading_date,
        0 as staged_readings,
        1 as kept_readings
    from {{ ref('fact_glucose_readings') }}
    where {{ is_unchecked(ref('fact_glucose_readings')) }}
)

select
    site,
    reading_date,
    sum(staged_readings) as staged_readings,
    sum(kept_readings) as kept_readings
from counted
group by site, reading_date
having sum(staged_readings) <> sum(kept_readings)
