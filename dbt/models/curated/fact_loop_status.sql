{{
    config(
        materialized='incremental',
        unique_key=['site', 'slot_timestamp'],
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

-- A phone, a pump and a loop each write documents; those that know neither figure say nothing here.
with statuses as (
    select
        *,
        time_bucket(interval 5 minutes, device_status_timestamp) as slot_timestamp
    from {{ ref('stg_nightscout_device_status') }}
    where
        (iob_units is not null or cob_g is not null)
        {% if is_incremental() %}
            and {{ partitions_of_recomputed(this.name) }}
        {% endif %}
),

-- Of a slot the last document with the figure; slots never cross midnight, whose offsets are whole quarters of an hour.
slots as (
    select
        site,
        reading_date,
        slot_timestamp,
        max(device_status_timestamp) as status_timestamp,
        max_by(iob_units, (device_status_timestamp, device_status_id)) filter (iob_units is not null) as iob_units,
        max_by(basal_iob_units, (device_status_timestamp, device_status_id)) filter (basal_iob_units is not null)
            as basal_iob_units,
        max_by(cob_g, (device_status_timestamp, device_status_id)) filter (cob_g is not null) as cob_g,
        max_by(loop_system, (device_status_timestamp, device_status_id)) filter (loop_system is not null)
            as loop_system
    from statuses
    group by site, reading_date, slot_timestamp
)

select
    site,
    reading_date,
    slot_timestamp,
    status_timestamp,
    iob_units,
    basal_iob_units,
    cob_g,
    loop_system
from slots
{% if is_incremental() %}
    where {{ is_recomputed(this.name, 'slots') }}
{% endif %}
