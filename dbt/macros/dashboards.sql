{#
  What people look at: every figure in both units, and for the periods that a dashboard offers. The marts `mart_dashboard_…`
  have one row for each, so that a filter on a column changes a chart. They read published tables or marts that are tables:
  dbt replaces a view or a table by dropping it, and with it every view on it.
#}

{# Rows of (unit, mg_dl_per_unit, decimals, step): how glucose is shown, and the distance of two shown values. 18.01559 is Nightscout's own factor. #}
{% macro glucose_units() -%}
    values ('mg/dL', 1.0, 0, 1), ('mmol/L', 18.01559, 1, 0.1)
{%- endmacro %}

{# Rows of (period, period_name, period_days): as it is shown, as the metrics call it, its length. #}
{% macro dashboard_periods() -%}
    values ('7 days', '7d', 7), ('14 days', '14d', 14), ('30 days', '30d', 30), ('90 days', '90d', 90)
{%- endmacro %}

{# A concentration as it is shown, exact decimal: whole mg/dL, or mmol/L with one decimal. Needs `units` in scope. #}
{% macro shown_decimal(mg_dl) -%}
    round(cast({{ mg_dl }} / units.mg_dl_per_unit as numeric), units.decimals)
{%- endmacro %}

{# The same as a number that charts take. #}
{% macro shown(mg_dl) -%}
    cast({{ shown_decimal(mg_dl) }} as double precision)
{%- endmacro %}

{% macro range_label(range_name) -%}
    case {{ range_name }}
        when 'very_low' then 'Very low'
        when 'low' then 'Low'
        when 'in_range' then 'In range'
        when 'high' then 'High'
        when 'very_high' then 'Very high'
        when 'below_range' then 'Below range'
        when 'above_range' then 'Above range'
    end
{%- endmacro %}

{# Rows of a site with its newest reading; sites without any are left out. #}
{% macro newest_readings() -%}
    select
        sites.site,
        readings.*
    from {{ source('published', 'dim_site') }} as sites
    cross join lateral (
        select
            facts.reading_timestamp,
            facts.reading_local_timestamp,
            facts.glucose_mg_dl,
            facts.glucose_change_mg_dl,
            facts.glucose_category,
            facts.glucose_range,
            facts.direction
        from {{ source('published', 'fact_glucose_readings') }} as facts
        where
            facts.site = sites.site
            and facts.reading_date >= cast(sites.last_reading_timestamp at time zone sites.timezone as date)
        order by facts.reading_timestamp desc, facts.entry_id desc
        limit 1
    ) as readings
    where sites.last_reading_timestamp is not null
{%- endmacro %}

{# Minutes from a moment to the query. #}
{% macro age_minutes(moment) -%}
    cast(extract(epoch from now() - {{ moment }}) / 60 as double precision)
{%- endmacro %}

{# How long ago, for people: minutes up to an hour, hours up to two days, days up to three months. #}
{% macro age_text(minutes) -%}
    case
        when {{ minutes }} < 60 then greatest(0, floor({{ minutes }})) || ' min ago'
        when {{ minutes }} < 2880 then floor({{ minutes }} / 60) || ' h ago'
        when {{ minutes }} < 131400 then floor({{ minutes }} / 1440) || ' days ago'
        when {{ minutes }} < 1051200 then floor({{ minutes }} / 43800) || ' months ago'
        else floor({{ minutes }} / 525600) || ' years ago'
    end
{%- endmacro %}

{#
  From how many minutes on a reading says nothing of now: LAKEHOUSE_STALE_MINUTES as it was at the last run, 60 before any,
  at most a day.
#}
{% macro stale_minutes() -%}
    select least(
        1440,
        coalesce(
            (
                select runs.stale_minutes from {{ source('operations', 'pipeline_runs') }} as runs
                where runs.job = 'nightscout_pipeline' and runs.status <> 'running'
                order by runs.started_at desc, runs.run_id desc
                limit 1
            ),
            60
        )
    ) as stale_minutes
{%- endmacro %}

{# Days of a period from the site's first one on: a period that began before has less to show. Needs `sites` in scope. #}
{% macro days_covered(start_date, end_date) -%}
    {{ end_date }} - greatest(
        {{ start_date }}, cast(sites.first_reading_timestamp at time zone sites.timezone as date)
    ) + 1
{%- endmacro %}

{% macro trend_arrow(direction) -%}
    case {{ direction }}
        when 'DoubleUp' then '⇈'
        when 'SingleUp' then '↑'
        when 'FortyFiveUp' then '↗'
        when 'Flat' then '→'
        when 'FortyFiveDown' then '↘'
        when 'SingleDown' then '↓'
        when 'DoubleDown' then '⇊'
        else ''
    end
{%- endmacro %}
