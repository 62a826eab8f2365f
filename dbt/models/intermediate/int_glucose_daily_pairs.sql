{{
    config(
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days(days_after=2) }}",
        post_hook="{{ move_watermark() }}",
    )
}}

-- Two days after a changed one, not one: the day after it may have other flags now, and the next looks back at those.
with readings as (
    select * from {{ ref('int_glucose_counted_readings') }} as counted
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, 'counted', days_after=2) }}
    {% endif %}
),

earlier_readings as (
    select * from {{ ref('int_glucose_counted_readings') }} as counted
    {% if is_incremental() %}
        -- With the day before, which the first readings look back at.
        where {{ is_recomputed(this.name, 'counted', days_before=2, days_after=2) }}
    {% endif %}
),

lags (lag_name, lag_ms) as (
    values ('1h', 3600000), ('2h', 7200000), ('4h', 14400000), ('24h', 86400000)
),

wanted as (
    select
        readings.*,
        lags.lag_name,
        readings.reading_ms - lags.lag_ms as wanted_ms,
        readings.sensor_interval_minutes * 30000 as tolerance_ms
    from readings
    cross join lags
),

before_wanted as (
    select
        wanted.*,
        earlier.reading_ms as before_ms,
        earlier.glucose_mg_dl as before_mg_dl,
        earlier.reading_date as before_date,
        earlier.part_of_reading as before_part
    from wanted
    asof left join earlier_readings as earlier
        on
            wanted.site = earlier.site
            and wanted.readings_used = earlier.readings_used
            and wanted.wanted_ms >= earlier.reading_ms
),

around_wanted as (
    select
        before_wanted.*,
        earlier.reading_ms as after_ms,
        earlier.glucose_mg_dl as after_mg_dl,
        earlier.reading_date as after_date,
        earlier.part_of_reading as after_part,
        coalesce(before_wanted.wanted_ms - before_wanted.before_ms <= before_wanted.tolerance_ms, false) as is_before_near,
        coalesce(earlier.reading_ms - before_wanted.wanted_ms <= before_wanted.tolerance_ms, false) as is_after_near
    from before_wanted
    asof left join earlier_readings as earlier
        on
            before_wanted.site = earlier.site
            and before_wanted.readings_used = earlier.readings_used
            and before_wanted.wanted_ms <= earlier.reading_ms
),

-- The nearest; of two equally near the earlier.
chosen as (
    select
        *,
        is_before_near and (not is_after_near or wanted_ms - before_ms <= after_ms - wanted_ms) as is_before_chosen
    from around_wanted
    where is_before_near or is_after_near
),

lagged as (
    select
        site,
        reading_date,
        readings_used,
        part_of_reading,
        reading_ms,
        lag_name,
        glucose_mg_dl - case when is_before_chosen then before_mg_dl else after_mg_dl end as difference_mg_dl,
        null as minutes,
        reading_date = case when is_before_chosen then before_date else after_date end
        and part_of_reading = case when is_before_chosen then before_part else after_part end as is_within_part
    from chosen
),

-- The reading just before, at most 45 minutes ago: over a longer gap nothing is known of the way.
consecutive as (
    select
        readings.site,
        readings.reading_date,
        readings.readings_used,
        readings.part_of_reading,
        readings.reading_ms,
        'previous' as lag_name,
        readings.glucose_mg_dl - earlier.glucose_mg_dl as difference_mg_dl,
        (readings.reading_ms - earlier.reading_ms) / 60000.0 as minutes,
        readings.reading_date = earlier.reading_date
        and readings.part_of_reading = earlier.part_of_reading as is_within_part
    from readings
    asof inner join earlier_readings as earlier
        on
            readings.site = earlier.site
            and readings.readings_used = earlier.readings_used
            and readings.reading_ms > earlier.reading_ms
    where readings.reading_ms - earlier.reading_ms <= 2700000
),

pairs as (
    select * from lagged
    union all
    select * from consecutive
),

-- A pair counts for the whole day, and for its part of the day where both readings lie in the same night or day.
by_part as (
    select
        *,
        unnest(case when is_within_part then ['whole', part_of_reading] else ['whole'] end) as day_part
    from pairs
)

select
    site,
    reading_date,
    day_part,
    readings_used,
    lag_name,
    count(*) as pair_count,
    sum(difference_mg_dl order by reading_ms) as difference_sum,
    sum(difference_mg_dl * difference_mg_dl order by reading_ms) as difference_square_sum,
    sum(abs(difference_mg_dl) order by reading_ms) as absolute_difference_sum,
    sum(minutes order by reading_ms) as minutes_sum,
    -- How much longer the trace is than its minutes; written so that small changes lose no digits.
    sum(
        difference_mg_dl * difference_mg_dl / (sqrt(minutes * minutes + difference_mg_dl * difference_mg_dl) + minutes)
        order by reading_ms
    ) as excess_length_sum
from by_part
where day_part = 'whole' or lag_name <> '24h'
group by site, reading_date, day_part, readings_used, lag_name
