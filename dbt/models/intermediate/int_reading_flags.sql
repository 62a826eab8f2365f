{{
    config(
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_days() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

-- No rule flags a reading yet.
select
    entry_id,
    site,
    reading_date,
    cast(null as varchar) as flag
from {{ ref('int_glucose_enriched') }}
where false
