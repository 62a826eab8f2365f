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
        {% for lag_name, lag_ms in lags.items() %}
            {{ lag_ms }} + cast(sensor_interval_minutes * 30000 as bigint) as furthest_{{ lag_name }}_ms,
            {{ lag_ms }} - cast(sensor_interval_minutes * 30000 as bigint) as nearest_{{ lag_name }}_ms,
        {% endfor %}
        { 'ms': reading_ms, 'mg_dl': glucose_mg_dl } as reading,
        (reading_date - date '2000-01-01') // 30 as own_block,
        (reading_date + 2 - date '2000-01-01') // 30 as block_that_looks_back
    from {{ ref('int_glucose_counted_readings') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, days_before=3, days_after=2) }}
    {% endif %}
),

-- In blocks of 30 days with the two days before: the cost of a window's frames grows faster than its rows.
blocks as (
    select
        *,
        unnest(list_distinct([own_block, block_that_looks_back])) as block
    from readings
),

-- Around the moment n hours ago, the last reading before and the first after it, each within half a sensor interval.
with_earlier as (
    select
        site,
        readings_used,
        reading_date,
        part_of_reading,
        reading_ms,
        glucose_mg_dl,
        own_block,
        block,
        min(reading_ms) over (
            partition by site, readings_used, block, reading_date, part_of_reading
        ) as part_starts_ms,
        {% for lag_name, lag_ms in lags.items() %}
            last_value(reading) over (
                partition by site, readings_used, block
                order by reading_ms
                range between furthest_{{ lag_name }}_ms preceding and {{ lag_ms }} preceding
            ) as before_{{ lag_name }},
            first_value(reading) over (
                partition by site, readings_used, block
                order by reading_ms
                range between {{ lag_ms }} preceding and nearest_{{ lag_name }}_ms preceding
            ) as after_{{ lag_name }},
        {% endfor %}
        lag(reading) over (partition by site, readings_used, block order by reading_ms) as reading_previous
    from blocks
),

-- The nearer of the two; of two equally near the earlier. And the reading just before, if at most 45 minutes ago: over
-- a longer gap nothing is known of the way.
pairs as (
    select
        site,
        readings_used,
        reading_date,
        part_of_reading,
        part_starts_ms,
        reading_ms,
        glucose_mg_dl,
        unnest([
            {% for lag_name, lag_ms in lags.items() %}
                {
                    'lag_name': '{{ lag_name }}',
                    'earlier': case
                        when
                            before_{{ lag_name }} is null
                            or reading_ms - {{ lag_ms }} - before_{{ lag_name }}.ms
                            > after_{{ lag_name }}.ms - (reading_ms - {{ lag_ms }})
                            then after_{{ lag_name }}
                        else before_{{ lag_name }}
                    end
                },
            {% endfor %}
            {
                'lag_name': 'previous',
                'earlier': case when reading_ms - reading_previous.ms <= 2700000 then reading_previous end
            }
        ]) as pair
    from with_earlier
    where block = own_block
),

differences as (
    select
        site,
        readings_used,
        reading_date,
        pair.lag_name,
        glucose_mg_dl - pair.earlier.mg_dl as difference_mg_dl,
        (reading_ms - pair.earlier.ms) / 60000.0 as minutes,
        -- A pair counts for the whole day, and for a part of it where both readings lie in the same night or day.
        unnest(
            case
                when pair.lag_name <> '24h' and pair.earlier.ms >= part_starts_ms then ['whole', part_of_reading]
                else ['whole']
            end
        ) as day_part
    from pairs
    where
        pair.earlier is not null
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
