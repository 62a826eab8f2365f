{{
    config(
        materialized='incremental',
        unique_key='treatment_id',
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with treatments as (
    select * from {{ ref('int_treatments') }}
)

select
    treatment_id,
    site,
    nightscout_id,
    treatment_timestamp,
    treatment_local_timestamp,
    reading_date,
    event_type,
    treatment_kind,
    bolus_units,
    extended_units,
    extended_minutes,
    smb_units,
    carbs_g,
    protein_g,
    fat_g,
    duration_minutes,
    temp_basal_units_per_hour,
    temp_basal_percent,
    profile_name,
    profile_percentage,
    target_low,
    target_high,
    glucose,
    glucose_type,
    glucose_units,
    is_automatic,
    has_implausible_amount,
    has_unknown_insulin,
    entered_by,
    notes,
    reason,
    device
from treatments
{% if is_incremental() %}
    where {{ is_recomputed(this.name, 'treatments') }}
{% endif %}
