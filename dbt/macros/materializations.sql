{#
  dbt-duckdb's materializations, less what our models have no use for: a tick builds some forty of them, and what it
  costs is dbt's statements, not the data. What is not the plain case is left to dbt-duckdb.
#}

{# A view is replaced where it stands, not built beside itself and renamed. #}
{% materialization view, adapter='duckdb' %}
    {%- set existing = load_cached_relation(this) -%}
    {%- if config.get('contract').enforced or (existing is not none and not existing.is_view) -%}
        {{ return(dbt.materialization_view_default()) }}
    {%- endif -%}
    {%- set target = this.incorporate(type='view') -%}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}
    {% call statement('main') -%}
        create or replace view {{ target }} as (
            {{ sql }}
        )
    {%- endcall %}
    {% do persist_docs(target, model) %}
    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {% do adapter.commit() %}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': [target]}) }}
{% endmaterialization %}

{#
  The rows of a model whose table is there already, deleted and inserted in one transaction with its hooks. Whether the
  columns still fit is one question to the catalogue. The contract was checked when the table was made, and a contract
  that changes makes a new version of the model, which builds the table anew.

  The rows that a model of days inserts are of days that its pre-hook has emptied, so the same keys can only be there by
  a fault of the bookkeeping; they are looked for in the span of days that is inserted, not in the whole table.
#}
{% materialization incremental, adapter='duckdb' %}
    {%- set existing = load_cached_relation(this) -%}
    {%- if existing is none or not existing.is_table or should_full_refresh() -%}
        {{ return(dbt.materialization_incremental_duckdb()) }}
    {%- endif -%}
    {%- if config.get('incremental_strategy') != 'delete+insert' or config.get('on_schema_change') != 'fail' -%}
        {%- do exceptions.raise_compiler_error(
            "An incremental model has incremental_strategy='delete+insert' and on_schema_change='fail'."
        ) -%}
    {%- endif -%}
    {%- set target = this.incorporate(type='table') -%}
    {%- set unique_key = config.get('unique_key') or [] -%}
    {%- set keys = [unique_key] if unique_key is string else unique_key -%}
    {%- set is_of_days = computes_days(model) -%}
    {%- set staging = duckdb__dispatch_temporary_relation(target, adapter.batch_id_for_model(model)) -%}
    {%- set staged = staging.relation -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}
    {% call statement('staged') -%}
        create {{ 'temporary' if staging.temporary }} table
        {{ staged.include(database=not staging.temporary, schema=not staging.temporary) }} as (
            {{ compiled_code }}
        )
    {%- endcall %}
    {%- set found = run_query(
        "select (" ~ columns_sql(staged) ~ "), (" ~ columns_sql(target) ~ ")"
        ~ (", min(reading_date), max(reading_date) from " ~ staged if is_of_days else "")
    ).rows[0] -%}
    {%- if found[0] != found[1] -%}
        {%- do exceptions.raise_compiler_error(
            "The columns of " ~ target ~ " are (" ~ found[1] ~ "), those of the model are (" ~ found[0] ~ ")."
            ~ " A full refresh builds the table anew."
        ) -%}
    {%- endif -%}
    {% call statement('main') -%}
        {% if keys -%}
            delete from {{ target }}
            where ({{ keys | join(', ') }}) in (select ({{ keys | join(', ') }}) from {{ staged }})
            {%- if is_of_days and found[2] is not none %}
                and reading_date between date '{{ found[2] }}' and date '{{ found[3] }}'
            {%- endif -%}
            ;
        {%- endif %}
        insert into {{ target }} by name select * from {{ staged }}
    {%- endcall %}
    {% if not are_docs_persisted(target, model) %}
        {% do persist_docs(target, model) %}
    {% endif %}
    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {% do adapter.commit() %}
    {% if not staging.temporary %}
        {% do adapter.drop_relation(staged) %}
    {% endif %}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': [target]}) }}
{% endmaterialization %}

{# Names and types of a table's columns, in one text. #}
{% macro columns_sql(relation) -%}
    select string_agg(name || ' ' || type, ', ' order by name) from pragma_table_info('{{ relation | replace("'", "''") }}')
{%- endmacro %}

{# Whether the catalogue holds the descriptions of a model and of its columns as they are now, and no others. #}
{% macro are_docs_persisted(relation, model) -%}
    {%- set descriptions = [model.description] -%}
    {%- for name in model.columns | sort(case_sensitive=true) -%}
        {%- do descriptions.append(name ~ ' ' ~ model.columns[name].description) -%}
    {%- endfor -%}
    {%- set found = run_query(
        "select (select comment from duckdb_tables() where " ~ named(relation) ~ ") || chr(10)"
        ~ " || string_agg(column_name || ' ' || comment, chr(10) order by column_name)"
        ~ " from duckdb_columns() where " ~ named(relation)
    ).rows[0][0] -%}
    {{ return(found == descriptions | join('\n')) }}
{%- endmacro %}

{% macro named(relation) -%}
    database_name = '{{ relation.database }}' and schema_name = '{{ relation.schema }}' and table_name = '{{ relation.identifier }}'
{%- endmacro %}

{# dbt has compared the columns with the table's when it comes here: dbt-duckdb's macro would ask for them again. #}
{% macro duckdb__alter_column_comment(relation, column_dict) -%}
    {% for name, column in column_dict.items() %}
    comment on column {{ relation }}.{{ adapter.quote(name) if column.quote else name }}
        is {{ duckdb_escape_comment(column.description) }};
    {% endfor %}
{%- endmacro %}
