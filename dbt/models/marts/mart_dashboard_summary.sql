{{ config(materialized='view') }}

with periods (period, period_name, period_days) as (
    {{ dashboard_periods() }}
),

units (unit, mg_dl_per_unit, decimals, step) as (
    {{ glucose_units() }}
),

figures as (
    select
        metrics.site,
        periods.period,
        periods.period_days,
        max(metrics.period_start_date) as period_start_date,
        max(metrics.period_end_date) as period_end_date,
        max(metrics.value) filter (where metrics.metric = 'mean_mg_dl') as mean_mg_dl,
        max(metrics.value) filter (where metrics.metric = 'sd_mg_dl') as sd_mg_dl,
        max(metrics.value) filter (where metrics.metric = 'cv_pct') as cv_pct,
        max(metrics.value) filter (where metrics.metric = 'gmi_pct') as gmi_pct,
        max(metrics.value) filter (where metrics.metric = 'gri') as gri,
        max(metrics.value) filter (where metrics.metric = 'time_in_range_pct') as time_in_range_pct,
        max(metrics.value) filter (where metrics.metric = 'time_below_range_pct') as time_below_range_pct,
        max(metrics.value) filter (where metrics.metric = 'time_above_range_pct') as time_above_range_pct,
        max(metrics.coverage_pct) as coverage_pct,
        max({{ days_covered('metrics.period_start_date', 'metrics.period_end_date') }}) as days_covered,
        max(metrics.reading_count) as reading_count,
        bool_or(metrics.is_sufficient) as is_sufficient
    from periods
    inner join {{ source('published', 'fact_glucose_metrics') }} as metrics on periods.period_name = metrics.period
    inner join {{ source('published', 'dim_site') }} as sites on metrics.site = sites.site
    where
        metrics.day_part = 'whole'
        and metrics.readings_used = 'all'
        and metrics.metric in (
            'mean_mg_dl', 'sd_mg_dl', 'cv_pct', 'gmi_pct', 'gri',
            'time_in_range_pct', 'time_below_range_pct', 'time_above_range_pct'
        )
    group by metrics.site, periods.period, periods.period_days
)

select
    figures.site,
    figures.period,
    figures.period_days,
    units.unit,
    figures.period_start_date,
    figures.period_end_date,
    figures.reading_count,
    figures.coverage_pct,
    figures.days_covered,
    figures.is_sufficient,
    {{ shown('figures.mean_mg_dl') }} as mean_glucose,
    {{ shown('figures.sd_mg_dl') }} as sd_glucose,
    figures.cv_pct,
    figures.gmi_pct,
    figures.gri,
    figures.time_in_range_pct,
    figures.time_below_range_pct,
    figures.time_above_range_pct
from figures
cross join units
