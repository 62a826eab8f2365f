{{
    config(
        materialized='incremental',
        unique_key=['site', 'pattern', 'pattern_key', 'metric'],
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_sites() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with latest as (
    select
        site,
        max(reading_date) as latest_date
    from {{ ref('dim_glucose_date') }}
    {% if is_incremental() %}
        where {{ is_recomputed_site(this.name) }}
    {% endif %}
    group by site
),

readings as (
    select
        facts.site,
        facts.entry_id,
        facts.reading_date,
        facts.reading_local_timestamp,
        facts.day_of_week,
        facts.hour_of_day,
        facts.glucose_mg_dl,
        facts.sensor_interval_minutes,
        latest.latest_date
    from {{ ref('fact_glucose_readings') }} as facts
    inner join latest on facts.site = latest.site and latest.latest_date - 90 < facts.reading_date
),

recent_readings as (
    select * from readings
    where latest_date - 14 < reading_date
),

-- Hour by weekday, 90 days.

weekday_hours as (
    select
        site,
        day_of_week,
        hour_of_day,
        avg(glucose_mg_dl order by glucose_mg_dl) as mean_mg_dl,
        100.0 * count(*) filter (glucose_mg_dl between 70 and 180) / count(*) as time_in_range_pct,
        count(*) as reading_count,
        count(distinct reading_date) as days_observed
    from readings
    group by site, day_of_week, hour_of_day
),

weekday_hour_rows as (
    select
        hours.site,
        'weekday_hour' as pattern,
        hours.day_of_week || '-' || lpad(cast(hours.hour_of_day as varchar), 2, '0') as pattern_key,
        hours.day_of_week,
        hours.hour_of_day as start_hour,
        hours.hour_of_day + 1 as end_hour,
        null as part,
        figures.metric,
        figures.value,
        figures.unit,
        90 as period_days,
        hours.reading_count,
        null as occurrences,
        hours.days_observed,
        null as is_recurring,
        {{ weekday_name('hours.day_of_week') }} || 's '
        || {{ clock_window('hours.hour_of_day', 'hours.hour_of_day + 1') }} || ': ' || figures.text as description
    from weekday_hours as hours
    cross join lateral (
        values
        ('mean_mg_dl', hours.mean_mg_dl, 'mg/dL', 'mean glucose ' || {{ glucose_text('hours.mean_mg_dl') }} || '.'),
        (
            'time_in_range_pct',
            hours.time_in_range_pct,
            '%',
            printf('%.0f %% of readings in range.', hours.time_in_range_pct)
        )
    ) as figures (metric, value, unit, text)
),

-- Weekdays against weekends, 90 days.

week_parts as (
    select
        site,
        day_of_week >= 6 as is_weekend,
        avg(glucose_mg_dl order by glucose_mg_dl) as mean_mg_dl,
        100.0 * count(*) filter (glucose_mg_dl between 70 and 180) / count(*) as time_in_range_pct,
        count(*) as reading_count,
        count(distinct reading_date) as days_observed
    from readings
    group by site, is_weekend
),

compared_parts as (
    select
        site,
        case when is_weekend then 'weekend' else 'weekday' end as part,
        mean_mg_dl,
        time_in_range_pct,
        reading_count,
        days_observed
    from week_parts
    union all
    select
        weekends.site,
        'difference' as part,
        weekends.mean_mg_dl - weekdays.mean_mg_dl as mean_mg_dl,
        weekends.time_in_range_pct - weekdays.time_in_range_pct as time_in_range_pct,
        weekends.reading_count + weekdays.reading_count as reading_count,
        weekends.days_observed + weekdays.days_observed as days_observed
    from week_parts as weekends
    inner join week_parts as weekdays on weekends.site = weekdays.site
    where weekends.is_weekend and not weekdays.is_weekend
),

weekend_rows as (
    select
        parts.site,
        'weekday_weekend' as pattern,
        parts.part as pattern_key,
        null as day_of_week,
        null as start_hour,
        null as end_hour,
        parts.part,
        figures.metric,
        figures.value,
        figures.unit,
        90 as period_days,
        parts.reading_count,
        null as occurrences,
        parts.days_observed,
        null as is_recurring,
        figures.text as description
    from compared_parts as parts
    cross join lateral (
        values
        (
            'mean_mg_dl',
            parts.mean_mg_dl,
            'mg/dL',
            case parts.part
                when 'difference'
                    then
                        'On weekends the mean glucose is ' || {{ glucose_text('abs(parts.mean_mg_dl)') }}
                        || case when parts.mean_mg_dl < 0 then ' lower' else ' higher' end || ' than on weekdays.'
                else 'Mean glucose on ' || parts.part || 's: ' || {{ glucose_text('parts.mean_mg_dl') }} || '.'
            end
        ),
        (
            'time_in_range_pct',
            parts.time_in_range_pct,
            case parts.part when 'difference' then 'percentage points' else '%' end,
            case parts.part
                when 'difference'
                    then
                        'On weekends the time in range is '
                        || printf('%.1f percentage points', abs(parts.time_in_range_pct))
                        || case when parts.time_in_range_pct < 0 then ' lower' else ' higher' end
                        || ' than on weekdays.'
                else printf('Time in range on %ss: %.1f %%.', parts.part, parts.time_in_range_pct)
            end
        )
    ) as figures (metric, value, unit, text)
),

-- Recurring lows and highs, 14 days.

kinds (pattern, metric, words) as (
    values
    ('recurring_low', 'mean_minutes_below_70', 'below 70 mg/dL (3.9 mmol/L)'),
    ('recurring_high', 'mean_minutes_above_180', 'above 180 mg/dL (10.0 mmol/L)')
),

-- A reading stands for one interval of its sensor.
hour_blocks as (
    select
        readings.site,
        kinds.pattern,
        readings.reading_date,
        readings.hour_of_day,
        count(*) as reading_count,
        coalesce(
            sum(readings.sensor_interval_minutes order by readings.sensor_interval_minutes) filter (
                case kinds.pattern
                    when 'recurring_low' then readings.glucose_mg_dl < 70
                    else readings.glucose_mg_dl > 180
                end
            ),
            0
        ) as minutes_outside
    from recent_readings as readings
    cross join kinds
    group by readings.site, kinds.pattern, readings.reading_date, readings.hour_of_day
),

recurring_hours as (
    select
        site,
        pattern,
        hour_of_day,
        hour_of_day - row_number() over (partition by site, pattern order by hour_of_day) as run
    from hour_blocks
    where minutes_outside >= 15
    group by site, pattern, hour_of_day
    having count(*) >= 3
),

hour_runs as (
    select
        site,
        pattern,
        min(hour_of_day) as first_hour,
        max(hour_of_day) as last_hour
    from recurring_hours
    group by site, pattern, run
),

-- The run that ends at midnight takes in the one that begins there: its hours get numbers from 24 on.
windows as (
    select
        evenings.site,
        evenings.pattern,
        evenings.first_hour as start_hour,
        coalesce(24 + nights.last_hour, evenings.last_hour) + 1 as end_hour
    from hour_runs as evenings
    left join hour_runs as nights
        on
            evenings.site = nights.site
            and evenings.pattern = nights.pattern
            and evenings.last_hour = 23
            and evenings.first_hour > 0
            and nights.first_hour = 0
    where not (
        evenings.first_hour = 0
        and evenings.last_hour < 23
        and exists (
            select 1 from hour_runs as last_runs
            where
                last_runs.site = evenings.site
                and last_runs.pattern = evenings.pattern
                and last_runs.last_hour = 23
        )
    )
),

-- One element is one window on one day, or on the night that begins on that day.
window_days as (
    select
        windows.site,
        windows.pattern,
        windows.start_hour,
        windows.end_hour,
        blocks.reading_date - cast(blocks.hour_of_day < windows.start_hour as integer) as window_date,
        sum(blocks.reading_count) as reading_count,
        sum(blocks.minutes_outside order by blocks.reading_date, blocks.hour_of_day) as minutes_outside,
        max(blocks.minutes_outside) >= 15 as is_occurrence
    from windows
    inner join hour_blocks as blocks
        on
            windows.site = blocks.site
            and windows.pattern = blocks.pattern
            and (
                blocks.hour_of_day between windows.start_hour and windows.end_hour - 1
                or blocks.hour_of_day + 24 between windows.start_hour and windows.end_hour - 1
            )
    group by windows.site, windows.pattern, windows.start_hour, windows.end_hour, window_date
),

window_figures as (
    select
        site,
        pattern,
        start_hour,
        end_hour,
        sum(reading_count) as reading_count,
        count(*) filter (is_occurrence) as occurrences,
        count(*) as days_observed,
        avg(minutes_outside order by window_date) filter (is_occurrence) as mean_minutes
    from window_days
    group by site, pattern, start_hour, end_hour
),

observed as (
    select
        site,
        count(distinct reading_date) as days_observed,
        count(*) as reading_count
    from recent_readings
    group by site
),

recurring_rows as (
    select
        figures.site,
        figures.pattern,
        {{ clock_window('figures.start_hour', 'figures.end_hour') }} as pattern_key,
        null as day_of_week,
        figures.start_hour,
        figures.end_hour,
        null as part,
        kinds.metric,
        figures.mean_minutes as value,
        'minutes' as unit,
        14 as period_days,
        figures.reading_count,
        figures.occurrences,
        figures.days_observed,
        true as is_recurring,
        printf(
            'Between %s glucose was %s for 15 minutes of an hour or more on %d of %d days,'
            || ' then for %.0f minutes on average.',
            {{ clock_window('figures.start_hour', 'figures.end_hour', ' and ') }},
            kinds.words,
            figures.occurrences,
            figures.days_observed,
            figures.mean_minutes
        ) as description
    from window_figures as figures
    inner join kinds on figures.pattern = kinds.pattern
),

-- Nothing found and not enough days to find something are different news.
nothing_recurring_rows as (
    select
        observed.site,
        kinds.pattern,
        'none' as pattern_key,
        null as day_of_week,
        null as start_hour,
        null as end_hour,
        null as part,
        kinds.metric,
        null as value,
        'minutes' as unit,
        14 as period_days,
        observed.reading_count,
        null as occurrences,
        observed.days_observed,
        case when observed.days_observed >= 5 then false end as is_recurring,
        case
            when observed.days_observed >= 5
                then 'No hour of the day was ' || kinds.words || ' for 15 minutes or more on 3 days.'
            else 'Fewer than 5 days with readings: too few to say whether glucose is often ' || kinds.words || '.'
        end as description
    from observed
    cross join kinds
    where not exists (
        select 1 from windows
        where windows.site = observed.site and windows.pattern = kinds.pattern
    )
),

-- Dawn effect, 14 days: from the lowest reading of the night to the half hour from 06:00 on, before breakfast.

dawn_nights as (
    select
        site,
        reading_date,
        count(*) as reading_count,
        coalesce(
            sum(sensor_interval_minutes order by sensor_interval_minutes) filter (hour_of_day < 6), 0
        ) as minutes_observed,
        min(glucose_mg_dl) filter (hour_of_day < 6) as nadir_mg_dl,
        avg(glucose_mg_dl order by glucose_mg_dl) filter (hour_of_day = 6) as morning_mg_dl
    from recent_readings
    where hour_of_day < 6 or (hour_of_day = 6 and minute(reading_local_timestamp) < 30)
    group by site, reading_date
),

dawns as (
    select
        site,
        reading_count,
        morning_mg_dl - nadir_mg_dl as rise_mg_dl
    from dawn_nights
    -- 70 % of six hours. After a low the rise may come from what was eaten against it.
    where minutes_observed >= 252 and nadir_mg_dl >= 70 and morning_mg_dl is not null
),

dawn_figures as (
    select
        site,
        sum(reading_count) as reading_count,
        count(*) filter (rise_mg_dl > 20) as occurrences,
        count(*) as days_observed,
        median(rise_mg_dl) as median_rise_mg_dl
    from dawns
    group by site
),

dawn_rows as (
    select
        latest.site,
        'dawn_effect' as pattern,
        'night' as pattern_key,
        null as day_of_week,
        0 as start_hour,
        7 as end_hour,
        null as part,
        'median_rise_mg_dl' as metric,
        case when figures.days_observed >= 5 then figures.median_rise_mg_dl end as value,
        'mg/dL' as unit,
        14 as period_days,
        coalesce(figures.reading_count, 0) as reading_count,
        coalesce(figures.occurrences, 0) as occurrences,
        coalesce(figures.days_observed, 0) as days_observed,
        case when figures.days_observed >= 5 then figures.median_rise_mg_dl > 20 end as is_recurring,
        case
            when figures.days_observed >= 5
                then
                    printf(
                        'From the lowest value of the night to the early morning (06:00 to 06:30) glucose rose by %s'
                        || ' (median of %d nights); on %d of them by more than 20 mg/dL (1.1 mmol/L).',
                        {{ glucose_text('figures.median_rise_mg_dl') }},
                        figures.days_observed,
                        figures.occurrences
                    )
            else 'Fewer than 5 nights with enough readings and without a low: too few to speak of a dawn effect.'
        end as description
    from latest
    left join dawn_figures as figures on latest.site = figures.site
),

all_rows as (
    select * from weekday_hour_rows
    union all
    select * from weekend_rows
    union all
    select * from recurring_rows
    union all
    select * from nothing_recurring_rows
    union all
    select * from dawn_rows
)

select
    all_rows.site,
    all_rows.pattern,
    all_rows.pattern_key,
    cast(all_rows.day_of_week as integer) as day_of_week,
    cast(all_rows.start_hour as integer) as start_hour,
    cast(all_rows.end_hour as integer) as end_hour,
    cast(all_rows.part as varchar) as part,
    all_rows.metric,
    cast(all_rows.value as double) as value,
    all_rows.unit,
    cast(latest.latest_date - all_rows.period_days + 1 as date) as period_start_date,
    latest.latest_date as period_end_date,
    cast(all_rows.reading_count as bigint) as reading_count,
    cast(all_rows.occurrences as bigint) as occurrences,
    cast(all_rows.days_observed as bigint) as days_observed,
    cast(all_rows.is_recurring as boolean) as is_recurring,
    all_rows.description
from all_rows
inner join latest on all_rows.site = latest.site
