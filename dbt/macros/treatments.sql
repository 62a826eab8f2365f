{# Limits beyond which an amount is taken for a mistake; the docs name them (docs/guide/08-treatments.md). #}
{% macro plausible(expression, lowest, highest) -%}
    case when {{ expression }} between {{ lowest }} and {{ highest }} then {{ expression }} end
{%- endmacro %}

{# Hours between two timestamps, of real time: a clock change does not lengthen them. #}
{% macro hours_between(starts_at, ends_at) -%}
    ((epoch_us({{ ends_at }}) - epoch_us({{ starts_at }})) / 3600000000.0)
{%- endmacro %}
