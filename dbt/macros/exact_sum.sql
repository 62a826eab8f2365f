{# The sum of doubles in fixed point, to 1e-12: the same to the last bit in whatever order, and without sorting for it. #}
{% macro exact_sum(expression) -%}
    cast(sum(cast({{ expression }} as decimal(38, 12))) as double)
{%- endmacro %}
