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

with readings as (
    select * from {{ ref('fact_glucose_readings') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name) }}
    {% endif %}
),

sites as (
    select * from ops.sites
),

insulin as (
    select * from {{ ref('fact_daily_insulin') }}
    {% if is_incremental() %}
        where {{ is_recomputed(this.name) }}
    {% endif %}
),

components as (
    select * from {{ ref('int_glucose_daily_components') }}
    where day_part = 'whole' and readings_used = 'all'
),

daily as (
    select
        site,
        reading_date,
        count(*) as reading_count,
        -- Ordered: the last bit of a sum depends on its order, and a rebuild has to equal to the last bit.
        avg(glucose_mg_dl order by glucose_mg_dl) as avg_glucose_mg_dl,
        median(glucose_mg_dl) as median_glucose_mg_dl,
        stddev_samp(glucose_mg_dl order by glucose_mg_dl) as sd_glucose_mg_dl,
        min(glucose_mg_dl) as min_glucose_mg_dl,
        max(glucose_mg_dl) as max_glucose_mg_dl,
        count(*) filter (glucose_mg_dl < 54) as very_low_count,
        count(*) filter (glucose_mg_dl >= 54 and glucose_mg_dl < 70) as low_count,
        count(*) filter (glucose_mg_dl between 70 and 180) as in_range_count,
        count(*) filter (glucose_mg_dl > 180 and glucose_mg_dl <= 250) as high_count,
        count(*) filter (glucose_mg_dl > 250) as very_high_count,
        count(*) filter (glucose_mg_dl between 70 and 140) as tight_range_count,
        min(reading_timestamp) as first_reading_timestamp,
        max(reading_timestamp) as last_reading_timestamp,
        -- That of most readings: a day on which the sensor was changed for another model has two.
        mode(sensor_interval_minutes order by sensor_interval_minutes) as sensor_interval_minutes
    from readings
    group by site, reading_date
),

with_length as (
    select
        daily.*,
        date_diff(
            'second',
            timezone(sites.timezone, cast(daily.reading_date as timestamp)),
            timezone(sites.timezone, cast(daily.reading_date + 1 as timestamp))
        ) / 3600.0 as day_length_hours,
        components.low_risk_sum / daily.reading_count as lbgi,
        components.high_risk_sum / daily.reading_count as hbgi,
        components.mage_mg_dl
    from daily
    inner join sites on daily.site = sites.site
    inner join components on daily.site = components.site and daily.reading_date = components.reading_date
),

with_insulin as (
    select
        with_length.*,
        insulin.carbs_g,
        insulin.meal_count,
        insulin.bolus_units,
        insulin.basal_units,
        insulin.total_insulin_units,
        insulin.bolus_share_pct,
        insulin.basal_share_pct
    from with_length
    left join insulin
        on with_length.site = insulin.site and with_length.reading_date = insulin.reading_date
)

select
    site,
    reading_date,
    cast(isodow(reading_date) as integer) as day_of_week,
    isodow(reading_date) >= 6 as is_weekend,
    cast(day_length_hours as double) as day_length_hours,
    cast(round(day_length_hours * 60 / sensor_interval_minutes) as bigint) as expected_reading_count,
    reading_count,
    cast(
        least(100, 100 * reading_count / (day_length_hours * 60 / sensor_interval_minutes)) as double
    ) as data_sufficiency_pct,
    avg_glucose_mg_dl,
    median_glucose_mg_dl,
    sd_glucose_mg_dl,
    100 * sd_glucose_mg_dl / avg_glucose_mg_dl as cv_pct,
    min_glucose_mg_dl,
    max_glucose_mg_dl,
    cast(100.0 * very_low_count / reading_count as double) as time_very_low_pct,
    cast(100.0 * low_count / reading_count as double) as time_low_pct,
    cast(100.0 * in_range_count / reading_count as double) as time_in_range_pct,
    cast(100.0 * high_count / reading_count as double) as time_high_pct,
    cast(100.0 * very_high_count / reading_count as double) as time_very_high_pct,
    cast(100.0 * (very_low_count + low_count) / reading_count as double) as time_below_range_pct,
    cast(100.0 * (high_count + very_high_count) / reading_count as double) as time_above_range_pct,
    cast(100.0 * tight_range_count / reading_count as double) as time_in_tight_range_pct,
    3.31 + 0.02392 * avg_glucose_mg_dl as estimated_a1c_pct,
    first_reading_timestamp,
    last_reading_timestamp,
    sensor_interval_minutes,
    carbs_g,
    meal_count,
    bolus_units,
    basal_units,
    total_insulin_units,
    bolus_share_pct,
    basal_share_pct,
    12.71 + 4.70587 * avg_glucose_mg_dl / 18.01559 as gmi_mmol_mol,
    cast(
        least(
            100,
            100 * (3.0 * very_low_count + 2.4 * low_count + 1.6 * very_high_count + 0.8 * high_count) / reading_count
        ) as double
    ) as gri,
    lbgi,
    hbgi,
    0.001 * pow(avg_glucose_mg_dl + sd_glucose_mg_dl, 2) as j_index,
    mage_mg_dl
from with_insulin
