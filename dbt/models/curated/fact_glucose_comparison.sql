{{
    config(
        materialized='incremental',
        unique_key=['site', 'readings_used', 'metric'],
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_sites() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

{% set metrics = [
    'mean_mg_dl', 'time_in_range_pct', 'time_below_range_pct', 'time_above_range_pct', 'gmi_pct', 'gri', 'cv_pct'
] %}

with figures as (
    select
        *,
        case period when '14d' then 'now' when '14d_before' then 'before' end as side
    from {{ ref('int_glucose_period_figures') }}
    where
        day_part = 'whole' and period in ('14d', '14d_before', 'day')
        {% if is_incremental() %}
            and {{ is_recomputed_site(this.name) }}
        {% endif %}
),

periods as (
    select
        site,
        readings_used,
        side,
        period_start_date,
        period_end_date,
        days_covered,
        coverage_pct,
        {{ metrics | join(', ') }}
    from figures
    where side is not null
),

period_values as (
    unpivot periods on {{ metrics | join(', ') }} into name metric value value
),

-- Effect size: Hedges 1981, on the days that have at least 70 % of a whole day's readings, five or more on each side.
days as (
    select
        periods.side,
        daily.*
    from figures as daily
    inner join periods
        on
            daily.site = periods.site
            and daily.readings_used = periods.readings_used
            and daily.period_end_date between periods.period_start_date and periods.period_end_date
    where daily.period = 'day' and daily.reading_count >= 0.7 * daily.expected_in_full
),

day_values as (
    unpivot (select side, site, readings_used, period_end_date, {{ metrics | join(', ') }} from days)
    on {{ metrics | join(', ') }} into name metric value value
),

day_spreads as (
    select
        {% for side in ['now', 'before'] %}
            count(*) filter (side = '{{ side }}') as {{ side }}_count,
            avg(value order by period_end_date) filter (side = '{{ side }}') as {{ side }}_mean,
            var_samp(value order by period_end_date) filter (side = '{{ side }}') as {{ side }}_variance,
        {% endfor %}
        site,
        readings_used,
        metric
    from day_values
    group by site, readings_used, metric
),

pooled as (
    select
        *,
        now_count + before_count - 2 as degrees_of_freedom,
        sqrt(
            ((now_count - 1) * now_variance + (before_count - 1) * before_variance) / (now_count + before_count - 2)
        ) as pooled_sd
    from day_spreads
    where now_count >= 5 and before_count >= 5
),

effects as (
    select
        site,
        readings_used,
        metric,
        -- Below this the days do not differ at all but for rounding.
        case
            when pooled_sd > 1e-9 * greatest(1, abs(now_mean))
                then (now_mean - before_mean) / pooled_sd * (1 - 3 / (4.0 * degrees_of_freedom - 1))
        end as effect_size
    from pooled
),

components as (
    select
        periods.side,
        daily.*
    from {{ ref('int_glucose_daily_components') }} as daily
    inner join periods
        on
            daily.site = periods.site
            and daily.readings_used = periods.readings_used
            and daily.reading_date between periods.period_start_date and periods.period_end_date
    where daily.day_part = 'whole'
),

resampled as (
    select
        site,
        readings_used,
        unnest(glucose_difference_intervals(
            site,
            {% for side in ['now', 'before'] %}
                list(reading_date order by reading_date) filter (side = '{{ side }}'),
                list(
                    [
                        cast(reading_count as double), very_low_count, low_count, in_range_count, high_count,
                        very_high_count, glucose_sum, squared_deviation_sum + glucose_sum * glucose_sum / reading_count
                    ]
                    order by reading_date
                ) filter (side = '{{ side }}'){{ ',' if not loop.last }}
            {% endfor %}
        )) as interval_of_metric
    from components
    group by site, readings_used
),

intervals as (
    select
        site,
        readings_used,
        struct_extract(interval_of_metric, 'metric') as metric,
        struct_extract(interval_of_metric, 'low') as ci_low,
        struct_extract(interval_of_metric, 'high') as ci_high
    from resampled
),

hour_figures as (
    select * from {{ ref('int_glucose_hour_figures') }}
),

hour_values as (
    unpivot hour_figures on {{ metrics | join(', ') }} into name metric value value
),

values_by_side as (
    select
        site,
        readings_used,
        metric,
        max(value) filter (side = 'now') as value_now,
        max(value) filter (side = 'before') as value_before
    from period_values
    group by site, readings_used, metric
),

adjusted_by_side as (
    select
        site,
        readings_used,
        metric,
        max(hours_compared) as hours_compared,
        max(value) filter (side = 'now') as adjusted_value_now,
        max(value) filter (side = 'before') as adjusted_value_before
    from hour_values
    group by site, readings_used, metric
)

select
    sides.site,
    sides.readings_used,
    sides.metric,
    case when suffix(sides.metric, '_mg_dl') then 'mg/dL' when sides.metric = 'gri' then 'index' else '%' end as unit,
    latest.period_start_date as now_start_date,
    latest.period_end_date as now_end_date,
    cast(latest.period_start_date - 14 as date) as before_start_date,
    cast(latest.period_start_date - 1 as date) as before_end_date,
    sides.value_now,
    sides.value_before,
    sides.value_now - sides.value_before as difference,
    intervals.ci_low as difference_ci_low,
    intervals.ci_high as difference_ci_high,
    effects.effect_size as effect_size_hedges_g,
    latest.coverage_pct as coverage_now_pct,
    coalesce(earlier.coverage_pct, 0) as coverage_before_pct,
    adjusted.adjusted_value_now,
    adjusted.adjusted_value_before,
    adjusted.adjusted_value_now - adjusted.adjusted_value_before as adjusted_difference,
    cast(coalesce(adjusted.hours_compared, 0) as integer) as hours_compared,
    latest.coverage_pct >= 70 and latest.days_covered >= 14
    and coalesce(earlier.coverage_pct >= 70 and earlier.days_covered >= 14, false) as is_comparable
from values_by_side as sides
inner join periods as latest
    on sides.site = latest.site and sides.readings_used = latest.readings_used and latest.side = 'now'
left join periods as earlier
    on sides.site = earlier.site and sides.readings_used = earlier.readings_used and earlier.side = 'before'
left join effects
    on sides.site = effects.site and sides.readings_used = effects.readings_used and sides.metric = effects.metric
left join intervals
    on
        sides.site = intervals.site
        and sides.readings_used = intervals.readings_used
        and sides.metric = intervals.metric
left join adjusted_by_side as adjusted
    on sides.site = adjusted.site and sides.readings_used = adjusted.readings_used and sides.metric = adjusted.metric
where sides.value_now is not null
