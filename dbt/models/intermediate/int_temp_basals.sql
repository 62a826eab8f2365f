{{
    config(
        unique_key=['treatment_id', 'starts_at'],
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

-- What begins or ends a temp basal. A suspended pump is one of 0 units that lasts until something else happens.
with events as (
    select
        site,
        reading_date,
        treatment_id,
        treatment_timestamp,
        treatment_kind = 'suspend' as is_suspension,
        case when treatment_kind = 'suspend' then 0 else temp_basal_units_per_hour end as units_per_hour,
        case when treatment_kind = 'temp_basal' then temp_basal_percent end as percent_of_schedule,
        case
            when treatment_kind = 'resume' then 0
            when treatment_kind = 'suspend' and coalesce(duration_minutes, 0) = 0 then 1440
            else least(coalesce(duration_minutes, 0), 1440)
        end as minutes
    from {{ ref('int_treatments') }}
    where
        treatment_kind in ('temp_basal', 'suspend', 'resume')
        {% if is_incremental() %}
            and {{ is_recomputed(this.name, '', 2, 1) }}
        {% endif %}
),

-- The next event ends it, whatever it is. Of events at one moment the last by this order holds, a start before an end.
spans as (
    select
        *,
        least(
            treatment_timestamp + to_microseconds(cast(minutes * 60000000 as bigint)),
            lead(treatment_timestamp) over (
                partition by site order by treatment_timestamp, minutes > 0, treatment_id
            )
        ) as span_to
    from events
),

-- Of the day it starts on and the next; in pieces, where the schedule or the day changes.
cut as (
    select
        spans.treatment_id,
        spans.site,
        schedule.reading_date,
        greatest(spans.treatment_timestamp, schedule.starts_at) as starts_at,
        least(spans.span_to, schedule.ends_at) as ends_at,
        spans.is_suspension,
        schedule.scheduled_units_per_hour,
        coalesce(
            spans.units_per_hour,
            schedule.scheduled_units_per_hour * (100 + spans.percent_of_schedule) / 100
        ) as units_per_hour
    from spans
    inner join {{ ref('int_basal_schedule') }} as schedule
        on
            spans.site = schedule.site
            and schedule.reading_date between spans.reading_date and spans.reading_date + 1
            and spans.treatment_timestamp < schedule.ends_at
            and spans.span_to > schedule.starts_at
    where
        spans.treatment_timestamp < spans.span_to
        {% if is_incremental() %}
            and {{ is_recomputed(this.name, 'schedule') }}
        {% endif %}
)

select
    treatment_id,
    site,
    reading_date,
    starts_at,
    ends_at,
    is_suspension,
    scheduled_units_per_hour,
    units_per_hour,
    units_per_hour * {{ hours_between('starts_at', 'ends_at') }} as basal_units
from cut
