{{ config(materialized='view') }}

{% set percentiles = ['p5', 'p10', 'p25', 'median', 'p75', 'p90', 'p95'] %}
{% set ranges = [
    'very_low', 'low', 'in_range', 'high', 'very_high', 'below_range', 'above_range', 'in_tight_range'
] %}

with sums as (
    select * from {{ ref('int_glucose_period_sums') }}
),

shares as (
    select
        *,
        least(100, 100 * reading_count / expected_readings) as coverage_pct,
        100 * very_low_count / reading_count as time_very_low_pct,
        100 * low_count / reading_count as time_low_pct,
        100 * in_range_count / reading_count as time_in_range_pct,
        100 * high_count / reading_count as time_high_pct,
        100 * very_high_count / reading_count as time_very_high_pct,
        100 * (very_low_count + low_count) / reading_count as time_below_range_pct,
        100 * (high_count + very_high_count) / reading_count as time_above_range_pct,
        100 * tight_range_count / reading_count as time_in_tight_range_pct
    from sums
),

with_gri as (
    select
        *,
        -- `least` alone would make a 100 of nothing.
        case
            when reading_count > 0
                then least(
                    100,
                    3.0 * time_very_low_pct + 2.4 * time_low_pct + 1.6 * time_very_high_pct + 0.8 * time_high_pct
                )
        end as gri
    from shares
)

select
    site,
    period,
    period_start_date,
    period_end_date,
    day_part,
    readings_used,
    days_covered,
    expected_in_full,
    struct_extract(intervals, 'tir_low') as tir_ci_low,
    struct_extract(intervals, 'tir_high') as tir_ci_high,
    struct_extract(intervals, 'gmi_low') as gmi_ci_low,
    struct_extract(intervals, 'gmi_high') as gmi_ci_high,
    struct_extract(intervals, 'gri_low') as gri_ci_low,
    struct_extract(intervals, 'gri_high') as gri_ci_high,
    cast(reading_count as double) as reading_count,
    cast(round(expected_readings) as double) as expected_reading_count,
    cast(coverage_pct as double) as coverage_pct,
    mean_mg_dl,
    sd_mg_dl,
    100 * sd_mg_dl / mean_mg_dl as cv_pct,
    min_mg_dl,
    max_mg_dl,
    {% for percentile in percentiles %}
        percentiles_mg_dl[{{ loop.index }}] as {{ percentile }}_mg_dl,
    {% endfor %}
    percentiles_mg_dl[5] - percentiles_mg_dl[3] as iqr_mg_dl,
    {% for range in ranges %}
        cast(time_{{ range }}_pct as double) as time_{{ range }}_pct,
        cast(time_{{ range }}_pct / 100 * minutes_a_day as double) as time_{{ range }}_minutes,
    {% endfor %}
    3.31 + 0.02392 * mean_mg_dl as gmi_pct,
    12.71 + 4.70587 * mean_mg_dl / 18.01559 as gmi_mmol_mol,
    (mean_mg_dl + 46.7) / 28.7 as estimated_a1c_adag_pct,
    cast(gri as double) as gri,
    cast(time_very_low_pct + 0.8 * time_low_pct as double) as gri_hypo_component,
    cast(time_very_high_pct + 0.5 * time_high_pct as double) as gri_hyper_component,
    cast(case when gri is not null then greatest(1, ceil(gri / 20)) end as double) as gri_zone,
    lbgi,
    hbgi,
    adrr,
    0.001 * pow(mean_mg_dl + sd_mg_dl, 2) as j_index,
    mage_mg_dl,
    case when pair_24h_count >= 2 then absolute_difference_24h_sum / pair_24h_count end as modd_mg_dl,
    {% for lag in ['1h', '2h', '4h', '24h'] %}
        case
            when pair_{{ lag }}_count >= 2
                then sqrt(
                    {{ squared_deviations(
                        'difference_square_' ~ lag ~ '_sum', 'difference_' ~ lag ~ '_sum', 'pair_' ~ lag ~ '_count'
                    ) }} / (pair_{{ lag }}_count - 1)
                )
        end as conga_{{ lag }}_mg_dl,
    {% endfor %}
    60 * absolute_step_sum / step_minutes_sum as mag_mg_dl_per_hour,
    100 * excess_length_sum / step_minutes_sum as gvp_pct,
    sd_within_day_mg_dl,
    sd_between_day_mg_dl
from with_gri
