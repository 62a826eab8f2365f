{#
  Incremental by what arrived: see docs/decisions/0001-incremental-by-arrival.md.
  A model computes again, whole, the local days that `ops.changes` names since its own watermark with the days around
  them, since rows look at their neighbours; or, where its rows span days, the sites. Deleting, inserting and moving the
  watermark are one transaction. A tick costs what its new data costs: docs/decisions/0011-what-a-tick-costs.md.
#}

{# Condition on `site` and `reading_date`: the row belongs to a day that this model computes again. #}
{% macro is_recomputed(model_name, alias='', days_before=1, days_after=1) -%}
    {{ is_of_changed_days(changes_since_watermark(model_name), alias, days_before, days_after) }}
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

{#
  The literal bounds let DuckDB skip the rows of other years; and the `or`, which would have it look at every row of
  the table, is there only when a whole site has changed.
#}
{% macro is_of_changed_days(changes, alias='', days_before=1, days_after=1, bounds=none) -%}
    {%- set prefix = alias ~ '.' if alias else '' -%}
    {%- if execute -%}
        {%- set found = bounds or bounds_of_days(changes) -%}
        {%- set days = modules.datetime.timedelta -%}
        (
        {%- if found[1] is not none %}
            {{ prefix }}reading_date
                between date '{{ found[1] - days(days_before) }}' and date '{{ found[2] + days(days_after) }}'
            and ({{ prefix }}site, {{ prefix }}reading_date) in (
                select
                    changes.site,
                    cast(changes.reading_date + cast(around.days as integer) as date)
                from {{ changes }} as changes
                cross join range(-{{ days_before }}, {{ days_after + 1 }}) as around (days)
                where changes.reading_date is not null
            )
        {%- else %}
            false
        {%- endif %}
        {%- if found[0] > 0 %}
            or {{ prefix }}site in (
                select changes.site
                from {{ changes }} as changes
                where changes.reading_date is null
            )
        {%- endif %}
        )
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{#
  Of changes: how many are of whole sites, and the first and the last day. They are used in several places of a model and
  asked once for all of them: `model` is the same wherever a model is compiled, and another one when it runs.
#}
{% macro bounds_of_days(changes) -%}
    {%- set kept = model.setdefault('bounds_of_days', {}) -%}
    {%- if changes not in kept -%}
        {%- do kept.update({changes: run_query("select " ~ columns_of_bounds() ~ " from " ~ changes).rows[0]}) -%}
    {%- endif -%}
    {%- do return(kept[changes]) -%}
{%- endmacro %}

{% macro columns_of_bounds() -%}
    count(*) filter (reading_date is null), min(reading_date), max(reading_date)
{%- endmacro %}

{# Literal bounds on the partitions that the recomputed days lie in: DuckDB skips files by literals, not by joins. #}
{% macro partitions_of_recomputed(model_name) -%}
    {{ partitions_of_changed_days(changes_since_watermark(model_name)) }}
{%- endmacro %}

{% macro partitions_of_changed_days(changes) -%}
    {%- if execute -%}
        {%- set whole_sites = run_query(
            "select count(*) from " ~ changes ~ " where reading_date is null"
        ).columns[0].values()[0] -%}
        {%- set partitions = run_query(
            "select distinct site, strftime(reading_date + days, '%Y-%m') from " ~ changes
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
    {%- endif -%}
{%- endmacro %}

{# Pre-hook: the same for models that compute sites as a whole. #}
{% macro delete_recomputed_sites() -%}
    {%- if is_incremental() -%}
        delete from {{ this }} where {{ is_recomputed_site(this.name) }}
    {%- endif -%}
{%- endmacro %}

{# Post-hook: this model has taken in all changes. #}
{% macro move_watermark() -%}
    insert into ops.watermarks (consumer, change_seq)
    select '{{ this.name }}', coalesce(max(change_seq), 0) from ops.changes
    on conflict (consumer) do update set change_seq = excluded.change_seq
{%- endmacro %}

{# Whether a model computes days again, not whole sites or spans of its own: it says so by its pre-hook. #}
{% macro computes_days(model_name) -%}
    {%- for hook in node_of(model_name).get('config', {}).get('pre-hook', []) if 'delete_recomputed_days' in hook.sql -%}
        {%- do return(true) -%}
    {%- endfor -%}
    {%- do return(false) -%}
{%- endmacro %}

{# What the manifest says of a model of this project; nothing of what is none. #}
{% macro node_of(model_name) -%}
    {%- do return(graph.nodes.get('model.' ~ project_name ~ '.' ~ model_name, {})) -%}
{%- endmacro %}

{#
  Replaces dbt-duckdb's macro of this name, which looks for the new rows' keys in the whole table. The rows that a model
  of days inserts are of days that its pre-hook has emptied, so the same keys can only be there by a fault of the
  bookkeeping; they are looked for in the span of days that is inserted. For other models nothing is different.
#}
{% macro duckdb__get_delete_insert_merge_sql(target, source, unique_key, dest_columns, incremental_predicates) -%}
    {%- set names = dest_columns | map(attribute='name') | list -%}
    {%- set keys = [unique_key] if unique_key is string else (unique_key or []) -%}
    {%- set predicates = (incremental_predicates or []) | list -%}
    {%- if computes_days(target.identifier) -%}
        {%- set span = run_query("select min(reading_date), max(reading_date) from " ~ source).rows[0] -%}
        {%- if span[0] is not none -%}
            {%- do predicates.append("reading_date between date '" ~ span[0] ~ "' and date '" ~ span[1] ~ "'") -%}
        {%- endif -%}
    {%- endif -%}
    {%- if keys %}
    delete from {{ target }}
    where ({{ keys | join(', ') }}) in (select ({{ keys | join(', ') }}) from {{ source }})
    {%- for predicate in predicates %} and {{ predicate }}{% endfor -%}
    ;
    {%- endif %}

    insert into {{ target }} ({{ get_quoted_csv(names) }})
    select {{ get_quoted_csv(names) }} from {{ source }}
{%- endmacro %}
