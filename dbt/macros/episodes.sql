{#
  Episodes span days, and a change of one reading can join two of them or part one. What ends every episode of either
  kind is a quarter of an hour in range: what comes after it does not depend on what came before. So a site is computed
  again from such a quarter before the first changed day to one after the last.
#}

{# First to last reading of a run of so many minutes: each reading stands for its interval; half of one is tolerance. #}
{% macro span_of_minutes(minutes, interval) -%}
    ((ceil({{ minutes }} / {{ interval }}) - 1.5) * {{ interval }})
{%- endmacro %}

{#
  Rows of `site`, `first_day`, `last_day`, between which days have changed (with those beside them), and `day_before`,
  `day_after`: the nearest days with readings around them, else the same days.
#}
{% macro changed_range(model_name, readings) -%}
    (
        with changed as (
            select
                site,
                min(coalesce(reading_date, date '0001-01-02')) - 1 as first_day,
                max(coalesce(reading_date, date '9999-12-30')) + 1 as last_day
            from {{ changes_since_watermark(model_name) }}
            group by site
        ),

        with_readings as (
            select
                changed.site,
                max(readings.reading_date) filter (readings.reading_date < changed.first_day) as day_before,
                min(readings.reading_date) filter (readings.reading_date > changed.last_day) as day_after
            from changed
            inner join {{ readings }} as readings on changed.site = readings.site
            group by changed.site
        )

        select
            changed.site,
            changed.first_day,
            changed.last_day,
            coalesce(with_readings.day_before, changed.first_day) as day_before,
            coalesce(with_readings.day_after, changed.last_day) as day_after
        from changed
        left join with_readings on changed.site = with_readings.site
    )
{%- endmacro %}

{#
  Rows of `site`, `window_start`, `window_end`: readings from and to these belong to what is computed again. Both are
  readings in range that no change has touched; infinite where there is none within 14 days.
#}
{% macro recomputed_windows(model_name, readings) -%}
    (
        with changed as (
            select * from {{ changed_range(model_name, readings) }}
        ),

        untouched as (
            select
                readings.site,
                readings.entry_id,
                readings.reading_timestamp,
                readings.sensor_interval_minutes,
                readings.reading_date > changed.last_day as is_after,
                readings.glucose_mg_dl between 70 and 180 as is_in_range
            from {{ readings }} as readings
            inner join changed on readings.site = changed.site
            where
                (
                    readings.reading_date < changed.first_day
                    and date_diff('day', readings.reading_date, changed.day_before) <= 14
                )
                or (
                    readings.reading_date > changed.last_day
                    and date_diff('day', changed.day_after, readings.reading_date) <= 14
                )
        ),

        numbered as (
            select
                *,
                sum(cast(
                    date_diff('millisecond', previous_timestamp, reading_timestamp) > 45 * 60000
                    or not is_in_range as integer
                )) over in_order as run
            from (
                select
                    *,
                    lag(reading_timestamp) over (
                        partition by site, is_after order by reading_timestamp, entry_id
                    ) as previous_timestamp
                from untouched
            )
            window in_order as (partition by site, is_after order by reading_timestamp, entry_id)
        ),

        in_range_for as (
            select
                *,
                date_diff('millisecond', min(reading_timestamp) over so_far, reading_timestamp) / 60000.0 as minutes,
                min({{ span_of_minutes(15, 'sensor_interval_minutes') }}) over so_far as needed_minutes
            from numbered
            where is_in_range
            window so_far as (
                partition by site, is_after, run
                order by reading_timestamp, entry_id
            )
        ),

        ends as (
            select
                site,
                max(reading_timestamp) filter (not is_after) as window_start,
                min(reading_timestamp) filter (is_after) as window_end
            from in_range_for
            where minutes >= needed_minutes
            group by site
        )

        select
            changed.site,
            coalesce(ends.window_start, timestamptz '-infinity') as window_start,
            coalesce(ends.window_end, timestamptz 'infinity') as window_end
        from changed
        left join ends on changed.site = ends.site
    )
{%- endmacro %}

{# Pre-hook: the episodes that will be inserted again leave first. None begins at a bound: both are in range. #}
{% macro delete_recomputed_episodes() -%}
    {%- if is_incremental() -%}
        delete from {{ this }} as episodes
        using {{ recomputed_windows(this.name, ref('fact_glucose_readings')) }} as recomputed
        where
            episodes.site = recomputed.site
            and episodes.start_timestamp > recomputed.window_start
            and episodes.start_timestamp < recomputed.window_end
    {%- endif -%}
{%- endmacro %}

{# Pre-hook: the gaps that will be inserted again leave first. #}
{% macro delete_recomputed_gaps() -%}
    {%- if is_incremental() -%}
        delete from {{ this }} as gaps
        using {{ changed_range(this.name, ref('fact_glucose_readings')) }} as changed
        where
            gaps.site = changed.site
            and gaps.end_date >= changed.first_day
            and gaps.start_date <= changed.last_day
    {%- endif -%}
{%- endmacro %}
