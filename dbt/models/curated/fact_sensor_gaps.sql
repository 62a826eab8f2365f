{{
    config(
        materialized='incremental',
        unique_key='gap_id',
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_gaps() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

-- A gap may span many days: computed again are those that reach into the range of the changed days.
with readings as (
    select facts.*
    from {{ ref('fact_glucose_readings') }} as facts
    {% if is_incremental() %}
        inner join {{ changed_range(this.name, ref('fact_glucose_readings')) }} as changed
            on
                facts.site = changed.site
                and facts.reading_date >= changed.day_before
                and facts.reading_date <= changed.day_after
    {% endif %}
),

with_next as (
    select
        site,
        reading_timestamp as start_timestamp,
        lead(reading_timestamp) over in_order as end_timestamp,
        reading_date as start_date,
        lead(reading_date) over in_order as end_date,
        date_diff('millisecond', reading_timestamp, lead(reading_timestamp) over in_order) / 60000.0 as gap_minutes,
        sensor_interval_minutes
    from readings
    window in_order as (
        partition by site
        order by reading_timestamp, entry_id
    )
),

gaps as (
    select with_next.*
    from with_next
    {% if is_incremental() %}
        inner join {{ changed_range(this.name, ref('fact_glucose_readings')) }} as changed
            on
                with_next.site = changed.site
                and with_next.end_date >= changed.first_day
                and with_next.start_date <= changed.last_day
    {% endif %}
    where with_next.gap_minutes > 2 * with_next.sensor_interval_minutes
),

-- Half a day of silence is counted as a new sensor, but it does not say that there was a warm-up.
starts as (
    select * from {{ ref('int_sensor_starts') }}
    where basis <> 'long_silence'
),

warm_ups as (
    select distinct
        gaps.site,
        gaps.start_timestamp
    from gaps
    inner join starts
        on
            gaps.site = starts.site
            and gaps.start_timestamp < starts.start_timestamp
            and gaps.end_timestamp >= starts.start_timestamp
)

select
    gaps.site || '/' || epoch_ms(gaps.start_timestamp) as gap_id,
    gaps.site,
    gaps.start_timestamp,
    gaps.end_timestamp,
    gaps.start_date,
    gaps.end_date,
    cast(gaps.gap_minutes as double) as gap_minutes,
    gaps.sensor_interval_minutes,
    cast(round(gaps.gap_minutes / gaps.sensor_interval_minutes) - 1 as bigint) as missing_reading_count,
    warm_ups.site is not null as is_warm_up
from gaps
left join warm_ups on gaps.site = warm_ups.site and gaps.start_timestamp = warm_ups.start_timestamp
