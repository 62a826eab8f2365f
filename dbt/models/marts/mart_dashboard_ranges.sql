{{ config(materialized='view') }}

with periods (period, period_name, period_days) as (
    {{ dashboard_periods() }}
),

units (unit, mg_dl_per_unit, decimals, step) as (
    {{ glucose_units() }}
),

-- The bounds that a range is written with; those of the two sums are the target range's.
ranges (range_name, range_order, lower_mg_dl, upper_mg_dl) as (
    values
    ('very_high', 1, 250, null),
    ('high', 2, 180, 250),
    ('in_range', 3, 70, 180),
    ('low', 4, 54, 70),
    ('very_low', 5, null, 54),
    ('above_range', 6, 180, null),
    ('below_range', 7, null, 70)
),

-- 70 and 180 are in range, 54 is low, 250 is high: the next value that is shown says so.
bounds as (
    select
        ranges.range_name,
        ranges.range_order,
        units.unit,
        {{ shown_decimal('ranges.lower_mg_dl') }}
        + case when ranges.range_name = 'high' then units.step else 0 end as lower_bound,
        {{ shown_decimal('ranges.upper_mg_dl') }}
        - case when ranges.range_name = 'low' then units.step else 0 end as upper_bound
    from ranges
    cross join units
),

described as (
    select
        range_name,
        range_order,
        unit,
        case
            when lower_bound is null then 'below ' || upper_bound
            when upper_bound is null then 'above ' || lower_bound
            else lower_bound || ' to ' || upper_bound
        end || ' ' || unit as bounds_text
    from bounds
)

select
    metrics.site,
    periods.period,
    described.unit,
    described.range_name,
    described.range_order,
    described.range_order <= 5 as is_band,
    {{ range_label('described.range_name') }} as range_label,
    described.bounds_text,
    metrics.value as pct,
    metrics.value * 14.4 as minutes_a_day,
    coalesce(metrics.target || ' %', '') as target_text,
    case
        when metrics.is_target_met then 'met'
        when not metrics.is_target_met then 'not met'
        else ''
    end as target_result
from periods
inner join {{ source('published', 'fact_glucose_metrics') }} as metrics on periods.period_name = metrics.period
inner join described on metrics.metric = 'time_' || described.range_name || '_pct'
where metrics.day_part = 'whole' and metrics.readings_used = 'all'
