{{
    config(
        materialized='incremental',
        unique_key=['site', 'device', 'session_start'],
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_sites() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with enriched as (
    select * from {{ ref('int_glucose_enriched') }}
    {% if is_incremental() %}
        where {{ is_recomputed_site(this.name) }}
    {% endif %}
),

streams as (
    select
        *,
        date_diff(
            'millisecond',
            lag(reading_timestamp) over (
                partition by site, device
                order by reading_timestamp, entry_id
            ),
            reading_timestamp
        ) / 60000.0 as silence_minutes
    from enriched
),

site_starts as (
    select * from {{ ref('int_sensor_starts') }}
),

-- Where each stream goes on after a start that is known of the site: a second uploader does so some seconds later.
known_starts as (
    select
        streams.site,
        streams.device,
        site_starts.start_timestamp,
        min(streams.reading_timestamp) as first_reading_timestamp,
        any_value(coalesce(site_starts.basis, 'first_reading')) as basis
    from streams
    asof left join site_starts
        on streams.site = site_starts.site and streams.reading_timestamp >= site_starts.start_timestamp
    group by streams.site, streams.device, site_starts.start_timestamp
),

-- A silence as long as a warm-up, and no start that is known soon after it.
silences as (
    select
        streams.site,
        streams.device,
        streams.reading_timestamp as first_reading_timestamp
    from streams
    asof left join site_starts
        on streams.site = site_starts.site and streams.reading_timestamp <= site_starts.start_timestamp
    where
        streams.silence_minutes >= 60
        and (
            site_starts.start_timestamp is null
            or site_starts.start_timestamp > streams.reading_timestamp + interval 5 days
        )
),

events as (
    select
        site,
        device,
        first_reading_timestamp,
        basis
    from known_starts
    union all
    select
        site,
        device,
        first_reading_timestamp,
        'silence' as basis
    from silences
),

-- From start to start: the next one that is known, or a silence nine days on, near the end of the shortest usual life.
chains as (
    select
        site,
        device,
        list_reduce(
            list([{ 'moment': first_reading_timestamp, 'basis': basis }] order by first_reading_timestamp, basis),
            (chain, event) -> case
                when event[1].basis <> 'silence' or event[1].moment >= chain[-1].moment + interval 9 days
                    then list_concat(chain, event)
                else chain
            end
        ) as session_starts
    from events
    group by site, device
),

starts as (
    select
        site,
        device,
        unnest(session_starts) as begun
    from chains
),

sessions as (
    select
        site,
        device,
        begun.moment as first_reading_timestamp,
        begun.basis
    from starts
),

session_readings as (
    select
        streams.*,
        sessions.first_reading_timestamp,
        sessions.basis
    from streams
    asof inner join sessions
        on
            streams.site = sessions.site
            and streams.device = sessions.device
            and streams.reading_timestamp >= sessions.first_reading_timestamp
),

warm_ups as (
    select entry_id from {{ ref('int_reading_flags') }}
    where flag = 'sensor_warm_up'
),

counted as (
    select
        session_readings.site,
        session_readings.device,
        session_readings.first_reading_timestamp,
        any_value(session_readings.basis) as start_basis,
        max(session_readings.reading_timestamp) as last_reading_timestamp,
        mode(session_readings.sensor_interval_minutes order by session_readings.sensor_interval_minutes)
            as sensor_interval_minutes,
        count(*) as reading_count,
        count(*) filter (session_readings.is_near_duplicate) as near_duplicate_count,
        count(warm_ups.entry_id) as warm_up_reading_count,
        count(*) filter (
            session_readings.silence_minutes > 2 * session_readings.sensor_interval_minutes
            and session_readings.reading_timestamp > session_readings.first_reading_timestamp
        ) as gap_count,
        max(session_readings.silence_minutes) filter (
            session_readings.silence_minutes > 2 * session_readings.sensor_interval_minutes
            and session_readings.reading_timestamp > session_readings.first_reading_timestamp
        ) as longest_gap_minutes
    from session_readings
    left join warm_ups on session_readings.entry_id = warm_ups.entry_id
    group by session_readings.site, session_readings.device, session_readings.first_reading_timestamp
),

with_neighbours as (
    select
        *,
        lag(last_reading_timestamp) over of_stream as previous_timestamp,
        lead(first_reading_timestamp) over of_stream as next_timestamp
    from counted
    window of_stream as (
        partition by site, device
        order by first_reading_timestamp
    )
),

-- A sensor may be calibrated before its first reading; a meter can be compared up to five minutes beyond either end.
periods as (
    select
        *,
        next_timestamp is null as is_newest,
        greatest(
            coalesce(previous_timestamp, first_reading_timestamp - interval 1 day),
            first_reading_timestamp - interval 1 day
        ) as calibrated_after,
        case
            when previous_timestamp > first_reading_timestamp - interval 10 minutes
                then previous_timestamp + interval 1 millisecond
            else first_reading_timestamp - interval 5 minutes
        end as measured_from,
        case
            when next_timestamp < last_reading_timestamp + interval 10 minutes then last_reading_timestamp
            else last_reading_timestamp + interval 5 minutes
        end as measured_until
    from with_neighbours
),

exact_duplicates as (
    select
        periods.site,
        periods.device,
        periods.first_reading_timestamp,
        count(*) as exact_duplicate_count
    from {{ source('lake', 'nightscout_entries') }} as entries
    inner join periods
        on
            entries.site = periods.site
            and coalesce(entries.device, '') = periods.device
            and entries.reading_timestamp >= periods.first_reading_timestamp
            and entries.reading_timestamp <= periods.last_reading_timestamp
    where entries.kind = 'sgv' and entries.is_duplicate and not entries.is_deleted
    group by periods.site, periods.device, periods.first_reading_timestamp
),

calibrations as (
    select
        periods.site,
        periods.device,
        periods.first_reading_timestamp,
        count(*) as calibration_count
    from {{ ref('stg_nightscout_calibrations') }} as documents
    inner join periods
        on
            documents.site = periods.site
            and documents.device = periods.device
            and documents.calibrated_timestamp > periods.calibrated_after
            and documents.calibrated_timestamp <= periods.last_reading_timestamp
    group by periods.site, periods.device, periods.first_reading_timestamp
),

sticks as (
    select
        documents.site,
        periods.device,
        periods.first_reading_timestamp,
        documents.entry_id,
        documents.measured_timestamp,
        documents.glucose_mg_dl as stick_mg_dl
    from {{ ref('stg_nightscout_finger_sticks') }} as documents
    inner join periods
        on
            documents.site = periods.site
            and documents.measured_timestamp >= periods.measured_from
            and documents.measured_timestamp <= periods.measured_until
),

candidates as (
    select
        sticks.*,
        session_readings.glucose_mg_dl as sensor_mg_dl,
        date_diff('millisecond', session_readings.reading_timestamp, sticks.measured_timestamp) as distance_ms,
        session_readings.entry_id as reading_entry_id
    from sticks
    asof inner join session_readings
        on
            sticks.site = session_readings.site
            and sticks.device = session_readings.device
            and sticks.measured_timestamp >= session_readings.reading_timestamp
    union all
    select
        sticks.*,
        session_readings.glucose_mg_dl as sensor_mg_dl,
        date_diff('millisecond', sticks.measured_timestamp, session_readings.reading_timestamp) as distance_ms,
        session_readings.entry_id as reading_entry_id
    from sticks
    asof inner join session_readings
        on
            sticks.site = session_readings.site
            and sticks.device = session_readings.device
            and sticks.measured_timestamp <= session_readings.reading_timestamp
),

pairs as (
    select
        *,
        sensor_mg_dl - stick_mg_dl as difference_mg_dl
    from candidates
    where distance_ms <= 5 * 60000
    qualify row_number() over (
        partition by site, device, entry_id
        order by distance_ms, reading_entry_id
    ) = 1
),

stick_counts as (
    select
        site,
        device,
        first_reading_timestamp,
        count(*) as finger_stick_count
    from sticks
    group by site, device, first_reading_timestamp
),

accuracy as (
    select
        site,
        device,
        first_reading_timestamp,
        count(*) as pair_count,
        100 * avg(abs(difference_mg_dl) / stick_mg_dl order by abs(difference_mg_dl) / stick_mg_dl) as mard_pct,
        avg(difference_mg_dl order by difference_mg_dl) as bias_mg_dl,
        100.0 * count(*) filter (
            abs(difference_mg_dl) <= case when stick_mg_dl < 100 then 15 else 0.15 * stick_mg_dl end
        ) / count(*) as within_15_15_pct,
        100.0 * count(*) filter (
            abs(difference_mg_dl) <= case when stick_mg_dl < 80 then 20 else 0.2 * stick_mg_dl end
        ) / count(*) as within_20_20_pct
    from pairs
    group by site, device, first_reading_timestamp
)

select
    periods.site,
    periods.device,
    periods.first_reading_timestamp as session_start,
    periods.last_reading_timestamp as session_end,
    periods.start_basis,
    periods.is_newest,
    cast(
        date_diff('millisecond', periods.first_reading_timestamp, periods.last_reading_timestamp) / 86400000.0 as double
    ) as duration_days,
    periods.sensor_interval_minutes,
    periods.reading_count,
    cast(round(
        date_diff('millisecond', periods.first_reading_timestamp, periods.last_reading_timestamp)
        / 60000.0 / periods.sensor_interval_minutes
    ) + 1 as bigint) as expected_reading_count,
    cast(least(100, 100 * periods.reading_count / (round(
        date_diff('millisecond', periods.first_reading_timestamp, periods.last_reading_timestamp)
        / 60000.0 / periods.sensor_interval_minutes
    ) + 1)) as double) as coverage_pct,
    periods.gap_count,
    cast(periods.longest_gap_minutes as double) as longest_gap_minutes,
    periods.near_duplicate_count,
    coalesce(exact_duplicates.exact_duplicate_count, 0) as exact_duplicate_count,
    periods.warm_up_reading_count,
    coalesce(calibrations.calibration_count, 0) as calibration_count,
    coalesce(stick_counts.finger_stick_count, 0) as finger_stick_count,
    coalesce(accuracy.pair_count, 0) as finger_stick_pair_count,
    cast(case when accuracy.pair_count >= 3 then accuracy.mard_pct end as double) as mard_pct,
    cast(case when accuracy.pair_count >= 3 then accuracy.bias_mg_dl end as double) as bias_mg_dl,
    cast(case when accuracy.pair_count >= 3 then accuracy.within_15_15_pct end as double) as within_15_15_pct,
    cast(case when accuracy.pair_count >= 3 then accuracy.within_20_20_pct end as double) as within_20_20_pct
from periods
left join exact_duplicates
    on
        periods.site = exact_duplicates.site
        and periods.device = exact_duplicates.device
        and periods.first_reading_timestamp = exact_duplicates.first_reading_timestamp
left join calibrations
    on
        periods.site = calibrations.site
        and periods.device = calibrations.device
        and periods.first_reading_timestamp = calibrations.first_reading_timestamp
left join stick_counts
    on
        periods.site = stick_counts.site
        and periods.device = stick_counts.device
        and periods.first_reading_timestamp = stick_counts.first_reading_timestamp
left join accuracy
    on
        periods.site = accuracy.site
        and periods.device = accuracy.device
        and periods.first_reading_timestamp = accuracy.first_reading_timestamp
