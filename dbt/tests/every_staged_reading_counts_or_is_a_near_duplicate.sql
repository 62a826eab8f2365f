{{ config(meta={"dagster": {"ref": {"name": "fact_glucose_readings"}}}) }}
-- No reading is lost between staging and the fact table; the last days, so that a tick stays cheap.
with staged as (
    select count(*) as readings from {{ ref('stg_nightscout_glucose') }}
    where utc_month >= strftime(current_date - 8, '%Y-%m') and reading_date >= current_date - 8
),

near_duplicates as (
    select count(*) as readings from {{ ref('int_glucose_enriched') }}
    where is_near_duplicate and reading_date >= current_date - 8
),

facts as (
    select count(*) as readings from {{ ref('fact_glucose_readings') }}
    where reading_date >= current_date - 8
)

select
    staged.readings as staged_readings,
    near_duplicates.readings as near_duplicate_readings,
    facts.readings as fact_readings
from staged
cross join near_duplicates
cross join facts
where staged.readings <> near_duplicates.readings + facts.readings
