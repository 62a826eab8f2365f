{{
    config(
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_sites() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with readings as (
    select * from {{ ref('int_glucose_enriched') }}
    where
        not is_near_duplicate
        {% if is_incremental() %}
            and {{ is_recomputed_site(this.name) }}
        {% endif %}
),

sites as (
    select * from ops.sites
),

days_with_readings as (
    select
        site,
        reading_date,
        mode(sensor_interval_minutes order by sensor_interval_minutes) as sensor_interval_minutes,
        max(reading_timestamp) as last_reading_timestamp
    from readings
    group by site, reading_date
),

spans as (
    select
        site,
        min(reading_date) as first_date,
        max(reading_date) as newest_date,
        max(last_reading_timestamp) as last_reading_timestamp
    from days_with_readings
    group by site
),

-- Days without any reading too: they are expected, and what is missing has to show.
all_days as (
    select
        site,
        first_date,
        newest_date,
        last_reading_timestamp,
        cast(unnest(range(first_date, newest_date + 1, interval 1 day)) as date) as reading_date
    from spans
),

with_interval as (
    select
        all_days.*,
        last_value(days_with_readings.sensor_interval_minutes ignore nulls) over (
            partition by all_days.site order by all_days.reading_date
        ) as sensor_interval_minutes
    from all_days
    left join days_with_readings
        on all_days.site = days_with_readings.site and all_days.reading_date = days_with_readings.reading_date
),

parts (day_part, starts_after, ends_after) as (
    values
    ('whole', interval 0 hour, interval 24 hour),
    ('night', interval 0 hour, interval 6 hour),
    ('day', interval 6 hour, interval 24 hour)
),

-- From wall-clock times, so that days and nights with a clock change have their true length.
with_bounds as (
    select
        with_interval.*,
        parts.day_part,
        timezone(sites.timezone, with_interval.reading_date + parts.starts_after) as part_start_timestamp,
        timezone(sites.timezone, with_interval.reading_date + parts.ends_after) as part_end_timestamp
    from with_interval
    cross join parts
    inner join sites on with_interval.site = sites.site
)

select
    site,
    reading_date,
    day_part,
    first_date,
    newest_date,
    sensor_interval_minutes,
    date_diff('millisecond', part_start_timestamp, part_end_timestamp) / 60000.0 as part_minutes,
    -- Nothing can be expected after the newest reading: the day goes on.
    greatest(
        0,
        least(
            date_diff('millisecond', part_start_timestamp, part_end_timestamp) / 60000.0,
            date_diff('millisecond', part_start_timestamp, last_reading_timestamp) / 60000.0 + sensor_interval_minutes
        )
    ) / sensor_interval_minutes as expected_readings
from with_bounds
