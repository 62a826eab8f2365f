{{ config(indexes=[{'columns': ['site', 'unit', 'day_of_week', 'hour_of_day'], 'unique': true}]) }}

with units (unit, mg_dl_per_unit, decimals, step) as (
    {{ glucose_units() }}
)

select
    pattern.site,
    units.unit,
    pattern.day_of_week,
    -- 1 January 2001 was a Monday: days that sort as the week does.
    timestamp '2000-12-31 00:00' + pattern.day_of_week * interval '1 day' as weekday_date,
    to_char(date '2000-12-31' + pattern.day_of_week, 'Dy') as weekday_name,
    pattern.hour_of_day,
    to_char(pattern.hour_of_day, 'FM00') as hour_text,
    pattern.reading_count,
    {{ shown('pattern.avg_glucose_mg_dl') }} as mean_glucose,
    {{ shown('pattern.median_glucose_mg_dl') }} as median_glucose,
    pattern.time_in_range_pct
from {{ ref('mart_glucose_hourly_pattern') }} as pattern
cross join units
