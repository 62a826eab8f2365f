{{ config(materialized='view') }}

-- A view: the published table has the index, and a copy of it would be written anew in every run.
select
    site,
    readings_used,
    metric,
    unit,
    now_start_date,
    now_end_date,
    before_start_date,
    before_end_date,
    value_now,
    value_before,
    difference,
    difference_ci_low,
    difference_ci_high,
    effect_size_hedges_g,
    coverage_now_pct,
    coverage_before_pct,
    adjusted_value_now,
    adjusted_value_before,
    adjusted_difference,
    hours_compared,
    is_comparable
from {{ source('published', 'fact_glucose_comparison') }}
