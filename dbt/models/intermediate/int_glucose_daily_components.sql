{{
    config(
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days(days_after=2) }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with readings as (
    select
        *,
        -- Kovatchev 1997: a scale on which the clinical centre, about 112.5 mg/dL, is zero.
        1.509 * (pow(ln(glucose_mg_dl), 1.084) - 5.381) as symmetrized
    from {{ ref('int_glucose_counted_readings') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, days_after=2) }}
    {% endif %}
),

with_risk as (
    select
        *,
        case when symmetrized < 0 then 10 * symmetrized * symmetrized else 0.0 end as low_risk,
        case when symmetrized > 0 then 10 * symmetrized * symmetrized else 0.0 end as high_risk
    from readings
),

by_part as (
    select
        *,
        unnest(['whole', part_of_reading]) as day_part
    from with_risk
),

levels as (
    select
        site,
        reading_date,
        day_part,
        readings_used,
        count(*) as reading_count,
        {{ exact_sum('glucose_mg_dl') }} as glucose_sum,
        -- Around the day's own mean: sums of plain squares lose the digits of a small SD. Ordered, since its last bit
        -- depends on the order, and a rebuild has to equal to the last bit.
        var_pop(glucose_mg_dl order by glucose_mg_dl) * count(*) as squared_deviation_sum,
        min(glucose_mg_dl) as min_mg_dl,
        max(glucose_mg_dl) as max_mg_dl,
        count(*) filter (glucose_mg_dl < 54) as very_low_count,
        count(*) filter (glucose_mg_dl >= 54 and glucose_mg_dl < 70) as low_count,
        count(*) filter (glucose_mg_dl between 70 and 180) as in_range_count,
        count(*) filter (glucose_mg_dl > 180 and glucose_mg_dl <= 250) as high_count,
        count(*) filter (glucose_mg_dl > 250) as very_high_count,
        count(*) filter (glucose_mg_dl between 70 and 140) as tight_range_count,
        {{ exact_sum('low_risk') }} as low_risk_sum,
        {{ exact_sum('high_risk') }} as high_risk_sum,
        max(low_risk) as low_risk_max,
        max(high_risk) as high_risk_max,
        glucose_mage(
            list(reading_ms / 60000.0 order by reading_ms) filter (day_part = 'whole'),
            list(glucose_mg_dl order by reading_ms) filter (day_part = 'whole')
        ) as mage_mg_dl
    from by_part
    group by site, reading_date, day_part, readings_used
),

pairs as (
    select
        site,
        reading_date,
        day_part,
        readings_used,
        {% for lag in ['1h', '2h', '4h', '24h'] %}
            max(pair_count) filter (lag_name = '{{ lag }}') as pair_{{ lag }}_count,
            max(difference_sum) filter (lag_name = '{{ lag }}') as difference_{{ lag }}_sum,
            max(difference_square_sum) filter (lag_name = '{{ lag }}') as difference_square_{{ lag }}_sum,
        {% endfor %}
        max(absolute_difference_sum) filter (lag_name = '24h') as absolute_difference_24h_sum,
        max(absolute_difference_sum) filter (lag_name = 'previous') as absolute_step_sum,
        max(minutes_sum) filter (lag_name = 'previous') as step_minutes_sum,
        max(excess_length_sum) filter (lag_name = 'previous') as excess_length_sum
    from {{ ref('int_glucose_daily_pairs') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, days_after=2) }}
    {% endif %}
    group by site, reading_date, day_part, readings_used
)

select
    levels.*,
    sqrt(levels.squared_deviation_sum / nullif(levels.reading_count - 1, 0)) as sd_mg_dl,
    {% for lag in ['1h', '2h', '4h', '24h'] %}
        coalesce(pairs.pair_{{ lag }}_count, 0) as pair_{{ lag }}_count,
        pairs.difference_{{ lag }}_sum,
        pairs.difference_square_{{ lag }}_sum,
    {% endfor %}
    pairs.absolute_difference_24h_sum,
    pairs.absolute_step_sum,
    pairs.step_minutes_sum,
    pairs.excess_length_sum
from levels
left join pairs
    on
        levels.site = pairs.site
        and levels.reading_date = pairs.reading_date
        and levels.day_part = pairs.day_part
        and levels.readings_used = pairs.readings_used
