with entries as (
    select * from {{ source('lake', 'nightscout_entries') }}
    where kind = 'mbg' and not is_deleted and not is_duplicate
),

sites as (
    select * from ops.sites
),

in_local_time as (
    select
        entries.*,
        timezone(sites.timezone, entries.reading_timestamp) as measured_local_timestamp
    from entries
    inner join sites on entries.site = sites.site
)

select
    entry_id,
    site,
    nightscout_id,
    reading_timestamp as measured_timestamp,
    measured_local_timestamp,
    cast(measured_local_timestamp as date) as measured_date,
    glucose_mg_dl,
    coalesce(device, '') as device,
    month as utc_month
from in_local_time
