{# Words of the descriptions in fact_glucose_patterns. #}

{% macro weekday_name(day_of_week) -%}
    (['Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday'])[{{ day_of_week }}]
{%- endmacro %}

{# Hours from 24 on belong to the next day. #}
{% macro clock_window(start_hour, end_hour, between='-') -%}
    printf('%02d:00{{ between }}%02d:00', ({{ start_hour }}) % 24, ({{ end_hour }} - 1) % 24 + 1)
{%- endmacro %}

{# Both units: who reads it may know only one of them. #}
{% macro glucose_text(mg_dl) -%}
    printf('%.0f mg/dL (%.1f mmol/L)', {{ mg_dl }}, {{ mg_dl }} / 18.01559)
{%- endmacro %}
