{{ config(indexes=[{'columns': ['site', 'period', 'unit', 'reading_date'], 'unique': true}]) }}

with latest as (
    select
        site,
        max(reading_date) as latest_date
    from {{ ref('mart_glucose_overview') }}
    group by site
),

periods (period, period_name, period_days) as (
    {{ dashboard_periods() }}
),

units (unit, mg_dl_per_unit, decimals, step) as (
    {{ glucose_units() }}
)

select
    days.site,
    periods.period,
    units.unit,
    days.reading_date,
    days.reading_count,
    days.data_sufficiency_pct,
    case when days.data_sufficiency_pct >= 70 then 'enough' else 'few readings' end as data_sufficiency,
    days.time_very_low_pct,
    days.time_low_pct,
    days.time_in_range_pct,
    days.time_high_pct,
    days.time_very_high_pct,
    days.time_below_range_pct,
    days.time_above_range_pct,
    {{ shown('days.avg_glucose_mg_dl') }} as mean_glucose,
    days.cv_pct,
    days.estimated_a1c_pct,
    days.estimated_a1c_7d_avg
from latest
cross join periods
cross join units
inner join {{ ref('mart_glucose_overview') }} as days
    on latest.site = days.site and latest.latest_date - periods.period_days < days.reading_date
