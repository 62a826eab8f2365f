{#
  What the data tests look at: the days that changed since the model's tests last passed. `ops.checks` moves only when
  all tests of a model pass (lib/data_tests.py), so a day with a fault is looked at again at every tick until it is
  mended. Of a model that is not in `ops.checks` every row is looked at: when its tests have never passed, as in a new
  warehouse, and in `lakehouse check --full`.
#}

{#
  Replaces dbt's macro of this name: every generic test of an incremental model looks at what is not checked yet. Rows
  without a site or a day are of no day that changed, so they are looked at always; DuckDB knows which blocks have any.
#}
{% macro get_where_subquery(relation) -%}
    {%- set given = ["(" ~ config.get('where') ~ ")"] if config.get('where') else [] -%}
    {%- set scopes = [] -%}
    {%- if execute and target.type == 'duckdb' -%}
        {%- set found = incremental_shape(relation) -%}
        {%- if found.is_checked and found.has_site -%}
            {%- do scopes.append(is_unchecked(relation, found=found) | trim) -%}
            {%- do scopes.append("site is null") -%}
            {%- if found.computes_days -%}
                {%- do scopes.append("reading_date is null and site is not null") -%}
            {%- endif -%}
        {%- endif -%}
    {%- endif -%}
    {%- if not given and not scopes -%}
        {%- do return(relation) -%}
    {%- endif -%}
    {%- set parts = [] -%}
    {%- for scope in scopes or ['true'] -%}
        {%- do parts.append("select * from " ~ relation ~ " where " ~ (given + [scope]) | join(" and ")) -%}
    {%- endfor -%}
    {%- do return("(" ~ parts | join(" union all ") ~ ") dbt_subquery") -%}
{%- endmacro %}

{# Condition on the rows of a model: not checked yet. It holds for all rows of a model that is built whole every time. #}
{% macro is_unchecked(relation, alias='', found=none) -%}
    {%- set found = found or (incremental_shape(relation) if execute else {}) -%}
    {%- if not found.is_checked or not found.has_site -%}
        true
    {%- elif found.computes_days -%}
        {# Wider than any model computes again: where old and new days meet, things go wrong. #}
        {{ is_of_changed_days(changes_since_check(relation.identifier), alias, 3, 3, found.bounds) }}
    {%- else -%}
        {{ alias ~ '.' if alias else '' }}site in (
            select changes.site from {{ changes_since_check(relation.identifier) }} as changes
        )
    {%- endif -%}
{%- endmacro %}

{#
  Whether the model's tests have passed before, and the bounds of what changed since, by one query, since every test asks;
  whether it has a column `site`, and whether it computes days or sites.
#}
{% macro incremental_shape(relation) -%}
    {%- set row = run_query(
        "select exists (from ops.checks where model = '" ~ relation.identifier ~ "'), " ~ columns_of_bounds()
        ~ " from " ~ changes_since_check(relation.identifier)
    ).rows[0] -%}
    {%- do return({
        'is_checked': row[0],
        'bounds': [row[1], row[2], row[3]],
        'has_site': 'site' in node_of(relation.identifier).get('columns', {}),
        'computes_days': computes_days(relation.identifier),
    }) -%}
{%- endmacro %}

{% macro changes_since_check(model_name) -%}
    (
        select * from ops.changes
        where change_seq > (select checks.change_seq from ops.checks where model = '{{ model_name }}')
    )
{%- endmacro %}

{# Condition on `site` and `utc_month`: the partition holds rows that are not checked yet. #}
{% macro partitions_of_unchecked(relation) -%}
    {%- if execute and incremental_shape(relation).is_checked -%}
        {{ partitions_of_changed_days(changes_since_check(relation.identifier)) }}
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}
