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
    daily.site,
    periods.period,
    units.unit,
    daily.reading_date,
    daily.reading_count,
    daily.data_sufficiency_pct,
    case when daily.data_sufficiency_pct >= 70 then 'enough' else 'few readings' end as data_sufficiency,
    daily.time_very_low_pct,
    daily.time_low_pct,
    daily.time_in_range_pct,
    daily.time_high_pct,
    daily.time_very_high_pct,
    daily.time_below_range_pct,
    daily.time_above_range_pct,
    {{ shown('daily.avg_glucose_mg_dl') }} as mean_glucose,
    daily.cv_pct,
    daily.estimated_a1c_pct,
    daily.estimated_a1c_7d_avg
from latest
cross join periods
cross join units
inner join {{ ref('mart_glucose_overview') }} as daily
    on latest.site = daily.site and latest.latest_date - periods.period_days < daily.reading_date
