{{
    config(
        materialized='incremental',
        unique_key='meal_id',
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

-- Two days around those computed: their meals compete for a bolus, their readings answer a meal near midnight.
with treatments as (
    select * from {{ ref('int_treatments') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, '', 2, 2) }}
    {% endif %}
),

readings as (
    select * from {{ ref('fact_glucose_readings') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name, '', 2, 2) }}
    {% endif %}
),

carbs as (
    select
        *,
        coalesce(
            treatment_timestamp - lag(treatment_timestamp) over same_day > interval 15 minutes, true
        ) as begins_meal
    from treatments
    where carbs_g > 0
    window same_day as (partition by site, reading_date order by treatment_timestamp, treatment_id)
),

numbered as (
    select
        *,
        sum(cast(begins_meal as integer)) over (
            partition by site, reading_date order by treatment_timestamp, treatment_id
            rows between unbounded preceding and current row
        ) as meal_number
    from carbs
),

meals as (
    select
        site,
        reading_date,
        min_by(treatment_id, (treatment_timestamp, treatment_id)) as meal_id,
        min(treatment_timestamp) as meal_timestamp,
        min(treatment_local_timestamp) as meal_local_timestamp,
        count(*) as carb_entry_count,
        sum(carbs_g order by treatment_timestamp, treatment_id) as carbs_g,
        sum(protein_g order by treatment_timestamp, treatment_id) as protein_g,
        sum(fat_g order by treatment_timestamp, treatment_id) as fat_g
    from numbered
    group by site, reading_date, meal_number
),

boluses as (
    select
        site,
        treatment_id,
        treatment_timestamp,
        bolus_units,
        extended_units
    from treatments
    where bolus_units > 0 or extended_units > 0
),

-- A bolus belongs to one meal, the nearest.
meal_boluses as (
    select
        meals.meal_id,
        boluses.*,
        {{ hours_between('meals.meal_timestamp', 'boluses.treatment_timestamp') }} * 60 as minutes_after_meal
    from meals
    inner join boluses
        on
            meals.site = boluses.site
            and boluses.treatment_timestamp between meals.meal_timestamp - interval 30 minutes
            and meals.meal_timestamp + interval 60 minutes
    qualify row_number() over (
        partition by boluses.treatment_id
        order by abs(minutes_after_meal), meals.meal_timestamp, meals.meal_id
    ) = 1
),

bolused as (
    select
        meal_id,
        sum(bolus_units order by treatment_timestamp, treatment_id) as bolus_units,
        sum(extended_units order by treatment_timestamp, treatment_id) as extended_units,
        min(minutes_after_meal) as first_bolus_minutes
    from meal_boluses
    group by meal_id
),

-- What makes the response hard to read: more food or insulin within the three hours.
followed as (
    select
        meals.meal_id,
        bool_or(later_meals.meal_id is not null) as has_meal_within_3h
    from meals
    left join meals as later_meals
        on
            meals.site = later_meals.site
            and meals.meal_timestamp < later_meals.meal_timestamp
            and later_meals.meal_timestamp <= meals.meal_timestamp + interval 3 hours
    group by meals.meal_id
),

bolused_again as (
    select distinct meals.meal_id
    from meals
    inner join boluses
        on
            meals.site = boluses.site
            and meals.meal_timestamp < boluses.treatment_timestamp
            and boluses.treatment_timestamp <= meals.meal_timestamp + interval 3 hours
    left join meal_boluses
        on meals.meal_id = meal_boluses.meal_id and boluses.treatment_id = meal_boluses.treatment_id
    where meal_boluses.meal_id is null
),

around as (
    select
        meals.meal_id,
        readings.entry_id,
        readings.glucose_mg_dl,
        readings.sensor_interval_minutes,
        {{ hours_between('meals.meal_timestamp', 'readings.reading_timestamp') }} * 60 as minutes
    from meals
    inner join readings
        on
            meals.site = readings.site
            and readings.reading_timestamp between meals.meal_timestamp - interval 10 minutes
            and meals.meal_timestamp + interval 3 hours
),

baseline as (
    select
        meal_id,
        max_by(glucose_mg_dl, (minutes, entry_id)) as start_glucose_mg_dl
    from around
    where minutes <= 0
    group by meal_id
),

response as (
    select
        around.*,
        row_number() over (
            partition by around.meal_id order by around.glucose_mg_dl desc, around.minutes asc, around.entry_id asc
        ) as peak_rank
    from around
    where around.minutes > 0
),

-- The curve from the start to the end of the window, with the start value at the meal.
points as (
    select
        meal_id,
        entry_id,
        minutes,
        glucose_mg_dl
    from response
    union all
    select
        meal_id,
        '' as entry_id,
        0 as minutes,
        start_glucose_mg_dl as glucose_mg_dl
    from baseline
),

steps as (
    select
        points.meal_id,
        points.minutes,
        points.entry_id,
        points.minutes - lag(points.minutes) over by_time as step_minutes,
        points.glucose_mg_dl - baseline.start_glucose_mg_dl as above,
        lag(points.glucose_mg_dl) over by_time - baseline.start_glucose_mg_dl as above_before
    from points
    inner join baseline on points.meal_id = baseline.meal_id
    window by_time as (partition by points.meal_id order by points.minutes, points.entry_id)
),

-- Trapezoids; where the curve crosses the start value, the triangle above it.
areas as (
    select
        *,
        case
            when step_minutes is null then 0
            when above >= 0 and above_before >= 0 then (above + above_before) / 2 * step_minutes
            when above > 0 then above * above / (above - above_before) / 2 * step_minutes
            when above_before > 0 then above_before * above_before / (above_before - above) / 2 * step_minutes
            else 0
        end as area
    from steps
),

curves as (
    select
        meal_id,
        sum(area order by minutes, entry_id) as incremental_area,
        greatest(max(step_minutes), 180 - max(minutes)) as longest_gap_minutes
    from areas
    group by meal_id
),

peaks as (
    select
        meal_id,
        -- Each reading stands for its own sensor's interval.
        least(100, 100 * sum(sensor_interval_minutes order by minutes, entry_id) / 180) as response_coverage_pct,
        max(glucose_mg_dl) as peak_glucose_mg_dl,
        min(glucose_mg_dl) as nadir_glucose_mg_dl,
        max(minutes) filter (peak_rank = 1) as minutes_to_peak
    from response
    group by meal_id
),

-- A peak may still come while the three hours are not over.
last_readings as (
    select
        site,
        reading_date,
        max(reading_timestamp) as last_timestamp
    from readings
    group by site, reading_date
),

two_hours as (
    select
        meal_id,
        min_by(glucose_mg_dl, (abs(minutes - 120), minutes, entry_id)) as two_hour_glucose_mg_dl
    from response
    where minutes between 110 and 130
    group by meal_id
),

joined as (
    select
        meals.*,
        bolused.bolus_units,
        bolused.extended_units,
        bolused.first_bolus_minutes,
        followed.has_meal_within_3h,
        bolused_again.meal_id is not null as has_bolus_within_3h,
        baseline.start_glucose_mg_dl,
        two_hours.two_hour_glucose_mg_dl,
        coalesce(peaks.response_coverage_pct, 0) as response_coverage_pct,
        coalesce(peaks.response_coverage_pct >= 70, false)
        and coalesce(
            greatest(same_day.last_timestamp, next_day.last_timestamp) >= meals.meal_timestamp + interval 3 hours, false
        ) as is_response_covered,
        peaks.peak_glucose_mg_dl,
        peaks.minutes_to_peak,
        peaks.nadir_glucose_mg_dl,
        curves.incremental_area,
        curves.longest_gap_minutes
    from meals
    left join bolused on meals.meal_id = bolused.meal_id
    left join followed on meals.meal_id = followed.meal_id
    left join bolused_again on meals.meal_id = bolused_again.meal_id
    left join baseline on meals.meal_id = baseline.meal_id
    left join two_hours on meals.meal_id = two_hours.meal_id
    left join peaks on meals.meal_id = peaks.meal_id
    left join curves on meals.meal_id = curves.meal_id
    left join last_readings as same_day
        on meals.site = same_day.site and meals.reading_date = same_day.reading_date
    left join last_readings as next_day
        on meals.site = next_day.site and meals.reading_date + 1 = next_day.reading_date
)

select
    meal_id,
    site,
    meal_timestamp,
    meal_local_timestamp,
    reading_date,
    carb_entry_count,
    carbs_g,
    protein_g,
    fat_g,
    bolus_units,
    extended_units,
    first_bolus_minutes,
    has_meal_within_3h,
    has_bolus_within_3h,
    cast(response_coverage_pct as double) as response_coverage_pct,
    is_response_covered,
    start_glucose_mg_dl,
    case when is_response_covered then peak_glucose_mg_dl end as peak_glucose_mg_dl,
    case when is_response_covered then minutes_to_peak end as minutes_to_peak,
    case when is_response_covered then peak_glucose_mg_dl - start_glucose_mg_dl end as rise_mg_dl,
    two_hour_glucose_mg_dl,
    case when is_response_covered then nadir_glucose_mg_dl end as nadir_glucose_mg_dl,
    case when is_response_covered and longest_gap_minutes <= 45 then incremental_area end
        as incremental_area_mg_dl_min
from joined
{% if is_incremental() %}
    where {{ is_recomputed(this.name, 'joined') }}
{% endif %}
