{{ config(meta={"dagster": {"ref": {"name": "int_temp_basals"}}}) }}
-- Insulin would be counted twice; the last days, so that a tick stays cheap.
with in_order as (
    select
        site,
        treatment_id,
        starts_at,
        lag(ends_at) over (partition by site order by starts_at, ends_at) as previous_ends_at
    from {{ ref('int_temp_basals') }}
    where reading_date >= current_date - 8
)

select
    site,
    treatment_id,
    starts_at
from in_order
where starts_at < previous_ends_at
