{{
    config(
        unique_key='treatment_id',
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with treatments as (
    select
        *,
        try_cast(json_extract_string(document, '$.absolute') as double) is not null as has_absolute_rate,
        lower(json_extract_string(document, '$.temp')) in ('percent', 'percentage') as is_percent_by_name,
        {{ plausible("try_cast(json_extract_string(document, '$.enteredinsulin') as double)", 0, 100) }}
            as entered_units,
        coalesce(lower(json_extract_string(document, '$.isEmulatingTempBasal')) = 'true', false) as is_emulated,
        json_extract_string(document, '$.originalProfileName') as original_profile_name,
        json_extract_string(document, '$.profileJson') as profile_json
    from {{ ref('stg_nightscout_treatments') }}
    {% if is_incremental() %}
        where {{ partitions_of_recomputed(this.name) }}
    {% endif %}
),

-- `absolute` wins over `percent`, as in Nightscout; `rate` alone is units per hour unless the document says percent.
with_rate as (
    select
        *,
        case
            when treatment_kind <> 'temp_basal' then null
            when has_absolute_rate then rate_units_per_hour
            when rate_percent is null and not coalesce(is_percent_by_name, false) then rate_units_per_hour
        end as sent_rate,
        case when treatment_kind = 'temp_basal' and not has_absolute_rate then rate_percent end as sent_percent
    from treatments
),

-- Nightscout's combo bolus: `insulin` at once, and `relative` units per hour over the duration.
with_extension as (
    select
        *,
        case
            when treatment_kind <> 'combo_bolus' then null
            when is_emulated then 0
            when extended_insulin_rate >= 0 and duration_minutes > 0
                then extended_insulin_rate * least(duration_minutes, 1440) / 60
            when split_ext_pct > 0 and entered_units is not null then entered_units * split_ext_pct / 100
            when coalesce(split_ext_pct, 0) = 0 and coalesce(extended_insulin_rate, 0) = 0 then 0
        end as sent_extended_units,
        treatment_kind not in ('site_change', 'insulin_change') and coalesce(upper(bolus_type), '') <> 'PRIMING'
            as is_for_the_body
    from with_rate
),

split as (
    select
        *,
        {{ plausible('sent_extended_units', 0, 100) }} as extended_units,
        case
            when not is_for_the_body or treatment_kind = 'smb' then null
            when treatment_kind = 'combo_bolus' and insulin_units = entered_units and split_ext_pct > 0
                then entered_units * coalesce(split_now_pct, 100 - split_ext_pct) / 100
            when treatment_kind = 'combo_bolus' and not has_implausible_insulin
                then coalesce(insulin_units, entered_units * split_now_pct / 100)
            else insulin_units
        end as bolus_units,
        case when treatment_kind = 'smb' then insulin_units end as smb_units
    from with_extension
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
    smb_units,
    extended_units,
    case when extended_units > 0 then least(coalesce(duration_minutes, 0), 1440) end as extended_minutes,
    is_for_the_body
    and (has_implausible_insulin or (treatment_kind = 'combo_bolus' and extended_units is null)) as has_unknown_insulin,
    carbs_g,
    has_implausible_carbs as has_unknown_carbs,
    protein_g,
    fat_g,
    has_implausible_amount
    or coalesce(sent_rate not between 0 and 50, false)
    or coalesce(sent_percent not between -100 and 1000, false)
    or coalesce(sent_extended_units not between 0 and 100, false) as has_implausible_amount,
    duration_minutes,
    {{ plausible('sent_rate', 0, 50) }} as temp_basal_units_per_hour,
    {{ plausible('sent_percent', -100, 1000) }} as temp_basal_percent,
    is_automatic,
    profile_name,
    original_profile_name,
    profile_percentage,
    profile_timeshift_hours,
    case when treatment_kind = 'profile_switch' then profile_json end as profile_json,
    target_low,
    target_high,
    glucose,
    glucose_type,
    glucose_units,
    entered_by,
    notes,
    reason,
    device
from split
{% if is_incremental() %}
    where {{ is_recomputed(this.name, 'split') }}
{% endif %}
