with treatments as (
    select
        *,
        trim(regexp_replace(lower(coalesce(event_type, '')), '\s+', ' ', 'g')) as event_name,
        coalesce(is_automatic, false) as is_by_loop
    from {{ source('lake', 'nightscout_treatments') }}
    where kind = 'treatment' and not is_deleted and not is_duplicate
),

sites as (
    select * from ops.sites
),

cleaned as (
    select
        treatments.* replace (
            {{ plausible('treatments.insulin_units', 0, 100) }} as insulin_units,
            {{ plausible('treatments.carbs_g', 0, 500) }} as carbs_g,
            greatest(treatments.duration_minutes, 0) as duration_minutes
        ),
        coalesce(treatments.insulin_units not between 0 and 100, false)
        or coalesce(treatments.carbs_g not between 0 and 500, false) as has_implausible_amount,
        coalesce(treatments.insulin_units not between 0 and 100, false) as has_implausible_insulin,
        coalesce(treatments.carbs_g not between 0 and 500, false) as has_implausible_carbs,
        timezone(sites.timezone, treatments.treatment_timestamp) as treatment_local_timestamp
    from treatments
    inner join sites on treatments.site = sites.site
)

select
    treatment_id,
    site,
    nightscout_id,
    treatment_timestamp,
    treatment_local_timestamp,
    cast(treatment_local_timestamp as date) as reading_date,
    event_type,
    case
        when coalesce(upper(bolus_type), '') = 'PRIMING' then 'other'
        when contains(event_name, 'temp basal') or contains(event_name, 'tempbasal') then 'temp_basal'
        when event_name = 'smb' or coalesce(upper(bolus_type), '') = 'SMB' then 'smb'
        -- Nightscout makes two documents of a pre-bolus: this one has the carbohydrates.
        when event_name = 'combo bolus' and carbs_g > 0 and insulin_units is null and extended_insulin_rate is null
            then 'carbs'
        when event_name = 'combo bolus' then 'combo_bolus'
        when event_name = 'profile switch' then 'profile_switch'
        when starts_with(event_name, 'temporary target') then 'temporary_target'
        when event_name in ('site change', 'cannula change') then 'site_change'
        when event_name = 'sensor start' then 'sensor_start'
        when event_name in ('sensor change', 'sensor insert') then 'sensor_change'
        when event_name in ('insulin change', 'insulin cartridge change') then 'insulin_change'
        when event_name = 'pump battery change' then 'pump_battery'
        when event_name in ('suspend pump', 'pump suspend') then 'suspend'
        when event_name in ('resume pump', 'pump resume') then 'resume'
        when event_name = 'exercise' then 'exercise'
        when event_name = 'bg check' then 'bg_check'
        when event_name in ('note', 'announcement', 'question') then 'note'
        when insulin_units > 0 and coalesce(carbs_g, 0) = 0 and is_by_loop then 'smb'
        when insulin_units > 0 and carbs_g > 0 then 'meal'
        when insulin_units > 0 then 'bolus'
        when carbs_g > 0 then 'carbs'
        when contains(event_name, 'bolus') then 'bolus'
        when contains(event_name, 'carb') then 'carbs'
        else 'other'
    end as treatment_kind,
    insulin_units,
    carbs_g,
    protein_g,
    fat_g,
    has_implausible_amount,
    has_implausible_insulin,
    has_implausible_carbs,
    duration_minutes,
    rate_units_per_hour,
    rate_percent,
    is_by_loop as is_automatic,
    bolus_type,
    split_now_pct,
    split_ext_pct,
    extended_insulin_rate,
    profile_name,
    profile_percentage,
    profile_timeshift_hours,
    target_low,
    target_high,
    glucose,
    glucose_type,
    glucose_units,
    entered_by,
    notes,
    reason,
    device,
    document,
    month as utc_month
from cleaned
