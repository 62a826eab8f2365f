{{ config(indexes=[{'columns': ['site', 'period_days', 'range_order'], 'unique': true}]) }}

with latest as (
    select
        site,
        max(reading_date) as latest_date
    from {{ source('published', 'dim_glucose_date') }}
    group by site
),

periods (period_days) as (
    values (1), (7), (14), (30), (90)
),

-- From the days, not from the readings: five periods of 90 days need no second look at each reading.
totals as (
    select
        daily.site,
        periods.period_days,
        sum(daily.reading_count) as total_count,
        sum(daily.time_very_low_pct * daily.reading_count) / 100 as very_low_count,
        sum(daily.time_low_pct * daily.reading_count) / 100 as low_count,
        sum(daily.time_in_range_pct * daily.reading_count) / 100 as in_range_count,
        sum(daily.time_high_pct * daily.reading_count) / 100 as high_count,
        sum(daily.time_very_high_pct * daily.reading_count) / 100 as very_high_count,
        sum(daily.time_in_tight_range_pct * daily.reading_count) / 100 as tight_range_count,
        sum(daily.reading_count * daily.sensor_interval_minutes) as total_minutes
    from latest
    cross join periods
    inner join {{ source('published', 'dim_glucose_date') }} as daily
        on latest.site = daily.site and latest.latest_date - periods.period_days < daily.reading_date
    group by daily.site, periods.period_days
),

-- Days without any reading are expected too, from the site's first day on.
first_days as (
    select
        site,
        min(reading_date) as first_date
    from {{ source('published', 'dim_glucose_date') }}
    group by site
),

tidy as (
    select
        totals.site,
        totals.period_days,
        totals.total_count,
        totals.total_minutes,
        ranges.*
    from totals
    cross join lateral (
        values
        ('very_low', 1, totals.very_low_count, '< 1', 1, true),
        ('low', 2, totals.low_count, null, null, null),
        ('in_range', 3, totals.in_range_count, '> 70', 70, false),
        ('high', 4, totals.high_count, null, null, null),
        ('very_high', 5, totals.very_high_count, '< 5', 5, true),
        ('below_range', 6, totals.very_low_count + totals.low_count, '< 4', 4, true),
        ('above_range', 7, totals.high_count + totals.very_high_count, '< 25', 25, true),
        ('tight_range', 8, totals.tight_range_count, null, null, null)
    ) as ranges (range_name, range_order, range_count, target, target_pct, is_upper_bound)
),

with_share as (
    select
        tidy.*,
        round(tidy.range_count) as readings_in_range,
        100.0 * round(tidy.range_count) / tidy.total_count as share_pct,
        least(tidy.period_days, latest.latest_date - first_days.first_date + 1) as days_covered
    from tidy
    inner join latest on tidy.site = latest.site
    inner join first_days on tidy.site = first_days.site
)

select
    site,
    period_days,
    range_name,
    range_order,
    cast(readings_in_range as bigint) as reading_count,
    cast(share_pct as double precision) as pct,
    cast(readings_in_range * (total_minutes / total_count) as double precision) as minutes,
    cast(
        least(100, 100.0 * total_minutes / (days_covered * 24 * 60)) as double precision
    ) as data_sufficiency_pct,
    target,
    case
        when is_upper_bound then share_pct < target_pct
        when not is_upper_bound then share_pct > target_pct
    end as is_target_met
from with_share
