{{ config(indexes=[{'columns': ['site', 'reading_date'], 'unique': true}]) }}

with latest as (
    select
        site,
        max(reading_date) as latest_date
    from {{ source('published', 'dim_glucose_date') }}
    group by site
),

-- Six days more than are shown: the first shown day looks back at them.
days as (
    select
        daily.*,
        latest.latest_date
    from {{ source('published', 'dim_glucose_date') }} as daily
    inner join latest on daily.site = latest.site
    where daily.reading_date > latest.latest_date - 96
),

-- Of all readings of the seven days: a day with ten readings must not weigh as much as one with 288.
rolling as (
    select
        *,
        sum(reading_count) over seven_days as reading_count_7d,
        sum(avg_glucose_mg_dl * reading_count) over seven_days
        / sum(reading_count) over seven_days as avg_glucose_7d_mg_dl
    from days
    window seven_days as (
        partition by site order by reading_date
        range between interval '6 days' preceding and current row
    )
)

select
    site,
    reading_date,
    reading_count,
    data_sufficiency_pct,
    avg_glucose_mg_dl,
    sd_glucose_mg_dl,
    cv_pct,
    time_very_low_pct,
    time_low_pct,
    time_in_range_pct,
    time_high_pct,
    time_very_high_pct,
    time_below_range_pct,
    time_above_range_pct,
    time_in_tight_range_pct,
    estimated_a1c_pct,
    cast(3.31 + 0.02392 * avg_glucose_7d_mg_dl as double precision) as estimated_a1c_7d_avg,
    cast(reading_count_7d as bigint) as reading_count_7d,
    carbs_g,
    bolus_units,
    basal_units,
    total_insulin_units
from rolling
where reading_date > latest_date - 90
