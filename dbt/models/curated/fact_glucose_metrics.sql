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

{% set ranges = [
    'very_low', 'low', 'in_range', 'high', 'very_high', 'below_range', 'above_range', 'in_tight_range'
] %}
{% set percentiles = ['p5', 'p10', 'p25', 'median', 'p75', 'p90', 'p95'] %}

with periods as (
    select * from {{ ref('int_glucose_period_figures') }}
    {% if is_incremental() %}
        where {{ is_recomputed_site(this.name) }}
    {% endif %}
),

shares as (
    select
        *,
        100 * reading_count / expected_readings as readings_of_expected_pct,
        100 * very_low_count / reading_count as time_very_low_pct,
        100 * low_count / reading_count as time_low_pct,
        100 * in_range_count / reading_count as time_in_range_pct,
        100 * high_count / reading_count as time_high_pct,
        100 * very_high_count / reading_count as time_very_high_pct,
        100 * (very_low_count + low_count) / reading_count as time_below_range_pct,
        100 * (high_count + very_high_count) / reading_count as time_above_range_pct,
        100 * tight_range_count / reading_count as time_in_tight_range_pct
    from periods
),

indices as (
    select
        *,
        least(100, readings_of_expected_pct) as coverage_pct,
        100 * sd_mg_dl / mean_mg_dl as cv_pct,
        3.31 + 0.02392 * mean_mg_dl as gmi_pct,
        12.71 + 4.70587 * mean_mg_dl / 18.01559 as gmi_mmol_mol,
        (mean_mg_dl + 46.7) / 28.7 as estimated_a1c_adag_pct,
        time_very_low_pct + 0.8 * time_low_pct as gri_hypo_component,
        time_very_high_pct + 0.5 * time_high_pct as gri_hyper_component,
        least(
            100,
            3.0 * time_very_low_pct + 2.4 * time_low_pct + 1.6 * time_very_high_pct + 0.8 * time_high_pct
        ) as gri,
        0.001 * pow(mean_mg_dl + sd_mg_dl, 2) as j_index,
        case when pair_24h_count >= 2 then absolute_difference_24h_sum / pair_24h_count end as modd_mg_dl,
        {% for lag in ['1h', '2h', '4h', '24h'] %}
            case
                when pair_{{ lag }}_count >= 2
                    then sqrt(
                        greatest(
                            0,
                            difference_square_{{ lag }}_sum - pow(difference_{{ lag }}_sum, 2) / pair_{{ lag }}_count
                        ) / (pair_{{ lag }}_count - 1)
                    )
            end as conga_{{ lag }}_mg_dl,
        {% endfor %}
        60 * absolute_step_sum / step_minutes_sum as mag_mg_dl_per_hour,
        100 * excess_length_sum / step_minutes_sum as gvp_pct
    from shares
),

figures as (
    select
        site,
        period,
        period_start_date,
        period_end_date,
        day_part,
        readings_used,
        reading_count as readings,
        round(expected_readings) as readings_expected,
        coverage_pct as coverage,
        days_covered,
        intervals,
        cast(reading_count as double) as reading_count,
        cast(round(expected_readings) as double) as expected_reading_count,
        cast(coverage_pct as double) as coverage_pct,
        {% for column in [
            'mean_mg_dl', 'sd_mg_dl', 'cv_pct', 'min_mg_dl', 'max_mg_dl', 'gmi_pct', 'gmi_mmol_mol',
            'estimated_a1c_adag_pct', 'gri', 'gri_hypo_component', 'gri_hyper_component', 'lbgi', 'hbgi', 'adrr',
            'j_index', 'mage_mg_dl', 'modd_mg_dl', 'conga_1h_mg_dl', 'conga_2h_mg_dl', 'conga_4h_mg_dl',
            'conga_24h_mg_dl', 'mag_mg_dl_per_hour', 'gvp_pct', 'sd_within_day_mg_dl', 'sd_between_day_mg_dl'
        ] %}
            cast({{ column }} as double) as {{ column }},
        {% endfor %}
        {% for percentile in percentiles %}
            percentiles_mg_dl[{{ loop.index }}] as {{ percentile }}_mg_dl,
        {% endfor %}
        percentiles_mg_dl[5] - percentiles_mg_dl[3] as iqr_mg_dl,
        {% for range in ranges %}
            cast(time_{{ range }}_pct as double) as time_{{ range }}_pct,
            cast(time_{{ range }}_pct / 100 * minutes_a_day as double) as time_{{ range }}_minutes,
        {% endfor %}
        cast(greatest(1, ceil(gri / 20)) as double) as gri_zone
    from indices
),

-- A figure that is not defined, such as the SD of one reading, gets no row.
tidy as (
    unpivot figures
    on columns(
        * exclude (
            site, period, period_start_date, period_end_date, day_part, readings_used, readings, readings_expected,
            coverage, days_covered, intervals
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
    ('time_very_low_pct', '< 1 %', 1, true, false),
    ('time_below_range_pct', '< 4 %', 4, true, false),
    ('time_in_range_pct', '> 70 %', 70, false, false),
    ('time_above_range_pct', '< 25 %', 25, true, false),
    ('time_very_high_pct', '< 5 %', 5, true, false),
    ('cv_pct', '≤ 36 %', 36, true, true)
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
        when 'time_in_range_pct' then units.intervals.tir_low
        when 'gmi_pct' then units.intervals.gmi_low
        when 'gri' then units.intervals.gri_low
    end as ci_low,
    case units.metric
        when 'time_in_range_pct' then units.intervals.tir_high
        when 'gmi_pct' then units.intervals.gmi_high
        when 'gri' then units.intervals.gri_high
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
