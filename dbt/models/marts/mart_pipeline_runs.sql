{{ config(materialized='view') }}

-- A view: a run is on record when it has ended, which is after the marts were built; and a failed run builds none.
with runs as (
    select * from {{ source('operations', 'pipeline_runs') }}
    where started_at > now() - interval '30 days'
),

per_run as (
    select
        run_id,
        count(*) as site_count,
        count(*) filter (where not is_read) as unread_site_count,
        cast(sum(documents_fetched) as bigint) as documents_fetched,
        cast(sum(documents_landed) as bigint) as documents_landed,
        cast(sum(deletions) as bigint) as deletions,
        cast(sum(rows_stored) as bigint) as rows_stored,
        cast(sum(rows_duplicate) as bigint) as rows_duplicate,
        cast(sum(rows_quarantined) as bigint) as rows_quarantined
    from {{ source('operations', 'pipeline_run_sites') }}
    where started_at > now() - interval '30 days'
    group by run_id
)

select
    runs.run_id,
    runs.job,
    runs.launched_by,
    runs.status,
    runs.started_at,
    runs.ended_at,
    runs.duration_seconds,
    runs.failed_step,
    runs.failure_reason,
    runs.slowest_step,
    runs.slowest_step_seconds,
    coalesce(per_run.site_count, 0) as site_count,
    coalesce(per_run.unread_site_count, 0) as unread_site_count,
    coalesce(per_run.documents_fetched, 0) as documents_fetched,
    coalesce(per_run.documents_landed, 0) as documents_landed,
    coalesce(per_run.deletions, 0) as deletions,
    coalesce(per_run.rows_stored, 0) as rows_stored,
    coalesce(per_run.rows_duplicate, 0) as rows_duplicate,
    coalesce(per_run.rows_quarantined, 0) as rows_quarantined
from runs
left join per_run on runs.run_id = per_run.run_id
