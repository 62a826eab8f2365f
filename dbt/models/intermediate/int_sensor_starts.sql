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
),

guesses as (
    select
        site,
        reading_date,
        start_timestamp,
        basis
    from with_basis
    where basis is not null
),

entered as (
    select
        site,
        reading_date,
        treatment_timestamp,
        treatment_kind
    from {{ ref('int_treatments') }}
    where
        treatment_kind in ('sensor_start', 'sensor_change')
        {% if is_incremental() %}
            and {{ is_recomputed(this.name, '', 2, 2) }}
        {% endif %}
),

-- One sensor is entered more than once: by several apps, and as inserted, then as started. The last entry counts.
treatments as (
    select distinct
        entered.site,
        entered.reading_date,
        entered.treatment_timestamp as start_timestamp,
        'treatment' as basis
    from entered
    where not exists (
        select 1 from entered as later_entries
        where
            later_entries.site = entered.site
            and later_entries.treatment_timestamp > entered.treatment_timestamp
            and later_entries.treatment_timestamp <= entered.treatment_timestamp
            + case
                -- A sensor may be worn for a night before it is started.
                when entered.treatment_kind = 'sensor_change' and later_entries.treatment_kind = 'sensor_start'
                    then interval 12 hours
                else interval 2 hours
            end
    )
),

-- What was entered is better than what the readings let guess: the first reading comes after the warm-up.
starts as (
    select * from treatments
    union all
    select guesses.* from guesses
    where not exists (
        select 1 from treatments
        where
            treatments.site = guesses.site
            and treatments.start_timestamp >= guesses.start_timestamp - interval 6 hours
            and treatments.start_timestamp <= guesses.start_timestamp + interval 6 hours
    )
)

select
    site,
    reading_date,
    start_timestamp,
    basis
from starts
{% if is_incremental() %}
    where {{ is_recomputed(this.name, 'starts') }}
{% endif %}
