{{ config(materialized='view') }}

with newest as (
    {{ newest_readings() }}
),

units (unit, mg_dl_per_unit, decimals, step) as (
    {{ glucose_units() }}
),

limits as (
    {{ stale_minutes() }}
),

shown as (
    select
        newest.*,
        units.unit,
        limits.stale_minutes,
        {{ age_minutes('newest.reading_timestamp') }} as age_minutes,
        {{ shown_decimal('newest.glucose_mg_dl') }} as glucose,
        {{ shown_decimal('newest.glucose_change_mg_dl') }} as glucose_change
    from newest
    cross join units
    cross join limits
)

select
    site,
    unit,
    reading_timestamp,
    reading_local_timestamp,
    age_minutes,
    age_minutes > stale_minutes as is_stale,
    glucose_range,
    {{ range_label('glucose_range') }} as range_label,
    cast(glucose as double precision) as glucose,
    cast(glucose_change as double precision) as glucose_change,
    cast(glucose as text) as glucose_text,
    case
        when glucose_change > 0 then '+' || glucose_change
        when glucose_change < 0 then '−' || abs(glucose_change)
        when glucose_change = 0 then '±' || glucose_change
        else ''
    end as change_text,
    {{ age_text('age_minutes') }} as age_text,
    to_char(
        reading_local_timestamp, case when age_minutes < 1440 then 'Dy HH24:MI' else 'DD Mon YYYY' end
    ) as time_text,
    {{ trend_arrow('direction') }} as trend_arrow
from shown
