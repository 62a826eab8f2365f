{{ config(materialized='view') }}

-- A view: the published table has the index, and a copy of it would be written anew in every run.
select
    site,
    period,
    period_start_date,
    period_end_date,
    day_part,
    readings_used,
    metric,
    value,
    unit,
    reading_count,
    expected_reading_count,
    coverage_pct,
    is_sufficient,
    ci_low,
    ci_high,
    target,
    is_target_met
from {{ source('published', 'fact_glucose_metrics') }}
