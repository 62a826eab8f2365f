{{
    config(
        unique_key='entry_id',
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with readings as (
    select
        *,
        cast(sensor_interval_minutes * 30000 - 1 as bigint) as just_under_half_interval_ms
    from {{ ref('stg_nightscout_glucose') }}
    {% if is_incremental() %}
        -- The day before is read too: the first reading of a day looks back at the last one before it.
        where {{ partitions_of_recomputed(this.name) }}
    {% endif %}
),

devices as (
    select
        site,
        reading_date,
        device,
        row_number() over (partition by site, reading_date order by count(*) desc, device) as device_rank
    from readings
    group by site, reading_date, device
),

ranked as (
    select
        readings.*,
        devices.device_rank,
        min(devices.device_rank) over (
            partition by readings.site, readings.reading_date
            order by epoch_ms(readings.reading_timestamp)
            range between readings.just_under_half_interval_ms preceding
            and readings.just_under_half_interval_ms following
        ) as best_device_rank_nearby
    from readings
    inner join devices
        on
            readings.site = devices.site
            and readings.reading_date = devices.reading_date
            and readings.device = devices.device
),

flagged as (
    select
        *,
        best_device_rank_nearby < device_rank as is_near_duplicate
    from ranked
),

with_previous as (
    select
        *,
        lag(glucose_mg_dl) over same_stream as previous_glucose_mg_dl,
        date_diff('millisecond', lag(reading_timestamp) over same_stream, reading_timestamp)
        / 60000.0 as minutes_since_previous
    from flagged
    window same_stream as (
        partition by site, device, is_near_duplicate
        order by reading_timestamp, entry_id
    )
)

select
    entry_id,
    site,
    nightscout_id,
    reading_timestamp,
    reading_local_timestamp,
    reading_date,
    hour_of_day,
    cast(isodow(reading_local_timestamp) as integer) as day_of_week,
    glucose_mg_dl,
    case
        when glucose_mg_dl < 70 then 'hypoglycemia'
        when glucose_mg_dl <= 180 then 'in_range'
        else 'hyperglycemia'
    end as glucose_category,
    case
        when glucose_mg_dl < 54 then 'very_low'
        when glucose_mg_dl < 70 then 'low'
        when glucose_mg_dl <= 180 then 'in_range'
        when glucose_mg_dl <= 250 then 'high'
        else 'very_high'
    end as glucose_range,
    case
        when not is_near_duplicate and minutes_since_previous <= 2 * sensor_interval_minutes
            then glucose_mg_dl - previous_glucose_mg_dl
    end as glucose_change_mg_dl,
    -- Not beyond half a day: then the row depends on its own day and the one before, which are computed together.
    case
        when not is_near_duplicate and minutes_since_previous <= 720 then minutes_since_previous
    end as minutes_since_previous,
    direction,
    device,
    is_near_duplicate
from with_previous
{% if is_incremental() %}
    where {{ is_recomputed(this.name, 'with_previous') }}
{% endif %}
