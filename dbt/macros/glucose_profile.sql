{#
  Percentiles of glucose by local time of day, as one query. The report computes any other period with this text too
  (lib/agp_report/load.py), so there is one definition; plain Jinja therefore, nothing of dbt.

  readings: relation with site, period, reading_date, reading_local_timestamp, glucose_mg_dl.

  Smoothing: each percentile is averaged over the slots up to 30 minutes away, weighted by their readings, around
  midnight too. An average over the same slots with the same weights keeps the percentiles in their order.
#}
{% macro glucose_profile(readings, fewest_days=5, smoothing_minutes=30) -%}
{%- set percentiles = [5, 10, 25, 50, 75, 90, 95] -%}
with grids (grid_minutes) as (
    values (5), (15)
),

slotted as (
    select
        readings.site,
        readings.period,
        readings.reading_date,
        readings.glucose_mg_dl,
        grids.grid_minutes,
        (hour(readings.reading_local_timestamp) * 60 + minute(readings.reading_local_timestamp))
        // grids.grid_minutes * grids.grid_minutes as minute_of_day
    from {{ readings }} as readings
    cross join grids
),

filled_slots as (
    select
        site,
        period,
        grid_minutes,
        minute_of_day,
        count(*) as reading_count,
        count(distinct reading_date) as day_count,
        quantile_cont(
            glucose_mg_dl, [{% for p in percentiles %}{{ p / 100 }}{{ ", " if not loop.last }}{% endfor %}]
        ) as percentiles
    from slotted
    group by site, period, grid_minutes, minute_of_day
),

-- Every slot of the day, those without readings too: a gap has to show.
all_slots as (
    select
        periods.site,
        periods.period,
        grids.grid_minutes,
        cast(minutes.minute_of_day as bigint) as minute_of_day
    from (select distinct site, period from {{ readings }}) as periods
    cross join grids
    cross join range(1440) as minutes (minute_of_day)
    where minutes.minute_of_day % grids.grid_minutes = 0
),

slots as (
    select
        all_slots.*,
        coalesce(filled_slots.reading_count, 0) as reading_count,
        coalesce(filled_slots.day_count, 0) as day_count,
        case when filled_slots.day_count >= {{ fewest_days }} then filled_slots.percentiles end as percentiles
    from all_slots
    left join filled_slots
        on
            all_slots.site = filled_slots.site
            and all_slots.period = filled_slots.period
            and all_slots.grid_minutes = filled_slots.grid_minutes
            and all_slots.minute_of_day = filled_slots.minute_of_day
),

-- The day with the last minutes of the one before and the first of the one after, since the profile is a circle.
around_midnight as (
    select
        slots.*,
        slots.minute_of_day + days.days * 1440 as circle_minute
    from slots
    cross join range(-1, 2) as days (days)
    where slots.minute_of_day + days.days * 1440 between -{{ smoothing_minutes }} and 1440 + {{ smoothing_minutes }}
),

-- Slots of one stretch have no slot without percentiles between them.
stretches as (
    select
        *,
        -- Decimals: their sum does not depend on its order, and a rebuild has to equal to the last bit.
        cast(percentiles as decimal(18, 6) []) as exact_percentiles,
        count(*) filter (percentiles is null) over (
            partition by site, period, grid_minutes order by circle_minute rows unbounded preceding
        ) as stretch
    from around_midnight
),

smoothed as (
    select
        slots.site,
        slots.period,
        slots.grid_minutes,
        slots.minute_of_day,
        {%- for p in percentiles %}
        cast(sum(neighbours.reading_count * neighbours.exact_percentiles[{{ loop.index }}]) as double)
        / sum(neighbours.reading_count) as smoothed_p{{ p }}_mg_dl{{ "," if not loop.last }}
        {%- endfor %}
    from stretches as slots
    inner join stretches as neighbours
        on
            slots.site = neighbours.site
            and slots.period = neighbours.period
            and slots.grid_minutes = neighbours.grid_minutes
            and slots.stretch = neighbours.stretch
            and neighbours.circle_minute
            between slots.circle_minute - {{ smoothing_minutes }} and slots.circle_minute + {{ smoothing_minutes }}
    where
        slots.circle_minute between 0 and 1439
        and slots.percentiles is not null
        and neighbours.percentiles is not null
    group by slots.site, slots.period, slots.grid_minutes, slots.minute_of_day
)

select
    slots.site,
    slots.period,
    cast(slots.grid_minutes as integer) as grid_minutes,
    cast(slots.minute_of_day as integer) as minute_of_day,
    slots.reading_count,
    slots.day_count,
    {%- for p in percentiles %}
    slots.percentiles[{{ loop.index }}] as p{{ p }}_mg_dl,
    {%- endfor %}
    {%- for p in percentiles %}
    smoothed.smoothed_p{{ p }}_mg_dl{{ "," if not loop.last }}
    {%- endfor %}
from slots
left join smoothed
    on
        slots.site = smoothed.site
        and slots.period = smoothed.period
        and slots.grid_minutes = smoothed.grid_minutes
        and slots.minute_of_day = smoothed.minute_of_day
{%- endmacro %}
