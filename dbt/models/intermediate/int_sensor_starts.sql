{{
    config(
        unique_key=['site', 'start_timestamp'],
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with readings as (
    select * from {{ ref('int_glucose_enriched') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, '', 2, 2) }}
    {% endif %}
),

with_silence as (
    select
        *,
        date_diff('millisecond', lag(reading_timestamp) over of_site, reading_timestamp) / 60000.0 as silence_minutes,
        lag(device) over of_site as previous_device,
        date_diff('millisecond', lag(reading_timestamp) over of_device, reading_timestamp)
        / 60000.0 as device_silence_minutes
    from readings
    window
        of_site as (
            partition by site, is_near_duplicate
            order by reading_timestamp, entry_id
        ),
        of_device as (
            partition by site, device
            order by reading_timestamp, entry_id
        )
),

-- Half a day at most: a start then follows from its own day and the one before, which are computed together.
with_basis as (
    select
        site,
        reading_date,
        reading_timestamp as start_timestamp,
        case
            when silence_minutes is null or silence_minutes >= 720 then 'long_silence'
            -- No sensor on the market warms up in less than half an hour.
            when
                silence_minutes >= 30 and device <> previous_device
                and (device_silence_minutes is null or device_silence_minutes >= 720)
                then 'new_device'
        end as basis
    from with_silence
    where not is_near_duplicate
)

select
    site,
    reading_date,
    start_timestamp,
    basis
from with_basis
where
    basis is not null
    {% if is_incremental() %}
        and {{ is_recomputed(this.name, 'with_basis') }}
    {% endif %}
