{% test percentages_add_up(model) %}
-- The five ranges cover every reading once.
with shares as (
    select
        time_very_low_pct + time_low_pct + time_in_range_pct + time_high_pct + time_very_high_pct as total_pct
    from {{ model }}
)

select total_pct from shares
where total_pct is null or abs(total_pct - 100) > 0.000001
{% endtest %}
