{{
    config(
        unique_key=['site', 'starts_at'],
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with sites as (
    select * from ops.sites
),

-- Carbohydrates, targets and notes may be written ahead of their time; what a pump or a sensor did has happened.
seen as (
    select
        site,
        reading_date,
        max(reading_timestamp) as last_timestamp
    from {{ ref('int_glucose_enriched') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, '', 1, 2) }}
    {% endif %}
    group by site, reading_date
    union all
    select
        site,
        reading_date,
        max(treatment_timestamp) as last_timestamp
    from {{ ref('int_treatments') }}
    where
        treatment_kind in ('bolus', 'smb', 'combo_bolus', 'meal', 'temp_basal', 'suspend', 'resume')
        {% if is_incremental() %}
            and {{ is_recomputed(this.name, '', 1, 2) }}
        {% endif %}
    group by site, reading_date
),

days as (
    select
        seen.site,
        seen.reading_date,
        max(seen.last_timestamp) as last_timestamp,
        timezone(any_value(sites.timezone), cast(seen.reading_date as timestamp)) as day_from,
        timezone(any_value(sites.timezone), cast(seen.reading_date + 1 as timestamp)) as day_to
    from seen
    inner join sites on seen.site = sites.site
    group by seen.site, seen.reading_date
),

-- A day is known to its end once the next day has something; until then, to the last thing that was seen.
known as (
    select
        days.site,
        days.reading_date,
        days.day_from,
        case when next_days.site is null then least(days.last_timestamp, days.day_to) else days.day_to end as known_to
    from days
    left join days as next_days
        on days.site = next_days.site and days.reading_date + 1 = next_days.reading_date
),

spans as (
    select
        known.site,
        known.reading_date,
        periods.profile_name,
        periods.profile_percentage,
        periods.profile_timeshift_hours,
        periods.profile_timezone,
        periods.basal,
        greatest(known.day_from, periods.valid_from) as span_from,
        least(known.known_to, periods.valid_to) as span_to
    from known
    inner join {{ ref('int_profile_periods') }} as periods
        on
            known.site = periods.site
            and known.known_to > periods.valid_from
            and (periods.valid_to is null or known.day_from < periods.valid_to)
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, 'known') }}
    {% endif %}
),

-- A schedule is a list of start times and rates, or one rate for the whole day.
items as (
    select
        site,
        reading_date,
        span_from,
        unnest(
            from_json(
                case
                    when json_type(basal) = 'ARRAY' then basal
                    else json_array(json_object('time', '00:00', 'value', json_extract_string(basal, '$')))
                end,
                '[{"time": "VARCHAR", "value": "VARCHAR", "timeAsSeconds": "VARCHAR"}]'
            )
        ) as item
    from spans
),

segments as (
    select
        site,
        reading_date,
        span_from,
        cast(
            coalesce(
                try_cast(split_part(item.time, ':', 1) as integer) * 3600
                + try_cast(split_part(item.time, ':', 2) as integer) * 60,
                try_cast(item['timeAsSeconds'] as double)
            ) as integer
        ) as start_seconds,
        {{ plausible('try_cast(item.value as double)', 0, 50) }} as units_per_hour
    from items
),

-- A schedule that does not start at midnight, or has a rate that is none, says nothing.
usable as (
    select
        site,
        reading_date,
        span_from
    from segments
    group by site, reading_date, span_from
    having
        min(start_seconds) = 0
        and max(start_seconds) < 86400
        and bool_and(units_per_hour is not null and start_seconds is not null)
),

local_days as (
    select
        spans.*,
        unnest(
            range(
                cast(timezone(spans.profile_timezone, spans.span_from) as date) - 1,
                cast(timezone(spans.profile_timezone, spans.span_to) as date) + 2,
                interval 1 day
            )
        ) as local_midnight
    from spans
    inner join usable
        on
            spans.site = usable.site
            and spans.reading_date = usable.reading_date
            and spans.span_from = usable.span_from
),

-- By the clock on the wall of the profile's zone, as a pump does it. A positive time shift moves the schedule later.
starts as (
    select
        local_days.*,
        segments.units_per_hour * local_days.profile_percentage / 100 as scheduled_units_per_hour,
        local_days.local_midnight
        + to_seconds((segments.start_seconds + local_days.profile_timeshift_hours * 3600 + 172800) % 86400)
            as local_start
    from local_days
    inner join segments
        on
            local_days.site = segments.site
            and local_days.reading_date = segments.reading_date
            and local_days.span_from = segments.span_from
),

-- A start that the clock jumps over comes after the next one: it then has no time of its own.
pieces as (
    select
        *,
        timezone(profile_timezone, local_start) as piece_from,
        min(timezone(profile_timezone, local_start)) over (
            partition by site, reading_date, span_from
            order by local_start rows between 1 following and unbounded following
        ) as piece_to
    from starts
    qualify
        local_start is distinct from lead(local_start) over (
            partition by site, reading_date, span_from order by local_start
        )
),

cut as (
    select
        site,
        reading_date,
        greatest(piece_from, span_from) as starts_at,
        least(piece_to, span_to) as ends_at,
        scheduled_units_per_hour,
        profile_name,
        profile_percentage
    from pieces
    where piece_from < piece_to
    union all
    select
        spans.site,
        spans.reading_date,
        spans.span_from as starts_at,
        spans.span_to as ends_at,
        null as scheduled_units_per_hour,
        spans.profile_name,
        spans.profile_percentage
    from spans
    left join usable
        on
            spans.site = usable.site
            and spans.reading_date = usable.reading_date
            and spans.span_from = usable.span_from
    where usable.site is null
)

select
    site,
    reading_date,
    starts_at,
    ends_at,
    scheduled_units_per_hour,
    profile_name,
    profile_percentage
from cut
where starts_at < ends_at
