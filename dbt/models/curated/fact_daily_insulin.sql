{{
    config(
        materialized='incremental',
        unique_key=['site', 'reading_date'],
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with basal as (
    select * from {{ ref('int_basal_delivery') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name) }}
    {% endif %}
),

-- The day before too: its extended boluses may go on over midnight.
treatments as (
    select * from {{ ref('int_treatments') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, '', 2, 1) }}
    {% endif %}
),

-- Evenly over its duration, and only what had been given by the end of what is known of the day.
extended as (
    select
        basal.site,
        basal.reading_date,
        treatments.treatment_id,
        treatments.treatment_timestamp,
        treatments.extended_units
        * {{ hours_between(
            'greatest(treatments.treatment_timestamp, basal.known_from)',
            'least(treatments.treatment_timestamp + to_microseconds('
            ~ 'cast(treatments.extended_minutes * 60000000 as bigint)), basal.known_to)'
        ) }}
        / (treatments.extended_minutes / 60) as units
    from treatments
    inner join basal
        on
            treatments.site = basal.site
            and basal.reading_date between treatments.reading_date and treatments.reading_date + 1
            and treatments.treatment_timestamp < basal.known_to
            and basal.known_from < treatments.treatment_timestamp
            + to_microseconds(cast(treatments.extended_minutes * 60000000 as bigint))
    where treatments.extended_units > 0 and treatments.extended_minutes > 0
    union all
    select
        site,
        reading_date,
        treatment_id,
        treatment_timestamp,
        extended_units
    from treatments
    where extended_units > 0 and extended_minutes = 0
),

daily_extended as (
    select
        site,
        reading_date,
        sum(units order by treatment_timestamp, treatment_id) as extended_units
    from extended
    group by site, reading_date
),

daily_treatments as (
    select
        site,
        reading_date,
        count(*) as treatment_count,
        sum(bolus_units order by treatment_timestamp, treatment_id) as immediate_units,
        sum(smb_units order by treatment_timestamp, treatment_id) as smb_units,
        sum(carbs_g order by treatment_timestamp, treatment_id) as carbs_g,
        count(*) filter (treatment_kind in ('temp_basal', 'suspend', 'resume')) as pump_event_count,
        bool_or(has_unknown_insulin) as has_unknown_insulin,
        bool_or(has_unknown_carbs) as has_unknown_carbs,
        bool_or(has_implausible_amount) as has_implausible_amount
    from treatments
    group by site, reading_date
),

-- An extended bolus of unknown size may reach into the next day, which is then unknown too.
unknown_before as (
    select distinct
        site,
        reading_date + 1 as reading_date
    from treatments
    where treatment_kind = 'combo_bolus' and extended_units is null
),

meals as (
    select
        site,
        reading_date,
        count(*) as meal_count
    from {{ ref('fact_meals') }}
    group by site, reading_date
),

days as (
    select
        site,
        reading_date
    from basal
    union
    select
        site,
        reading_date
    from daily_treatments
),

joined as (
    select
        days.site,
        days.reading_date,
        coalesce(daily_treatments.treatment_count, 0) as treatment_count,
        daily_treatments.immediate_units,
        daily_treatments.smb_units,
        daily_extended.extended_units,
        daily_treatments.carbs_g as sent_carbs_g,
        meals.meal_count,
        coalesce(daily_treatments.pump_event_count, 0) > 0 as has_pump_events,
        coalesce(daily_treatments.has_unknown_insulin, false) or unknown_before.site is not null
            as has_unknown_insulin,
        coalesce(daily_treatments.has_unknown_carbs, false) as has_unknown_carbs,
        coalesce(daily_treatments.has_implausible_amount, false) as has_implausible_amount,
        basal.basal_units,
        basal.temp_basal_units,
        basal.scheduled_basal_units,
        coalesce(basal.known_hours, 0) as known_hours,
        coalesce(basal.has_basal_schedule, false) as has_basal_schedule
    from days
    left join daily_treatments
        on days.site = daily_treatments.site and days.reading_date = daily_treatments.reading_date
    left join daily_extended
        on days.site = daily_extended.site and days.reading_date = daily_extended.reading_date
    left join meals
        on days.site = meals.site and days.reading_date = meals.reading_date
    left join unknown_before
        on days.site = unknown_before.site and days.reading_date = unknown_before.reading_date
    left join basal
        on days.site = basal.site and days.reading_date = basal.reading_date
),

-- Without a bolus: none, where a pump reported that day; else nobody knows.
with_bolus as (
    select
        *,
        case
            when has_unknown_insulin then null
            when coalesce(immediate_units, smb_units, extended_units) is not null
                then coalesce(immediate_units, 0) + coalesce(smb_units, 0) + coalesce(extended_units, 0)
            when has_pump_events then 0
        end as bolus_units
    from joined
),

with_total as (
    select
        *,
        bolus_units + basal_units as total_insulin_units
    from with_bolus
),

with_shares as (
    select
        *,
        case when total_insulin_units > 0 then 100 * bolus_units / total_insulin_units end as bolus_share_pct,
        case when total_insulin_units > 0 then 100 * basal_units / total_insulin_units end as basal_share_pct
    from with_total
)

select
    site,
    reading_date,
    cast(treatment_count as bigint) as treatment_count,
    case when not has_unknown_carbs then sent_carbs_g end as carbs_g,
    meal_count,
    cast(bolus_units as double) as bolus_units,
    cast(smb_units as double) as smb_units,
    cast(extended_units as double) as extended_units,
    cast(basal_units as double) as basal_units,
    cast(temp_basal_units as double) as temp_basal_units,
    cast(scheduled_basal_units as double) as scheduled_basal_units,
    cast(total_insulin_units as double) as total_insulin_units,
    cast(bolus_share_pct as double) as bolus_share_pct,
    cast(basal_share_pct as double) as basal_share_pct,
    cast(known_hours as double) as known_hours,
    has_basal_schedule,
    has_implausible_amount
from with_shares
{% if is_incremental() %}
    where {{ is_recomputed(this.name, 'with_shares') }}
{% endif %}
