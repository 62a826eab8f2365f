with entries as (
    select
        entry_id,
        site,
        nightscout_id,
        reading_timestamp as measured_timestamp,
        glucose_mg_dl,
        coalesce(device, '') as device,
        month as utc_month,
        'entries' as collection
    from {{ source('lake', 'nightscout_entries') }}
    where kind = 'mbg' and not is_deleted and not is_duplicate
),

-- Only what says that it is from a finger: a sensor's own value would make the sensor look exact.
bg_checks as (
    select
        site || '/treatment/' || nightscout_id as entry_id,
        site,
        nightscout_id,
        treatment_timestamp as measured_timestamp,
        glucose as glucose_mg_dl,
        coalesce(device, entered_by, '') as device,
        utc_month,
        'treatments' as collection
    from {{ ref('stg_nightscout_treatments') }}
    where treatment_kind = 'bg_check' and lower(trim(glucose_type)) = 'finger' and glucose between 20 and 600
),

sent as (
    select * from entries
    union all
    select * from bg_checks
),

-- Apps send one measurement as both; what is shown in mmol/L has lost up to 1 mg/dL. The month keeps the others' files
-- unread.
measurements as (
    select later.* from sent as later
    anti join sent as earlier
        on
            later.site = earlier.site
            and later.utc_month = earlier.utc_month
            and later.collection = 'treatments'
            and earlier.measured_timestamp between later.measured_timestamp - interval 1 minute
            and later.measured_timestamp + interval 1 minute
            and abs(earlier.glucose_mg_dl - later.glucose_mg_dl) < 1.5
            and (earlier.collection, earlier.measured_timestamp, earlier.entry_id)
            < (later.collection, later.measured_timestamp, later.entry_id)
),

sites as (
    select * from ops.sites
),

in_local_time as (
    select
        measurements.*,
        timezone(sites.timezone, measurements.measured_timestamp) as measured_local_timestamp
    from measurements
    inner join sites on measurements.site = sites.site
)

select
    entry_id,
    site,
    nightscout_id,
    measured_timestamp,
    measured_local_timestamp,
    cast(measured_local_timestamp as date) as measured_date,
    glucose_mg_dl,
    device,
    collection,
    utc_month
from in_local_time
