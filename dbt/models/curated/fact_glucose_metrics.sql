{{
    config(
        materialized='incremental',
        unique_key=['site', 'period', 'period_end_date', 'day_part', 'readings_used', 'metric'],
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_sites() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with periods as (
    select
        *,
        reading_count as readings,
        expected_reading_count as readings_expected,
        coverage_pct as coverage
    from {{ ref('int_glucose_period_figures') }}
    where
        period <> '14d_before'
        {% if is_incremental() %}
            and {{ is_recomputed_site(this.name) }}
        {% endif %}
),

-- A figure that is not defined, such as the SD of one reading, gets no row.
tidy as (
    unpivot periods
    on columns(
        * exclude (
            site, period, period_start_date, period_end_date, day_part, readings_used, days_covered,
            expected_in_full, tir_ci_low, tir_ci_high, gmi_ci_low, gmi_ci_high, gri_ci_low, gri_ci_high,
            readings, readings_expected, coverage
        )
    )
    into name metric value value
),

units as (
    select
        *,
        case
            when metric in ('reading_count', 'expected_reading_count') then 'readings'
            when metric = 'mag_mg_dl_per_hour' then 'mg/dL/h'
            when metric = 'gri_zone' then 'zone, 1 (A) to 5 (E)'
            when metric in ('gri', 'lbgi', 'hbgi', 'adrr', 'j_index') then 'index'
            when metric in ('gri_hypo_component', 'gri_hyper_component') or suffix(metric, '_pct') then '%'
            when suffix(metric, '_mmol_mol') then 'mmol/mol'
            when suffix(metric, '_mg_dl') then 'mg/dL'
            when suffix(metric, '_minutes') then 'minutes a day'
        end as unit
    from tidy
),

-- Battelino 2019, adults with type 1 or 2 diabetes; of whole days only.
targets (metric, target, bound, is_upper_bound, is_bound_met) as (
    values
    ('time_very_low_pct', '< 1', 1, true, false),
    ('time_below_range_pct', '< 4', 4, true, false),
    ('time_in_range_pct', '> 70', 70, false, false),
    ('time_above_range_pct', '< 25', 25, true, false),
    ('time_very_high_pct', '< 5', 5, true, false),
    ('cv_pct', '≤ 36', 36, true, true)
)

select
    units.site,
    units.period,
    units.period_start_date,
    units.period_end_date,
    units.day_part,
    units.readings_used,
    units.metric,
    units.value,
    units.unit,
    cast(units.readings as bigint) as reading_count,
    cast(units.readings_expected as bigint) as expected_reading_count,
    cast(units.coverage as double) as coverage_pct,
    units.coverage >= 70 and units.days_covered >= 14 as is_sufficient,
    case units.metric
        when 'time_in_range_pct' then units.tir_ci_low
        when 'gmi_pct' then units.gmi_ci_low
        when 'gmi_mmol_mol' then 12.71 + 4.70587 * (units.gmi_ci_low - 3.31) / 0.02392 / 18.01559
        when 'gri' then units.gri_ci_low
    end as ci_low,
    case units.metric
        when 'time_in_range_pct' then units.tir_ci_high
        when 'gmi_pct' then units.gmi_ci_high
        when 'gmi_mmol_mol' then 12.71 + 4.70587 * (units.gmi_ci_high - 3.31) / 0.02392 / 18.01559
        when 'gri' then units.gri_ci_high
    end as ci_high,
    targets.target,
    case
        when targets.is_bound_met and units.value = targets.bound then true
        when targets.is_upper_bound then units.value < targets.bound
        else units.value > targets.bound
    end as is_target_met
from units
left join targets
    on units.metric = targets.metric and units.day_part = 'whole'
