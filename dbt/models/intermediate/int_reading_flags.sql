{{
    config(
        unique_key=['entry_id', 'flag'],
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

-- A flag follows from readings at most two hours away: those of its own day and the days beside it.
with readings as (
    select
        entry_id,
        site,
        reading_date,
        reading_timestamp,
        hour_of_day,
        glucose_mg_dl,
        glucose_mg_dl < 70 as is_low,
        coalesce(
            date_diff('millisecond', lag(reading_timestamp) over in_order, reading_timestamp) > 20 * 60000, true
        ) as is_after_gap,
        lag(glucose_mg_dl < 70) over in_order as was_low
    from {{ ref('fact_glucose_readings') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, '', 2, 2) }}
    {% endif %}
    window in_order as (
        partition by site
        order by reading_timestamp, entry_id
    )
),

segmented as (
    select
        *,
        sum(cast(is_after_gap as integer)) over in_order as segment,
        sum(cast(is_after_gap or is_low <> was_low as integer)) over in_order as run
    from readings
    window in_order as (
        partition by site
        order by reading_timestamp, entry_id
    )
),

-- Every bound has a minute to spare, since sensors are some seconds early or late.
surroundings as (
    select
        *,
        max(glucose_mg_dl) over quarter_before as quarter_before_mg_dl,
        max(glucose_mg_dl) over quarter_after as quarter_after_mg_dl,
        max(glucose_mg_dl) over half_hour_before as half_hour_before_mg_dl,
        max(glucose_mg_dl) over half_hour_after as half_hour_after_mg_dl,
        glucose_mg_dl - min(glucose_mg_dl) over quarter_before as rise_mg_dl,
        lead(reading_timestamp) over in_order as next_timestamp
    from segmented
    window
        in_order as (
            partition by site, segment
            order by reading_timestamp, entry_id
        ),
        quarter_before as (
            partition by site, segment
            order by reading_timestamp
            range between interval 16 minutes preceding and current row
        ),
        quarter_after as (
            partition by site, segment
            order by reading_timestamp
            range between current row and interval 16 minutes following
        ),
        half_hour_before as (
            partition by site, segment
            order by reading_timestamp
            range between interval 31 minutes preceding and current row
        ),
        half_hour_after as (
            partition by site, segment
            order by reading_timestamp
            range between current row and interval 31 minutes following
        )
),

with_recovery as (
    select
        *,
        max(rise_mg_dl) over (
            partition by site, segment
            order by reading_timestamp
            range between current row and interval 16 minutes following
        ) as fastest_rise_mg_dl
    from surroundings
),

lows as (
    select
        site,
        run,
        bool_or(is_after_gap) as is_cut,
        date_diff('millisecond', min(reading_timestamp), arg_max(next_timestamp, reading_timestamp))
        / 60000.0 as minutes_until_back,
        arg_min(hour_of_day, (glucose_mg_dl, reading_timestamp)) as nadir_hour,
        max(quarter_before_mg_dl - glucose_mg_dl) as fastest_fall_mg_dl,
        max(fastest_rise_mg_dl) as fastest_rise_mg_dl,
        arg_min(half_hour_before_mg_dl, reading_timestamp) as level_before_mg_dl,
        arg_min(quarter_before_mg_dl, reading_timestamp) as level_just_before_mg_dl,
        arg_max(quarter_after_mg_dl, reading_timestamp) as level_just_after_mg_dl,
        arg_max(half_hour_after_mg_dl, reading_timestamp) as level_after_mg_dl
    from with_recovery
    where is_low
    group by site, run
),

compression_lows as (
    select
        site,
        run
    from lows
    where
        not is_cut
        and (nadir_hour >= 23 or nadir_hour < 7)
        and minutes_until_back <= 31
        and fastest_fall_mg_dl >= 30
        and fastest_rise_mg_dl >= 30
        -- From a level that was held, back to it at once, and no further.
        and level_just_before_mg_dl >= level_before_mg_dl - 10
        and level_just_after_mg_dl >= level_before_mg_dl - 30
        and level_after_mg_dl <= level_before_mg_dl + 30
),

starts as (
    select * from {{ ref('int_sensor_starts') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, '', 2, 2) }}
    {% endif %}
),

flags as (
    select
        segmented.entry_id,
        segmented.site,
        segmented.reading_date,
        'compression_low_suspect' as flag
    from segmented
    inner join compression_lows on segmented.site = compression_lows.site and segmented.run = compression_lows.run
    union all
    select
        readings.entry_id,
        readings.site,
        readings.reading_date,
        'sensor_warm_up' as flag
    from readings
    asof inner join starts on readings.site = starts.site and readings.reading_timestamp >= starts.start_timestamp
    where readings.reading_timestamp < starts.start_timestamp + interval 2 hours
)

select
    entry_id,
    site,
    reading_date,
    flag
from flags
{% if is_incremental() %}
    where {{ is_recomputed(this.name, 'flags') }}
{% endif %}
