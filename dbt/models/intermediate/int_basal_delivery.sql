{{
    config(
        unique_key=['site', 'reading_date'],
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with schedule as (
    select * from {{ ref('int_basal_schedule') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name) }}
    {% endif %}
),

temp_basals as (
    select * from {{ ref('int_temp_basals') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name) }}
    {% endif %}
),

-- A temp basal is cut where the schedule changes, so each lies within one piece of it.
pieces as (
    select
        schedule.site,
        schedule.reading_date,
        schedule.starts_at,
        schedule.ends_at,
        schedule.scheduled_units_per_hour,
        {{ hours_between('schedule.starts_at', 'schedule.ends_at') }} as piece_hours,
        coalesce(
            sum(
                {{ hours_between('temp_basals.starts_at', 'temp_basals.ends_at') }} order by temp_basals.starts_at
            ), 0
        ) as temp_hours,
        coalesce(sum(temp_basals.basal_units order by temp_basals.starts_at), 0) as temp_units,
        count(*) filter (temp_basals.treatment_id is not null and temp_basals.basal_units is null) > 0
            as has_unknown_temp_basal
    from schedule
    left join temp_basals
        on
            schedule.site = temp_basals.site
            and schedule.reading_date = temp_basals.reading_date
            and schedule.starts_at <= temp_basals.starts_at
            and schedule.ends_at >= temp_basals.ends_at
    group by all
),

-- A rest below a microsecond is rounding.
with_rest as (
    select
        *,
        case when piece_hours - temp_hours > 1e-9 then piece_hours - temp_hours else 0 end as scheduled_hours
    from pieces
),

daily as (
    select
        site,
        reading_date,
        min(starts_at) as known_from,
        max(ends_at) as known_to,
        sum(piece_hours order by starts_at) as known_hours,
        sum(temp_hours order by starts_at) as temp_basal_hours,
        sum(temp_units order by starts_at) as temp_units,
        sum(
            case when scheduled_hours > 0 then scheduled_units_per_hour * scheduled_hours else 0 end order by starts_at
        ) as scheduled_units,
        bool_and(scheduled_units_per_hour is not null) as has_basal_schedule,
        bool_or(has_unknown_temp_basal) as has_unknown_temp_basal,
        bool_or(scheduled_hours > 0 and scheduled_units_per_hour is null) as has_unknown_schedule
    from with_rest
    group by site, reading_date
)

select
    site,
    reading_date,
    known_from,
    known_to,
    known_hours,
    temp_basal_hours,
    case when not has_unknown_temp_basal then temp_units end as temp_basal_units,
    case when not has_unknown_schedule then scheduled_units end as scheduled_basal_units,
    case when not has_unknown_temp_basal and not has_unknown_schedule then temp_units + scheduled_units end
        as basal_units,
    has_basal_schedule
from daily
