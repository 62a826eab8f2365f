with entries as (
    select * from {{ source('lake', 'nightscout_entries') }}
    where kind = 'cal' and not is_deleted and not is_duplicate
)

select
    entry_id,
    site,
    nightscout_id,
    reading_timestamp as calibrated_timestamp,
    slope,
    intercept,
    scale,
    coalesce(device, '') as device,
    month as utc_month
from entries
