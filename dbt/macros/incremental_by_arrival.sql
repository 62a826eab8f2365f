{#
  Incremental by what arrived: see docs/decisions/0001-incremental-by-arrival.md.
  A model computes again, whole, the local days that `ops.changes` names since its own watermark, and the day
  after each, whose first reading looks back. Deleting, inserting and moving the watermark are one transaction.
#}

{# Condition on `site` and `reading_date`: the row belongs to a day that this model computes again. #}
{% macro is_recomputed(model_name, alias='') -%}
    {%- set prefix = alias ~ '.' if alias else '' -%}
    (
        ({{ prefix }}site, {{ prefix }}reading_date) in (
            select
                changes.site,
                changes.reading_date + following.days
            from {{ changes_since_watermark(model_name) }} as changes
            cross join (values (0), (1)) as following (days)
            where changes.reading_date is not null
        )
        or {{ prefix }}site in (
            select changes.site
            from {{ changes_since_watermark(model_name) }} as changes
            where changes.reading_date is null
        )
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
            ~ ", (values (-2), (0), (3)) as around (days) order by all"
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
{% macro delete_recomputed_days() -%}
    {%- if is_incremental() -%}
        delete from {{ this }} where {{ is_recomputed(this.name) }}
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
