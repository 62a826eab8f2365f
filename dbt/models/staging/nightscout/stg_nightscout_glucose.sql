with entries as (
    select * from {{ source('lake', 'nightscout_entries') }}
    where kind = 'sgv' and not is_deleted and not is_duplicate
),

sites as (
    select * from ops.sites
),

in_local_time as (
    select
        entries.*,
        sites.sensor_interval_minutes as configured_interval_minutes,
        timezone(sites.timezone, entries.reading_timestamp) as reading_local_timestamp
    from entries
    inner join sites on entries.site = sites.site
)

select
    entry_id,
    site,
    nightscout_id,
    reading_timestamp,
    reading_local_timestamp,
    cast(reading_local_timestamp as date) as reading_date,
    cast(hour(reading_local_timestamp) as integer) as hour_of_day,
    glucose_mg_dl,
    direction,
    coalesce(device, '') as device,
    configured_interval_minutes,
    month as utc_month
from in_local_time
