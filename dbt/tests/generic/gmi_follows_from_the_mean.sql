{% test gmi_follows_from_the_mean(model) %}
-- Bergenstal et al., Diabetes Care 2018.
select
    avg_glucose_mg_dl,
    estimated_a1c_pct
from {{ model }}
where estimated_a1c_pct is null or abs(estimated_a1c_pct - (3.31 + 0.02392 * avg_glucose_mg_dl)) > 0.000001
{% endtest %}
