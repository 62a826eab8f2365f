{{ config(indexes=[{'columns': ['site', 'treatment_timestamp']}]) }}

with latest as (
    select
        site,
        max(reading_date) as latest_date
    from {{ source('published', 'fact_daily_insulin') }}
    group by site
)

select
    facts.treatment_id,
    facts.site,
    facts.treatment_timestamp,
    facts.treatment_local_timestamp,
    facts.reading_date,
    facts.event_type,
    facts.treatment_kind,
    facts.bolus_units,
    facts.extended_units,
    facts.smb_units,
    facts.carbs_g,
    facts.duration_minutes,
    facts.temp_basal_units_per_hour,
    facts.temp_basal_percent,
    facts.is_automatic,
    facts.has_implausible_amount,
    facts.entered_by,
    facts.notes
from latest
inner join {{ source('published', 'fact_treatments') }} as facts
    on latest.site = facts.site and latest.latest_date - 14 < facts.reading_date
