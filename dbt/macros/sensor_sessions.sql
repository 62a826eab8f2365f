{#
  Every stream begins a new session at a known start of its site, and what a session is depends on nothing before it but
  the end of the session before, within a day. So a site is computed again from the last known start before the changed
  days to the first one after them.
#}

{#
  Rows of `site`, `window_start`, `window_end`: sessions that begin from the one to before the other are computed again.
  Both are known starts that no change has touched; infinite where there is none.
#}
{% macro recomputed_sessions(model_name) -%}
    (
        with changed as (
            select
                site,
                min(coalesce(reading_date, date '0001-01-04')) as first_day,
                max(coalesce(reading_date, date '9999-12-28')) as last_day
            from {{ changes_since_watermark(model_name) }}
            group by site
        )

        select
            changed.site,
            coalesce(
                max(starts.start_timestamp) filter (starts.reading_date < changed.first_day - 1),
                timestamptz '-infinity'
            ) as window_start,
            -- A day later than the starts that may have moved: a session looks a day back from its first reading.
            coalesce(
                min(starts.start_timestamp) filter (starts.reading_date > changed.last_day + 2),
                timestamptz 'infinity'
            ) as window_end
        from changed
        left join {{ ref('int_sensor_starts') }} as starts on changed.site = starts.site
        group by changed.site
    )
{%- endmacro %}

{# Literal bounds on the partitions of these sessions, with a day around: DuckDB skips files by literals, not by joins. #}
{% macro partitions_of_recomputed_sessions(model_name, month='utc_month') -%}
    {%- if execute -%}
        {%- set windows = run_query(
            "select site, case when isfinite(window_start) then strftime(window_start - interval 2 days, '%Y-%m')"
            ~ " else '' end, case when isfinite(window_end) then strftime(window_end + interval 2 days, '%Y-%m')"
            ~ " else '~' end from " ~ recomputed_sessions(model_name) ~ " order by all"
        ) -%}
        {%- if windows.rows | length > 500 -%}
            true
        {%- elif windows.rows | length == 0 -%}
            false
        {%- else -%}
            (
                {%- for row in windows.rows %}
                {{ "or " if not loop.first }}(
                    site in ({{ quoted([row[0]]) }}) and {{ month }} >= '{{ row[1] }}' and {{ month }} <= '{{ row[2] }}'
                )
                {%- endfor %}
            )
        {%- endif -%}
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{# Pre-hook: the sessions that will be inserted again leave first. #}
{% macro delete_recomputed_sessions() -%}
    {%- if is_incremental() -%}
        delete from {{ this }} as sessions
        using {{ recomputed_sessions(this.name) }} as recomputed
        where
            sessions.site = recomputed.site
            and sessions.session_start >= recomputed.window_start
            and sessions.session_start < recomputed.window_end
    {%- endif -%}
{%- endmacro %}
