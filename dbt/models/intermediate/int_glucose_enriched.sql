{{
    config(
        unique_key='entry_id',
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with staged as (
    select * from {{ ref('stg_nightscout_glucose') }}
    {% if is_incremental() %}
        -- The day before is read too: the first reading of a day looks back at the last one before it.
        where {{ partitions_of_recomputed(this.name) }}
    {% endif %}
),

distances as (
    select
        site,
        reading_date,
        device,
        date_diff('millisecond', lag(reading_timestamp) over same_day_and_device, reading_timestamp)
        / 60000.0 as minutes
    from staged
    window same_day_and_device as (
        partition by site, reading_date, device
        order by reading_timestamp, entry_id
    )
),

-- Sensors on the market send every 1, 3, 5 or 15 minutes. At other distances readings are missing, or were sent twice.
snapped as (
    select
        site,
        reading_date,
        device,
        case
            when minutes between 0.6 and 1.4 then 1.0
            when minutes between 2.5 and 3.5 then 3.0
            when minutes between 4 and 6 then 5.0
            when minutes between 13 and 17 then 15.0
        end as interval_minutes
    from distances
),

found_intervals as (
    select
        site,
        reading_date,
        device,
        interval_minutes
    from snapped
    where interval_minutes is not null
    group by site, reading_date, device, interval_minutes
    having count(*) >= 6
    qualify row_number() over (
        partition by site, reading_date, device
        order by count(*) desc, interval_minutes
    ) = 1
),

readings as (
    select
        staged.*,
        coalesce(staged.configured_interval_minutes, found_intervals.interval_minutes, 5.0) as sensor_interval_minutes
    from staged
    left join found_intervals
        on
            staged.site = found_intervals.site
            and staged.reading_date = found_intervals.reading_date
            and staged.device = found_intervals.device
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

with_device_rank as (
    select
        readings.*,
        devices.device_rank,
        -- Scans of a sensor that sends every 15 minutes have no interval of their own; near is what is near by the
        -- wider of the two.
        cast(
            greatest(
                readings.sensor_interval_minutes,
                max(readings.sensor_interval_minutes) filter (where devices.device_rank = 1) over (
                    partition by readings.site, readings.reading_date
                )
            ) * 30000 - 1 as bigint
        ) as just_under_half_interval_ms
    from readings
    inner join devices
        on
            readings.site = devices.site
            and readings.reading_date = devices.reading_date
            and readings.device = devices.device
),

ranked as (
    select
        *,
        min(device_rank) over (
            partition by site, reading_date
            order by epoch_ms(reading_timestamp)
            range between just_under_half_interval_ms preceding
            and just_under_half_interval_ms following
        ) as best_device_rank_nearby
    from with_device_rank
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
        / 60000.0 as minutes_since_previous,
        date_diff('millisecond', lag(reading_timestamp) over same_site, reading_timestamp) / 60000.0 as gap_minutes
    from flagged
    window
        same_stream as (
            partition by site, device, is_near_duplicate
            order by reading_timestamp, entry_id
        ),
        same_site as (
            partition by site, is_near_duplicate
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
    case when not is_near_duplicate and gap_minutes <= 720 then gap_minutes end as gap_minutes,
    direction,
    device,
    cast(sensor_interval_minutes as double) as sensor_interval_minutes,
    is_near_duplicate
from with_previous
{% if is_incremental() %}
    where {{ is_recomputed(this.name, 'with_previous') }}
{% endif %}
