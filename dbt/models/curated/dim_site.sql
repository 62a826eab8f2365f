{{ config(materialized='table') }}

with sites as (
    select * from ops.sites
),

days as (
    select
        site,
        sum(reading_count) as reading_count,
        count(*) as day_count,
        min(first_reading_timestamp) as first_reading_timestamp,
        max(last_reading_timestamp) as last_reading_timestamp,
        arg_max(sensor_interval_minutes, reading_date) as sensor_interval_minutes
    from {{ ref('dim_glucose_date') }}
    group by site
)

select
    sites.site,
    sites.timezone,
    sites.timezone_source,
    coalesce(days.sensor_interval_minutes, sites.sensor_interval_minutes) as sensor_interval_minutes,
    cast(coalesce(days.reading_count, 0) as bigint) as reading_count,
    cast(coalesce(days.day_count, 0) as bigint) as day_count,
    days.first_reading_timestamp,
    days.last_reading_timestamp
from sites
left join days on sites.site = days.site
