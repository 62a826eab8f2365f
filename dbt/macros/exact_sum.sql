{# The sum of doubles in fixed point, to 1e-12: the same to the last bit in whatever order, and without sorting for it. #}
{% macro exact_sum(expression) -%}
    cast(sum(cast({{ expression }} as decimal(38, 12))) as double)
{%- endmacro %}

{#
  The sum of squared deviations from the mean, from the sums of squares and of values. Of equal values it is zero, not
  what is left by the rounding of doubles and of exact_sum, whose root would be a millionth of a mg/dL.
#}
{% macro squared_deviations(square_sum, value_sum, value_count) -%}
    {%- set deviations = square_sum ~ ' - pow(' ~ value_sum ~ ', 2) / ' ~ value_count -%}
    case
        when {{ deviations }} > 1e-14 * {{ square_sum }} + 1e-12 * {{ value_count }} then {{ deviations }}
        else 0
    end
{%- endmacro %}
