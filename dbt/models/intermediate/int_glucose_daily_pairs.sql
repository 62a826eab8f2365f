{{
    config(
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days(days_after=2) }}",
        post_hook="{{ move_watermark() }}",
    )
}}

{% set lags = {'1h': 3600000, '2h': 7200000, '4h': 14400000, '24h': 86400000} %}

-- Two days after a changed one, not one: the day after it may have other flags now, and the next looks back at those.
-- And the two days before those that are inserted again, which their readings look back at.
with readings as (
    select
        site,
        readings_used,
        reading_date,
        part_of_reading,
        reading_ms,
        glucose_mg_dl,
        cast(sensor_interval_minutes * 30000 as bigint) as tolerance_ms,
        {
            'reading_ms': reading_ms,
            'glucose_mg_dl': glucose_mg_dl,
            'reading_date': reading_date,
            'part': part_of_reading
        } as reading
    from {{ ref('int_glucose_counted_readings') }} as counted
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, 'counted', days_before=3, days_after=2) }}
    {% endif %}
),

-- Around the moment n hours ago, the last reading before and the first after it, each within half a sensor interval.
with_earlier as (
    select
        *,
        lag(reading) over in_order as reading_previous,
        {% for lag_name, lag_ms in lags.items() %}
            last_value(reading) over (
                in_order range between {{ lag_ms }} + tolerance_ms preceding and {{ lag_ms }} preceding
            ) as reading_before_{{ lag_name }},
            first_value(reading) over (
                in_order range between {{ lag_ms }} preceding and {{ lag_ms }} - tolerance_ms preceding
            ) as reading_after_{{ lag_name }}{{ ',' if not loop.last }}
        {% endfor %}
    from readings
    window in_order as (partition by site, readings_used order by reading_ms)
),

-- The nearer of the two; of two equally near the earlier.
pairs as (
    {% for lag_name, lag_ms in lags.items() %}
        select
            site,
            readings_used,
            reading_date,
            part_of_reading,
            reading_ms,
            glucose_mg_dl,
            '{{ lag_name }}' as lag_name,
            case
                when
                    reading_before_{{ lag_name }} is null
                    or reading_ms - {{ lag_ms }} - reading_before_{{ lag_name }}.reading_ms
                    > reading_after_{{ lag_name }}.reading_ms - (reading_ms - {{ lag_ms }})
                    then reading_after_{{ lag_name }}
                else reading_before_{{ lag_name }}
            end as earlier
        from with_earlier
        union all
    {% endfor %}
    select
        site,
        readings_used,
        reading_date,
        part_of_reading,
        reading_ms,
        glucose_mg_dl,
        'previous' as lag_name,
        -- Over a longer gap nothing is known of the way.
        case when reading_ms - reading_previous.reading_ms <= 2700000 then reading_previous end as earlier
    from with_earlier
),

differences as (
    select
        site,
        readings_used,
        reading_date,
        lag_name,
        glucose_mg_dl - earlier.glucose_mg_dl as difference_mg_dl,
        (reading_ms - earlier.reading_ms) / 60000.0 as minutes,
        -- A pair counts for the whole day, and for a part of it where both readings lie in the same night or day.
        unnest(
            case
                when lag_name <> '24h' and reading_date = earlier.reading_date and part_of_reading = earlier.part
                    then ['whole', part_of_reading]
                else ['whole']
            end
        ) as day_part
    from pairs
    where
        earlier is not null
        {% if is_incremental() %}
            and {{ is_recomputed(this.name, 'pairs', days_after=2) }}
        {% endif %}
)

select
    site,
    reading_date,
    day_part,
    readings_used,
    lag_name,
    count(*) as pair_count,
    {{ exact_sum('difference_mg_dl') }} as difference_sum,
    {{ exact_sum('difference_mg_dl * difference_mg_dl') }} as difference_square_sum,
    {{ exact_sum('abs(difference_mg_dl)') }} as absolute_difference_sum,
    {{ exact_sum('minutes') }} as minutes_sum,
    -- How much longer the trace is than its minutes; written so that small changes lose no digits.
    {{ exact_sum(
        'difference_mg_dl * difference_mg_dl / (sqrt(minutes * minutes + difference_mg_dl * difference_mg_dl) + minutes)'
    ) }} as excess_length_sum
from differences
group by site, reading_date, day_part, readings_used, lag_name
