{{
    config(
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_sites() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

-- Coverage-adjusted: each hour of the day weighs the same, so that missing nights do not pose as a change.
with periods as (
    select
        site,
        readings_used,
        period_start_date,
        period_end_date,
        days_covered,
        case period when '14d' then 'now' else 'before' end as side
    from {{ ref('int_glucose_period_figures') }}
    where
        day_part = 'whole' and period in ('14d', '14d_before')
        {% if is_incremental() %}
            and {{ is_recomputed_site(this.name) }}
        {% endif %}
),

hours as (
    select
        periods.site,
        periods.readings_used,
        periods.side,
        readings.hour_of_day,
        sum(readings.sensor_interval_minutes order by readings.sensor_interval_minutes)
        / (60 * min(periods.days_covered)) as covered_share,
        avg(readings.glucose_mg_dl order by readings.glucose_mg_dl) as mean_mg_dl,
        var_pop(readings.glucose_mg_dl order by readings.glucose_mg_dl) as variance,
        100.0 * count(*) filter (readings.glucose_mg_dl < 54) / count(*) as very_low_pct,
        100.0 * count(*) filter (readings.glucose_mg_dl >= 54 and readings.glucose_mg_dl < 70) / count(*) as low_pct,
        100.0 * count(*) filter (readings.glucose_mg_dl between 70 and 180) / count(*) as in_range_pct,
        100.0 * count(*) filter (readings.glucose_mg_dl > 180 and readings.glucose_mg_dl <= 250) / count(*) as high_pct,
        100.0 * count(*) filter (readings.glucose_mg_dl > 250) / count(*) as very_high_pct
    from {{ ref('int_glucose_counted_readings') }} as readings
    inner join periods
        on
            readings.site = periods.site
            and readings.readings_used = periods.readings_used
            and readings.reading_date between periods.period_start_date and periods.period_end_date
    group by periods.site, periods.readings_used, periods.side, readings.hour_of_day
),

-- Only hours of which both sides have at least half.
shared_hours as (
    select hours.*
    from hours
    where covered_share >= 0.5
    qualify count(*) over (partition by site, readings_used, hour_of_day) = 2
),

hour_means as (
    select
        site,
        readings_used,
        side,
        count(*) as hours_compared,
        avg(mean_mg_dl order by hour_of_day) as mean_mg_dl,
        avg(very_low_pct order by hour_of_day) as very_low_pct,
        avg(low_pct order by hour_of_day) as low_pct,
        avg(in_range_pct order by hour_of_day) as in_range_pct,
        avg(high_pct order by hour_of_day) as high_pct,
        avg(very_high_pct order by hour_of_day) as very_high_pct,
        sqrt(
            avg(variance order by hour_of_day) + coalesce(var_pop(mean_mg_dl order by hour_of_day), 0)
        ) as sd_mg_dl
    from shared_hours
    group by site, readings_used, side
)

select
    site,
    readings_used,
    side,
    hours_compared,
    mean_mg_dl,
    in_range_pct as time_in_range_pct,
    very_low_pct + low_pct as time_below_range_pct,
    high_pct + very_high_pct as time_above_range_pct,
    3.31 + 0.02392 * mean_mg_dl as gmi_pct,
    least(100, 3.0 * very_low_pct + 2.4 * low_pct + 1.6 * very_high_pct + 0.8 * high_pct) as gri,
    100 * sd_mg_dl / mean_mg_dl as cv_pct
from hour_means
-- From fewer hours nothing is said of the day.
where hours_compared >= 12
