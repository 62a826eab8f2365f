{{ config(materialized='view') }}

-- A view: ages are those of the query, and a tick with nothing new, which builds no mart, shows here all the same.
with ticks as not materialized (
    select * from {{ source('operations', 'pipeline_runs') }}
    where job = 'nightscout_pipeline'
),

-- Not materialized: a month of many sites is found by its indexes alone.
run_sites as not materialized (
    select * from {{ source('operations', 'pipeline_run_sites') }}
),

-- A run that failed before it came to the sites names none.
newest_with_sites as (
    select run_id from run_sites
    order by started_at desc, run_id desc
    limit 1
),

sites as (
    select site from {{ source('published', 'dim_site') }}
    union
    select run_sites.site
    from run_sites
    inner join newest_with_sites on run_sites.run_id = newest_with_sites.run_id
),

-- A run that failed has failed for every site, those included that it never came to.
recent as (
    select
        sites.site,
        ticks.duration_seconds,
        ticks.status = 'success' as is_run_success,
        ticks.status in ('failed', 'killed') or (ticks.status = 'success' and not coalesce(run_sites.is_read, true))
            as is_failure,
        run_sites.documents_fetched,
        run_sites.documents_landed,
        run_sites.deletions,
        run_sites.rows_stored,
        run_sites.rows_quarantined
    from sites
    cross join ticks
    left join run_sites
        on
            ticks.run_id = run_sites.run_id
            and sites.site = run_sites.site
            and run_sites.started_at > now() - interval '24 hours'
    where ticks.started_at > now() - interval '24 hours' and ticks.status <> 'running'
),

last_24_hours as (
    select
        site,
        count(*) as runs_24h,
        count(*) filter (where is_failure) as failed_runs_24h,
        percentile_cont(0.5) within group (order by duration_seconds) filter (where is_run_success)
            as median_duration_seconds_24h,
        cast(sum(documents_fetched) as bigint) as documents_fetched_24h,
        cast(sum(documents_landed) as bigint) as documents_landed_24h,
        cast(sum(deletions) as bigint) as deletions_24h,
        cast(sum(rows_stored) as bigint) as rows_stored_24h,
        cast(sum(rows_quarantined) as bigint) as rows_quarantined_24h
    from recent
    group by site
),

last_run as (
    select * from ticks
    where status <> 'running'
    order by started_at desc, run_id desc
    limit 1
),

last_failed_run as (
    select * from ticks
    where status in ('failed', 'killed')
    order by started_at desc, run_id desc
    limit 1
),

running as (
    select count(*) > 0 as is_running from ticks
    where status = 'running'
)

select
    sites.site,
    site_facts.last_reading_timestamp,
    cast(extract(epoch from now() - site_facts.last_reading_timestamp) / 60 as double precision) as reading_age_minutes,
    coalesce({{ age_text(age_minutes('site_facts.last_reading_timestamp')) }}, 'never') as reading_age_text,
    case
        when site_facts.last_reading_timestamp is null then true
        else now() - site_facts.last_reading_timestamp > last_run.stale_minutes * interval '1 minute'
    end as is_stale,
    last_shown.newest_document_timestamp,
    last_read.last_read_timestamp,
    last_success.last_successful_run,
    cast(extract(epoch from now() - last_success.last_successful_run) / 60 as double precision)
        as minutes_since_success,
    coalesce({{ age_text(age_minutes('last_success.last_successful_run')) }}, 'never') as success_age_text,
    last_run.run_id as last_run_id,
    case
        when last_run.status = 'success' and not coalesce(last_run_site.is_read, true) then 'failed'
        else last_run.status
    end as last_run_status,
    last_run.started_at as last_run_started_at,
    last_run.duration_seconds as last_run_duration_seconds,
    running.is_running,
    coalesce(last_24_hours.runs_24h, 0) as runs_24h,
    coalesce(last_24_hours.failed_runs_24h, 0) as failed_runs_24h,
    last_24_hours.median_duration_seconds_24h,
    coalesce(last_24_hours.documents_fetched_24h, 0) as documents_fetched_24h,
    coalesce(last_24_hours.documents_landed_24h, 0) as documents_landed_24h,
    coalesce(last_24_hours.deletions_24h, 0) as deletions_24h,
    coalesce(last_24_hours.rows_stored_24h, 0) as rows_stored_24h,
    coalesce(last_24_hours.rows_quarantined_24h, 0) as rows_quarantined_24h,
    last_run_site.unread_collections,
    greatest(last_failed_run.started_at, last_unread.started_at) as last_failure_timestamp,
    case when coalesce(last_unread.started_at < last_failed_run.started_at, true) then last_failed_run.failed_step end
        as last_failure_step,
    case
        when coalesce(last_unread.started_at < last_failed_run.started_at, last_unread.started_at is null)
            then last_failed_run.failure_reason
        else last_unread.error
    end as last_failure_reason
from sites
cross join running
left join {{ source('published', 'dim_site') }} as site_facts on sites.site = site_facts.site
left join last_24_hours on sites.site = last_24_hours.site
left join last_run on true
left join run_sites as last_run_site on last_run.run_id = last_run_site.run_id and sites.site = last_run_site.site
left join last_failed_run on true
left join lateral (
    -- Of a tick: reading an old month again shows that month's newest.
    select found.newest_document_at as newest_document_timestamp
    from run_sites as found
    inner join ticks on found.run_id = ticks.run_id
    where sites.site = found.site and found.newest_document_at is not null
    order by found.started_at desc
    limit 1
) as last_shown on true
left join lateral (
    select found.started_at as last_read_timestamp
    from run_sites as found
    where sites.site = found.site and found.is_read
    order by found.started_at desc
    limit 1
) as last_read on true
left join lateral (
    select ticks.ended_at as last_successful_run
    from run_sites as found
    inner join ticks on found.run_id = ticks.run_id and ticks.status = 'success'
    where sites.site = found.site and coalesce(found.is_read, true)
    order by found.started_at desc
    limit 1
) as last_success on true
left join lateral (
    select
        found.started_at,
        found.error
    from run_sites as found
    inner join ticks on found.run_id = ticks.run_id and ticks.status = 'success'
    where sites.site = found.site and not found.is_read
    order by found.started_at desc
    limit 1
) as last_unread on true
