{% test one_row_per(model, columns) %}
-- A key of which a part is not known is no key.
select {{ columns | join(", ") }}
from {{ model }}
group by {{ columns | join(", ") }}
having count(*) > 1 or {{ columns | join(" is null or ") }} is null
{% endtest %}
