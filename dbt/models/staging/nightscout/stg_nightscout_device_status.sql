with device_status as (
    select * from {{ source('lake', 'nightscout_device_status') }}
    where kind = 'device_status' and not is_deleted and not is_duplicate
),

sites as (
    select * from ops.sites
),

in_local_time as (
    select
        device_status.*,
        timezone(sites.timezone, device_status.device_status_timestamp) as device_status_local_timestamp
    from device_status
    inner join sites on device_status.site = sites.site
)

select
    device_status_id,
    site,
    device_status_timestamp,
    device_status_local_timestamp,
    cast(device_status_local_timestamp as date) as reading_date,
    device,
    loop_system,
    iob_units,
    basal_iob_units,
    cob_g,
    month as utc_month
from in_local_time
