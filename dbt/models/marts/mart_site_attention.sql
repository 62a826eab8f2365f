{{ config(materialized='view') }}

-- A view: the age of a reading, and with it the order, is that at the time of the query.
with newest as (
    {{ newest_readings() }}
),

units (unit, mg_dl_per_unit, decimals, step) as (
    {{ glucose_units() }}
),

limits as (
    {{ stale_minutes() }}
),

-- Site by site, so that each is a look into the index: this table holds every day's figures.
figures as (
    select
        sites.site,
        metrics.*
    from {{ source('published', 'dim_site') }} as sites
    cross join lateral (
        select
            max(facts.value) filter (where facts.metric = 'time_in_range_pct') as time_in_range_pct,
            max(facts.value) filter (where facts.metric = 'time_below_range_pct') as time_below_range_pct,
            max(facts.value) filter (where facts.metric = 'time_very_low_pct') as time_very_low_pct,
            max(facts.value) filter (where facts.metric = 'time_very_high_pct') as time_very_high_pct,
            max(facts.value) filter (where facts.metric = 'time_above_range_pct') as time_above_range_pct,
            max(facts.value) filter (where facts.metric = 'gmi_pct') as gmi_pct,
            max(facts.value) filter (where facts.metric = 'gri') as gri,
            max(facts.value) filter (where facts.metric = 'cv_pct') as cv_pct,
            max(facts.coverage_pct) as coverage_pct,
            max({{ days_covered('facts.period_start_date', 'facts.period_end_date') }}) as days_covered,
            bool_or(facts.is_sufficient) as is_sufficient,
            bool_or(not facts.is_target_met) filter (
                where facts.metric in ('time_very_low_pct', 'time_below_range_pct')
            ) as has_many_lows,
            bool_or(not facts.is_target_met) filter (
                where facts.metric in ('time_in_range_pct', 'time_above_range_pct', 'time_very_high_pct')
            ) as has_many_highs
        from {{ source('published', 'fact_glucose_metrics') }} as facts
        where
            facts.site = sites.site
            and facts.period = '14d'
            and facts.metric in (
                'time_in_range_pct', 'time_below_range_pct', 'time_very_low_pct', 'time_very_high_pct',
                'time_above_range_pct', 'gmi_pct', 'gri', 'cv_pct'
            )
            and facts.day_part = 'whole'
            and facts.readings_used = 'all'
    ) as metrics
),

states as (
    select
        sites.site,
        newest.reading_local_timestamp,
        newest.glucose_mg_dl,
        newest.glucose_range,
        newest.direction,
        {{ age_minutes('newest.reading_timestamp') }} as age_minutes,
        limits.stale_minutes,
        figures.time_in_range_pct,
        figures.time_below_range_pct,
        figures.time_very_low_pct,
        figures.time_above_range_pct,
        figures.time_very_high_pct,
        figures.gmi_pct,
        figures.gri,
        figures.cv_pct,
        figures.coverage_pct,
        figures.days_covered,
        coalesce(figures.is_sufficient, false) as is_sufficient,
        coalesce(figures.has_many_lows, false) as has_many_lows,
        coalesce(figures.has_many_highs, false) as has_many_highs
    from {{ source('published', 'dim_site') }} as sites
    cross join limits
    left join newest on sites.site = newest.site
    left join figures on sites.site = figures.site
),

ranked as (
    select
        *,
        age_minutes > stale_minutes as is_stale,
        case
            when age_minutes <= stale_minutes and glucose_range = 'very_low' then 1
            when age_minutes is null or age_minutes > 1440 then 3
            when has_many_lows then 2
            when has_many_highs then 4
            when not is_sufficient then 5
            else 6
        end as attention_rank
    from states
),

described as (
    select
        *,
        case attention_rank
            when 1 then 'Very low now'
            when 2 then 'Too many lows'
            when 3 then 'No readings'
            when 4 then 'Out of target'
            when 5 then 'Little data'
            else 'On target'
        end as attention,
        concat_ws(
            ', ',
            case
                when time_very_low_pct >= 1 then 'very low ' || round(cast(time_very_low_pct as numeric), 1) || ' %'
            end,
            case
                when time_below_range_pct >= 4
                    then 'below range ' || round(cast(time_below_range_pct as numeric), 1) || ' %'
            end,
            case
                when time_in_range_pct <= 70 then 'in range only ' || round(cast(time_in_range_pct as numeric)) || ' %'
            end,
            case
                when time_above_range_pct >= 25
                    then 'above range ' || round(cast(time_above_range_pct as numeric)) || ' %'
            end,
            case
                when time_very_high_pct >= 5 then 'very high ' || round(cast(time_very_high_pct as numeric), 1) || ' %'
            end,
            case when is_stale then 'newest reading ' || {{ age_text('age_minutes') }} end,
            case when age_minutes is null then 'never a reading' end,
            case
                when days_covered = 1 then 'only 1 day of data'
                when days_covered < 14 then 'only ' || days_covered || ' days of data'
                when not is_sufficient then 'only ' || trunc(cast(coverage_pct as numeric), 1) || ' % of the readings'
            end
        ) as reasons,
        row_number() over (order by attention_rank asc, gri desc nulls last, site asc) as attention_order
    from ranked
)

select
    described.attention_order,
    described.site,
    units.unit,
    described.attention_rank,
    described.attention,
    described.reasons,
    described.reading_local_timestamp,
    described.age_minutes,
    described.is_stale,
    {{ age_text('described.age_minutes') }} as age_text,
    {{ shown('described.glucose_mg_dl') }} as glucose,
    described.glucose_range,
    concat_ws(
        ' ', {{ shown_decimal('described.glucose_mg_dl') }}, nullif({{ trend_arrow('described.direction') }}, '')
    ) as glucose_text,
    described.time_in_range_pct,
    described.time_below_range_pct,
    described.time_very_low_pct,
    described.time_above_range_pct,
    described.time_very_high_pct,
    described.gmi_pct,
    described.gri,
    described.cv_pct,
    described.coverage_pct,
    described.days_covered,
    described.is_sufficient
from described
cross join units
