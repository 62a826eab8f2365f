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

-- By month, so that what asks for some months reads only their files.
with_neighbours as (
    select
        *,
        list({
            'collection': collection,
            'measured_timestamp': measured_timestamp,
            'entry_id': entry_id,
            'glucose_mg_dl': glucose_mg_dl
        }) over (
            partition by site, utc_month
            order by measured_timestamp
            range between interval 1 minute preceding and interval 1 minute following
        ) as neighbours
    from sent
),

-- Apps send one measurement as both; what is shown in mmol/L has lost up to 1 mg/dL. Entries all stay.
measurements as (
    select * from with_neighbours
    where
        collection = 'entries'
        or len(list_filter(
            neighbours,
            neighbour -> abs(neighbour.glucose_mg_dl - glucose_mg_dl) < 1.5
            and (neighbour.collection, neighbour.measured_timestamp, neighbour.entry_id)
            < (collection, measured_timestamp, entry_id)
        )) = 0
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
