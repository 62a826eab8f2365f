{#
  Incremental by what arrived: see docs/decisions/0001-incremental-by-arrival.md.
  A model computes again, whole, the local days that `ops.changes` names since its own watermark with the days around
  them, since rows look at their neighbours; or, where its rows span days, the sites. Deleting, inserting and moving the
  watermark are one transaction.
#}

{# Condition on `site` and `reading_date`: the row belongs to a day that this model computes again. #}
{% macro is_recomputed(model_name, alias='', days_before=1, days_after=1) -%}
    {%- set prefix = alias ~ '.' if alias else '' -%}
    (
        ({{ prefix }}site, {{ prefix }}reading_date) in (
            select
                changes.site,
                cast(changes.reading_date + cast(around.days as integer) as date)
            from {{ changes_since_watermark(model_name) }} as changes
            cross join range(-{{ days_before }}, {{ days_after + 1 }}) as around (days)
            where changes.reading_date is not null
        )
        or {{ prefix }}site in (
            select changes.site
            from {{ changes_since_watermark(model_name) }} as changes
            where changes.reading_date is null
        )
    )
{%- endmacro %}

{# Condition on `site`: something of the site has changed, and this model's rows of it span days. #}
{% macro is_recomputed_site(model_name, alias='') -%}
    {{ alias ~ '.' if alias else '' }}site in (
        select changes.site from {{ changes_since_watermark(model_name) }} as changes
    )
{%- endmacro %}

{% macro changes_since_watermark(model_name) -%}
    (
        select * from ops.changes
        where change_seq > coalesce(
            (select watermarks.change_seq from ops.watermarks where consumer = '{{ model_name }}'), 0
        )
    )
{%- endmacro %}

{# Literal bounds on the partitions that the recomputed days lie in: DuckDB skips files by literals, not by joins. #}
{% macro partitions_of_recomputed(model_name) -%}
    {%- if execute -%}
        {%- set whole_sites = run_query(
            "select count(*) from " ~ changes_since_watermark(model_name) ~ " where reading_date is null"
        ).columns[0].values()[0] -%}
        {%- set partitions = run_query(
            "select distinct site, strftime(reading_date + days, '%Y-%m') from " ~ changes_since_watermark(model_name)
            ~ ", (values (-4), (0), (4)) as around (days) order by all"
        ) -%}
        {%- if whole_sites or partitions.rows | length > 500 -%}
            true
        {%- elif partitions.rows | length == 0 -%}
            false
        {%- else -%}
            site in ({{ quoted(partitions.columns[0].values()) }})
            and utc_month in ({{ quoted(partitions.columns[1].values()) }})
        {%- endif -%}
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{% macro quoted(values) -%}
    {%- for value in values | unique -%}
        '{{ value | replace("'", "''") }}'{{ ", " if not loop.last }}
    {%- endfor -%}
{%- endmacro %}

{# Pre-hook: the days that will be inserted again leave first, so that what was deleted is gone. #}
{% macro delete_recomputed_days(days_before=1, days_after=1) -%}
    {%- if is_incremental() -%}
        delete from {{ this }} where {{ is_recomputed(this.name, '', days_before, days_after) }}
    {%- else -%}
        select 1
    {%- endif -%}
{%- endmacro %}

{# Pre-hook: the same for models that compute sites as a whole. #}
{% macro delete_recomputed_sites() -%}
    {%- if is_incremental() -%}
        delete from {{ this }} where {{ is_recomputed_site(this.name) }}
    {%- else -%}
        select 1
    {%- endif -%}
{%- endmacro %}

{# Post-hook: this model has taken in all changes. #}
{% macro move_watermark() -%}
    insert into ops.watermarks (consumer, change_seq)
    select '{{ this.name }}', coalesce(max(change_seq), 0) from ops.changes
    on conflict (consumer) do update set change_seq = excluded.change_seq
{%- endmacro %}
