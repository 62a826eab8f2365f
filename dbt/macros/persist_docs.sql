{#
  Replaces dbt's macro of this name: the descriptions of a table and of its columns by one statement. dbt's own takes
  four, since it looks twice which columns there are, and every build of every model writes descriptions. A column that
  is described and is not there is an error, where dbt warns: one of the two is out of date.
#}
{% macro default__persist_docs(relation, model, for_relation, for_columns) -%}
    {%- set comments = [] -%}
    {%- if for_relation and config.persist_relation_docs() and model.description -%}
        {%- do comments.append("comment on " ~ relation.type ~ " " ~ relation ~ " is " ~ quoted_text(model.description)) -%}
    {%- endif -%}
    {%- if for_columns and config.persist_column_docs() -%}
        {%- for column in model.columns.values() -%}
            {%- set name = adapter.quote(column.name) if column.quote else column.name -%}
            {%- do comments.append("comment on column " ~ relation ~ "." ~ name ~ " is " ~ quoted_text(column.description)) -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if comments -%}
        {%- call statement('persist_docs') -%}
            {{ comments | join(';\n') }}
        {%- endcall -%}
    {%- endif -%}
{%- endmacro %}

{# A text as both engines read it, whatever is in it. #}
{% macro quoted_text(text) -%}
    '{{ text | replace("'", "''") }}'
{%- endmacro %}
