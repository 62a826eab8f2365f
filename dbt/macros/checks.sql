{#
  What the data tests look at: the days that changed since the model's tests last passed. `ops.checks` moves only when
  all tests of a model pass (lib/dbt_project.py), so a day with a fault is looked at again at every tick until it is
  mended. `lakehouse check --full` looks at everything.
#}

{#
  Replaces dbt's macro of this name: every generic test of an incremental model looks at what is not checked yet. Rows
  without a site or a day are of no day that changed, so they are looked at always; DuckDB knows which blocks have any.
#}
{% macro get_where_subquery(relation) -%}
    {%- set given = ["(" ~ config.get('where') ~ ")"] if config.get('where') else [] -%}
    {%- set scopes = [] -%}
    {%- if execute and target.type == 'duckdb' -%}
        {%- set unchecked = is_unchecked(relation) | trim -%}
        {%- if unchecked != 'true' -%}
            {%- do scopes.append(unchecked) -%}
            {%- set names = column_names(relation) -%}
            {%- if 'site' in names -%}
                {%- do scopes.append("site is null") -%}
            {%- endif -%}
            {%- if 'reading_date' in names -%}
                {%- do scopes.append("reading_date is null" ~ (" and site is not null" if 'site' in names)) -%}
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

{% macro column_names(relation) -%}
    {%- do return(adapter.get_columns_in_relation(relation) | map(attribute='name') | list) -%}
{%- endmacro %}

{# Condition on the rows of a model: not checked yet. All rows of a model that is built whole every time. #}
{% macro is_unchecked(relation, alias='') -%}
    {%- if not execute or not is_incremental_by_arrival(relation) -%}
        true
    {%- else -%}
        {%- set names = column_names(relation) -%}
        {%- set changes = changes_since_check(relation.identifier) -%}
        {%- if 'site' in names and 'reading_date' in names -%}
            {# Wider than any model computes again: where old and new days meet, things go wrong. #}
            {{ is_of_changed_days(changes, alias, days_before=3, days_after=3) }}
        {%- elif 'site' in names -%}
            {{ alias ~ '.' if alias else '' }}site in (select changes.site from {{ changes }} as changes)
        {%- else -%}
            true
        {%- endif -%}
    {%- endif -%}
{%- endmacro %}

{% macro is_incremental_by_arrival(relation) -%}
    {%- set query = "select count(*) from ops.watermarks where consumer = '" ~ relation.identifier ~ "'" -%}
    {%- do return(run_query(query).rows[0][0] > 0) -%}
{%- endmacro %}

{% macro changes_since_check(model_name) -%}
    (
        select * from ops.changes
        where change_seq > coalesce((select checks.change_seq from ops.checks where model = '{{ model_name }}'), 0)
    )
{%- endmacro %}
