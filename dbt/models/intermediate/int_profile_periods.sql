{{ config(materialized='view') }}

with stored as (
    select * from {{ ref('stg_nightscout_profiles') }}
),

sites as (
    select * from ops.sites
),

known as (
    select distinct
        site,
        profile_id,
        profile_timestamp,
        created_timestamp
    from stored
),

-- Of documents that start at the same moment the one made last counts.
documents as (
    select
        site,
        profile_id,
        profile_timestamp as document_from,
        lead(profile_timestamp) over (partition by site order by profile_timestamp) as document_to
    from known
    qualify row_number() over (
        partition by site, profile_timestamp order by created_timestamp desc nulls last, profile_id desc
    ) = 1
),

-- A new document ends the switches before it, as in Nightscout.
switches as (
    select
        documents.*,
        switches.treatment_id,
        switches.treatment_timestamp as switched_at,
        coalesce(switches.duration_minutes, 0) as duration_minutes
    from documents
    inner join {{ ref('int_treatments') }} as switches
        on
            documents.site = switches.site
            and documents.document_from <= switches.treatment_timestamp
            and (documents.document_to is null or documents.document_to > switches.treatment_timestamp)
    where switches.treatment_kind = 'profile_switch'
    qualify row_number() over (
        partition by switches.site, switches.treatment_timestamp order by switches.treatment_id desc
    ) = 1
),

in_order as (
    select
        *,
        lead(switched_at, 1, document_to) over in_document as next_from,
        last_value(case when duration_minutes = 0 then treatment_id end ignore nulls) over (
            partition by site, profile_id order by switched_at rows between unbounded preceding and 1 preceding
        ) as permanent_treatment_id,
        row_number() over in_document as switch_number
    from switches
    window in_document as (partition by site, profile_id order by switched_at)
),

with_end as (
    select
        *,
        case
            when duration_minutes > 0
                then least(switched_at + to_microseconds(cast(duration_minutes * 60000000 as bigint)), next_from)
            else next_from
        end as switched_until
    from in_order
),

periods as (
    select
        documents.site,
        documents.profile_id,
        null as treatment_id,
        documents.document_from as valid_from,
        coalesce(with_end.switched_at, documents.document_to) as valid_to
    from documents
    left join with_end on documents.profile_id = with_end.profile_id and with_end.switch_number = 1
    union all
    select
        site,
        profile_id,
        treatment_id,
        switched_at as valid_from,
        switched_until as valid_to
    from with_end
    union all
    -- After a switch for a time, the last one for good is back.
    select
        site,
        profile_id,
        permanent_treatment_id as treatment_id,
        switched_until as valid_from,
        next_from as valid_to
    from with_end
    where duration_minutes > 0 and switched_until is distinct from next_from
    union all
    -- Before the first document no schedule is known.
    select
        sites.site,
        null as profile_id,
        null as treatment_id,
        timestamptz '0001-01-01 00:00:00+00' as valid_from,
        min(documents.document_from) as valid_to
    from sites
    left join documents on sites.site = documents.site
    group by sites.site
),

-- The switch's own copy of the profile comes first: the document's may have been edited since.
chosen as (
    select
        periods.*,
        switches.profile_percentage,
        switches.profile_timeshift_hours,
        coalesce(switches.profile_name, by_default.profile_name) as profile_name,
        case
            when periods.treatment_id is null or coalesce(switches.profile_name, switches.profile_json) is null
                then by_default.basal
            when json_valid(switches.profile_json) and json_exists(switches.profile_json, '$.basal')
                then json_extract(switches.profile_json, '$.basal')
            else coalesce(by_name.basal, by_original_name.basal)
        end as basal,
        coalesce(
            case
                when json_valid(switches.profile_json) then json_extract_string(switches.profile_json, '$.timezone')
            end,
            by_name.timezone,
            by_original_name.timezone,
            by_default.timezone
        ) as profile_timezone
    from periods
    left join {{ ref('int_treatments') }} as switches
        on periods.treatment_id = switches.treatment_id
    left join stored as by_default
        on periods.profile_id = by_default.profile_id and by_default.is_default
    left join stored as by_name
        on periods.profile_id = by_name.profile_id and switches.profile_name = by_name.profile_name
    left join stored as by_original_name
        on
            periods.profile_id = by_original_name.profile_id
            and switches.original_profile_name = by_original_name.profile_name
    where periods.valid_to is null or periods.valid_from < periods.valid_to
),

zones as (
    select
        lower(name) as lower_name,
        min(name) as zone_name
    from pg_timezone_names()
    group by lower(name)
)

select
    chosen.site,
    chosen.valid_from,
    chosen.valid_to,
    chosen.profile_id,
    chosen.treatment_id,
    chosen.profile_name,
    coalesce(zones.zone_name, sites.timezone) as profile_timezone,
    case when chosen.profile_percentage > 0 then chosen.profile_percentage else 100 end as profile_percentage,
    -- Whole hours; AndroidAPS sends milliseconds since version 3.
    cast(
        trunc(
            case
                when abs(chosen.profile_timeshift_hours) > 24 then chosen.profile_timeshift_hours / 3600000
                else coalesce(chosen.profile_timeshift_hours, 0)
            end
        ) as integer
    ) as profile_timeshift_hours,
    chosen.basal
from chosen
inner join sites on chosen.site = sites.site
left join zones on lower(chosen.profile_timezone) = zones.lower_name
