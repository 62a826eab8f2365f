{{ config(indexes=[{'columns': ['site', 'device', 'session_start'], 'unique': true}]) }}

select
    sessions.site,
    sessions.device,
    sessions.session_start,
    timezone(sites.timezone, sessions.session_start) as session_start_local,
    sessions.session_end,
    timezone(sites.timezone, sessions.session_end) as session_end_local,
    sessions.start_basis,
    sessions.is_newest,
    sessions.duration_days,
    sessions.sensor_interval_minutes,
    sessions.reading_count,
    sessions.expected_reading_count,
    sessions.coverage_pct,
    sessions.gap_count,
    sessions.longest_gap_minutes,
    sessions.near_duplicate_count,
    sessions.exact_duplicate_count,
    sessions.warm_up_reading_count,
    sessions.calibration_count,
    sessions.finger_stick_count,
    sessions.finger_stick_pair_count,
    sessions.mard_pct,
    sessions.bias_mg_dl,
    sessions.within_15_15_pct,
    sessions.within_20_20_pct
from {{ source('published', 'dim_sensor_session') }} as sessions
inner join {{ source('published', 'dim_site') }} as sites on sessions.site = sites.site
