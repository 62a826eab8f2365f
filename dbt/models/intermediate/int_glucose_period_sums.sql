{{
    config(
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_sites() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

{% set key_columns = ['site', 'period', 'period_end_date', 'day_part', 'readings_used'] %}
{% set key = key_columns | join(', ') %}
{% set range_counts = ['very_low_count', 'low_count', 'in_range_count', 'high_count', 'very_high_count'] %}

with calendar as (
    select * from {{ ref('int_glucose_calendar') }}
    {% if is_incremental() %}
        where {{ is_recomputed_site(this.name) }}
    {% endif %}
),

components as (
    select * from {{ ref('int_glucose_daily_components') }}
    {% if is_incremental() %}
        where {{ is_recomputed_site(this.name) }}
    {% endif %}
),

readings as (
    select * from {{ ref('int_glucose_counted_readings') }}
    {% if is_incremental() %}
        where {{ is_recomputed_site(this.name) }}
    {% endif %}
),

-- The 14 days before the last 14 are there for the comparison only.
lengths (period, period_days, days_after) as (
    values ('7d', 7, 0), ('14d', 14, 0), ('14d_before', 14, 14), ('30d', 30, 0), ('90d', 90, 0)
),

periods as (
    select distinct
        calendar.site,
        lengths.period,
        calendar.newest_date - lengths.days_after - lengths.period_days + 1 as period_start_date,
        calendar.newest_date - lengths.days_after as period_end_date
    from calendar
    cross join lengths
    union all
    select distinct
        site,
        'all' as period,
        first_date as period_start_date,
        newest_date as period_end_date
    from calendar
    union all
    select distinct
        site,
        'day' as period,
        reading_date as period_start_date,
        reading_date as period_end_date
    from calendar
    where reading_date > newest_date - 90
),

which_readings (readings_used) as (
    values ('all'), ('unflagged')
),

period_days as (
    select
        periods.period,
        periods.period_start_date,
        periods.period_end_date,
        which_readings.readings_used,
        calendar.*
    from periods
    inner join calendar
        on
            periods.site = calendar.site
            and calendar.reading_date between periods.period_start_date and periods.period_end_date
    cross join which_readings
),

daily as (
    select
        period_days.*,
        components.* exclude (site, reading_date, day_part, readings_used), -- noqa: RF02
        components.glucose_sum / components.reading_count as mean_of_day_mg_dl
    from period_days
    left join components
        on
            period_days.site = components.site
            and period_days.reading_date = components.reading_date
            and period_days.day_part = components.day_part
            and period_days.readings_used = components.readings_used
),

sums as (
    select
        {{ key }},
        min(period_start_date) as period_start_date,
        period_end_date - min(greatest(period_start_date, first_date)) + 1 as days_covered,
        avg(part_minutes order by reading_date) as minutes_a_day,
        sum(expected_readings order by reading_date) as expected_readings,
        sum(part_minutes / sensor_interval_minutes order by reading_date) as expected_in_full,
        coalesce(sum(reading_count), 0) as reading_count,
        {% for range in ['very_low', 'low', 'in_range', 'high', 'very_high', 'tight_range'] %}
            sum({{ range }}_count) as {{ range }}_count,
        {% endfor %}
        sum(glucose_sum order by reading_date) / sum(reading_count) as mean_mg_dl,
        min(min_mg_dl) as min_mg_dl,
        max(max_mg_dl) as max_mg_dl,
        sum(low_risk_sum order by reading_date) / sum(reading_count) as lbgi,
        sum(high_risk_sum order by reading_date) / sum(reading_count) as hbgi,
        -- Figures of days: not for a part of the day.
        avg(low_risk_max + high_risk_max order by reading_date) filter (day_part = 'whole') as adrr,
        avg(sd_mg_dl order by reading_date) filter (day_part = 'whole') as sd_within_day_mg_dl,
        stddev_samp(mean_of_day_mg_dl order by reading_date) filter (day_part = 'whole') as sd_between_day_mg_dl,
        {% for lag in ['1h', '2h', '4h', '24h'] %}
            sum(pair_{{ lag }}_count) as pair_{{ lag }}_count,
            sum(difference_{{ lag }}_sum order by reading_date) as difference_{{ lag }}_sum,
            sum(difference_square_{{ lag }}_sum order by reading_date) as difference_square_{{ lag }}_sum,
        {% endfor %}
        sum(absolute_difference_24h_sum order by reading_date) as absolute_difference_24h_sum,
        sum(absolute_step_sum order by reading_date) as absolute_step_sum,
        sum(step_minutes_sum order by reading_date) as step_minutes_sum,
        sum(excess_length_sum order by reading_date) as excess_length_sum,
        max(mage_mg_dl) filter (period = 'day') as mage_of_day_mg_dl,
        case
            when period in ('7d', '14d', '30d', '90d')
                -- The same draws for both choices of readings: where they agree, so do the intervals.
                then glucose_bootstrap(
                    concat_ws('/', site, period, day_part),
                    list(reading_date order by reading_date) filter (reading_count > 0),
                    {% for column in ['reading_count'] + range_counts %}
                        list(cast({{ column }} as double) order by reading_date) filter (reading_count > 0),
                    {% endfor %}
                    list(glucose_sum order by reading_date) filter (reading_count > 0)
                )
        end as intervals
    from daily
    group by {{ key }}
    -- The newest day has no such part yet.
    having sum(expected_readings) > 0
),

-- The spread within the days and that of the days' means around the period's mean, which has to be known first.
spreads as (
    select
        {% for column in key_columns %}
            daily.{{ column }},
        {% endfor %}
        sqrt(
            sum(
                daily.squared_deviation_sum
                + daily.reading_count * pow(daily.mean_of_day_mg_dl - sums.mean_mg_dl, 2)
                order by daily.reading_date
            ) / nullif(any_value(sums.reading_count) - 1, 0)
        ) as sd_mg_dl
    from daily
    inner join sums
        on {{ same_key('daily', 'sums', key_columns) }}
    where daily.reading_count > 0
    group by all
),

period_readings as (
    select
        period_days.site,
        period_days.period,
        period_days.period_end_date,
        period_days.day_part,
        period_days.readings_used,
        readings.reading_ms,
        readings.glucose_mg_dl
    from period_days
    inner join readings
        on
            period_days.site = readings.site
            and period_days.reading_date = readings.reading_date
            and period_days.readings_used = readings.readings_used
            and period_days.day_part in ('whole', readings.part_of_reading)
),

percentiles as (
    select
        {{ key }},
        quantile_cont(glucose_mg_dl, [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]) as percentiles_mg_dl
    from period_readings
    group by {{ key }}
),

excursions as (
    select
        {{ key }},
        glucose_mage(
            list(reading_ms / 60000.0 order by reading_ms), list(glucose_mg_dl order by reading_ms)
        ) as mage_mg_dl
    from period_readings
    where day_part = 'whole' and period not in ('day', '14d_before')
    group by {{ key }}
)

select
    sums.*,
    spreads.sd_mg_dl,
    percentiles.percentiles_mg_dl,
    coalesce(excursions.mage_mg_dl, sums.mage_of_day_mg_dl) as mage_mg_dl
from sums
left join spreads
    on {{ same_key('sums', 'spreads', key_columns) }}
left join percentiles
    on {{ same_key('sums', 'percentiles', key_columns) }}
left join excursions
    on {{ same_key('sums', 'excursions', key_columns) }}
