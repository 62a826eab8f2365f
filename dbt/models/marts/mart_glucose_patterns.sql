{{ config(indexes=[{'columns': ['site', 'pattern', 'pattern_key', 'metric'], 'unique': true}]) }}

select
    site,
    pattern,
    pattern_key,
    day_of_week,
    start_hour,
    end_hour,
    part,
    metric,
    value,
    unit,
    period_start_date,
    period_end_date,
    reading_count,
    occurrences,
    days_observed,
    is_recurring,
    description
from {{ source('published', 'fact_glucose_patterns') }}
