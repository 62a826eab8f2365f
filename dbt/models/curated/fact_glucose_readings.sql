{{
    config(
        materialized='incremental',
        unique_key='entry_id',
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with enriched as (
    select * from {{ ref('int_glucose_enriched') }}
    where not is_near_duplicate
)

select
    entry_id,
    site,
    nightscout_id,
    reading_timestamp,
    reading_local_timestamp,
    reading_date,
    hour_of_day,
    day_of_week,
    glucose_mg_dl,
    glucose_category,
    glucose_range,
    glucose_change_mg_dl,
    minutes_since_previous,
    gap_minutes,
    direction,
    device,
    sensor_interval_minutes
from enriched
{% if is_incremental() %}
    where {{ is_recomputed(this.name, 'enriched') }}
{% endif %}
