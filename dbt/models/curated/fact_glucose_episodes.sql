{{
    config(
        materialized='incremental',
        unique_key='episode_id',
        incremental_strategy='delete+insert',
        on_schema_change='fail',
        pre_hook="{{ delete_recomputed_episodes() }}",
        post_hook="{{ move_watermark() }}",
    )
}}

with facts as (
    select facts.*
    from {{ ref('fact_glucose_readings') }} as facts
    {% if is_incremental() %}
        inner join {{ recomputed_windows(this.name, ref('fact_glucose_readings')) }} as recomputed
            on
                facts.site = recomputed.site
                and facts.reading_timestamp >= recomputed.window_start
                and facts.reading_timestamp <= recomputed.window_end
    {% endif %}
),

with_neighbours as (
    select
        *,
        date_diff('millisecond', lag(reading_timestamp) over in_order, reading_timestamp)
        / 60000.0 as minutes_before,
        date_diff('millisecond', reading_timestamp, lead(reading_timestamp) over in_order) / 60000.0 as minutes_after,
        lead(glucose_mg_dl) over in_order as next_glucose_mg_dl
    from facts
    window in_order as (
        partition by site
        order by reading_timestamp, entry_id
    )
),

-- After more than 45 minutes without a reading nothing is known of what went on.
readings as (
    select
        *,
        coalesce(minutes_before > 45, true) as is_after_gap,
        sum(cast(coalesce(minutes_before > 45, true) as integer)) over (
            partition by site
            order by reading_timestamp, entry_id
        ) as segment
    from with_neighbours
),

levels as (
    select
        bounds.kind,
        bounds.level,
        bounds.bound_mg_dl,
        bounds.sign
    from (
        values
        ('hypoglycemia', 1, 70.0, -1),
        ('hypoglycemia', 2, 54.0, -1),
        ('hyperglycemia', 1, 180.0, 1),
        ('hyperglycemia', 2, 250.0, 1)
    ) as bounds (kind, level, bound_mg_dl, sign)
),

-- Back is what ends an episode: in range also for level 2, not just on the other side of its bound.
judged as (
    select
        readings.*,
        levels.kind,
        levels.level,
        greatest(levels.sign * (readings.glucose_mg_dl - levels.bound_mg_dl), 0) as beyond_mg_dl,
        greatest(levels.sign * (readings.next_glucose_mg_dl - levels.bound_mg_dl), 0) as next_beyond_mg_dl,
        case
            when levels.sign * (readings.glucose_mg_dl - levels.bound_mg_dl) > 0 then 'beyond'
            when levels.kind = 'hypoglycemia' and readings.glucose_mg_dl < 70 then 'between'
            when levels.kind = 'hyperglycemia' and readings.glucose_mg_dl > 180 then 'between'
            else 'back'
        end as side
    from readings
    cross join levels
),

with_previous_side as (
    select
        *,
        lag(side) over (
            partition by site, kind, level
            order by reading_timestamp, entry_id
        ) as previous_side
    from judged
),

in_runs as (
    select
        *,
        sum(cast(is_after_gap or side <> previous_side as integer)) over (
            partition by site, kind, level
            order by reading_timestamp, entry_id
        ) as run
    from with_previous_side
),

runs as (
    select
        site,
        kind,
        level,
        run,
        segment,
        side,
        min(reading_timestamp) as first_timestamp,
        max(reading_timestamp) as last_timestamp,
        date_diff('millisecond', min(reading_timestamp), max(reading_timestamp)) / 60000.0 as span_minutes,
        min({{ span_of_minutes(15, 'sensor_interval_minutes') }}) as quarter_hour_minutes,
        min({{ span_of_minutes(120, 'sensor_interval_minutes') }}) as two_hours_minutes
    from in_runs
    group by site, kind, level, run, segment, side
),

with_mark as (
    select
        *,
        case
            when span_minutes >= quarter_hour_minutes and side = 'beyond' then 'starts'
            when span_minutes >= quarter_hour_minutes and side = 'back' then 'ends'
        end as mark
    from runs
),

with_state as (
    select
        *,
        last_value(mark ignore nulls) over (
            partition by site, kind, level, segment
            order by run
            rows between unbounded preceding and current row
        ) as state
    from with_mark
),

with_previous_state as (
    select
        *,
        lag(state) over (
            partition by site, kind, level, segment
            order by run
        ) as previous_state,
        lead(first_timestamp) over (
            partition by site, kind, level, segment
            order by run
        ) as next_run_timestamp
    from with_state
),

episode_runs as (
    select
        *,
        sum(cast(previous_state is distinct from 'starts' as integer)) over (
            partition by site, kind, level
            order by run
        ) as episode
    from with_previous_state
    where state = 'starts'
),

episodes as (
    select
        site,
        kind,
        level,
        episode,
        segment,
        min(first_timestamp) as start_timestamp,
        max(last_timestamp) as last_reading_timestamp,
        -- The run after the last one of an episode is the quarter of an hour that ends it.
        arg_max(next_run_timestamp, run) filter (next_run_timestamp is not null) as next_run_timestamp,
        bool_or(next_run_timestamp is null) as is_unfinished
    from episode_runs
    group by site, kind, level, episode, segment
),

flags as (
    select
        entry_id,
        bool_or(flag = 'compression_low_suspect') as is_suspect,
        bool_or(flag = 'sensor_warm_up') as is_warm_up
    from {{ ref('int_reading_flags') }}
    group by entry_id
),

contents as (
    select
        episode_runs.site,
        episode_runs.kind,
        episode_runs.level,
        episode_runs.episode,
        count(*) as reading_count,
        arg_min(in_runs.reading_local_timestamp, in_runs.reading_timestamp) as start_local_timestamp,
        arg_min(in_runs.reading_date, in_runs.reading_timestamp) as start_date,
        arg_min(in_runs.hour_of_day, in_runs.reading_timestamp) as start_hour,
        arg_min(in_runs.is_after_gap, in_runs.reading_timestamp) as is_cut_at_start,
        arg_max(in_runs.sensor_interval_minutes, in_runs.reading_timestamp) as last_interval_minutes,
        min(in_runs.glucose_mg_dl) as lowest_mg_dl,
        max(in_runs.glucose_mg_dl) as highest_mg_dl,
        arg_min(in_runs.reading_timestamp, (in_runs.glucose_mg_dl, in_runs.reading_timestamp)) as lowest_timestamp,
        arg_min(in_runs.reading_timestamp, (-in_runs.glucose_mg_dl, in_runs.reading_timestamp)) as highest_timestamp,
        -- Between two readings a straight line; nothing is added where the next one is missing.
        coalesce(
            sum(
                (in_runs.beyond_mg_dl + in_runs.next_beyond_mg_dl) / 2 * in_runs.minutes_after
                order by in_runs.reading_timestamp, in_runs.entry_id
            ) filter (in_runs.minutes_after <= 45),
            0
        ) as area_mg_dl_minutes,
        bool_or(
            in_runs.minutes_after <= 45 and in_runs.minutes_after > 2 * in_runs.sensor_interval_minutes
        ) as has_hole,
        bool_or(coalesce(flags.is_suspect, false)) as has_suspect_readings,
        bool_or(coalesce(flags.is_warm_up, false)) as has_warm_up_readings
    from episode_runs
    inner join in_runs
        on
            episode_runs.site = in_runs.site
            and episode_runs.kind = in_runs.kind
            and episode_runs.level = in_runs.level
            and episode_runs.run = in_runs.run
    left join flags on in_runs.entry_id = flags.entry_id
    group by episode_runs.site, episode_runs.kind, episode_runs.level, episode_runs.episode
),

long_runs as (
    select * from runs
    where side = 'beyond' and span_minutes >= two_hours_minutes
),

-- By both rules in use: two hours on end beyond the bound of level 1, and beyond that of level 2.
prolonged as (
    select
        episodes.site,
        episodes.kind,
        episodes.level,
        episodes.episode,
        bool_or(long_runs.level = 1) as is_prolonged_level_1,
        bool_or(long_runs.level = 2) as is_prolonged_level_2
    from episodes
    inner join long_runs
        on
            episodes.site = long_runs.site
            and episodes.kind = long_runs.kind
            and episodes.last_reading_timestamp >= long_runs.first_timestamp
            and episodes.start_timestamp <= long_runs.last_timestamp
    group by episodes.site, episodes.kind, episodes.level, episodes.episode
),

newest as (
    select
        site,
        max(segment) as segment
    from readings
    group by site
),

joined as (
    select
        contents.*,
        episodes.start_timestamp,
        episodes.last_reading_timestamp,
        case when not episodes.is_unfinished then episodes.next_run_timestamp end as recovered_timestamp,
        episodes.is_unfinished and episodes.segment = newest.segment as is_open,
        episodes.is_unfinished and episodes.segment <> newest.segment as is_cut_at_end,
        case contents.kind when 'hypoglycemia' then contents.lowest_mg_dl else contents.highest_mg_dl end
            as extreme_mg_dl,
        case contents.kind when 'hypoglycemia' then contents.lowest_timestamp else contents.highest_timestamp end
            as extreme_timestamp,
        coalesce(prolonged.is_prolonged_level_1, false) as is_prolonged_level_1,
        coalesce(prolonged.is_prolonged_level_2, false) as is_prolonged_level_2
    from contents
    inner join episodes
        on
            contents.site = episodes.site
            and contents.kind = episodes.kind
            and contents.level = episodes.level
            and contents.episode = episodes.episode
    inner join newest on contents.site = newest.site
    left join prolonged
        on
            contents.site = prolonged.site
            and contents.kind = prolonged.kind
            and contents.level = prolonged.level
            and contents.episode = prolonged.episode
),

-- Each reading stands for its interval, the last one too.
with_end as (
    select
        *,
        last_reading_timestamp
        + to_milliseconds(cast(last_interval_minutes * 60000 as bigint)) as known_until_timestamp
    from joined
)

select
    site || '/' || kind || '/' || level || '/' || epoch_ms(start_timestamp) as episode_id,
    site,
    kind,
    level,
    start_timestamp,
    start_local_timestamp,
    start_date,
    case when is_cut_at_end then known_until_timestamp else recovered_timestamp end as end_timestamp,
    last_reading_timestamp,
    cast(
        date_diff('millisecond', start_timestamp, coalesce(recovered_timestamp, known_until_timestamp))
        / 60000.0 as double
    ) as duration_minutes,
    extreme_mg_dl,
    extreme_timestamp,
    cast(area_mg_dl_minutes as double) as area_mg_dl_minutes,
    cast(date_diff('millisecond', extreme_timestamp, recovered_timestamp) / 60000.0 as double)
        as time_to_recovery_minutes,
    reading_count,
    is_open,
    is_cut_at_start,
    is_cut_at_end,
    is_cut_at_start or is_cut_at_end or coalesce(has_hole, false) as has_gap,
    case when kind = 'hypoglycemia' then is_prolonged_level_2 end as is_prolonged_below_54,
    case when kind = 'hypoglycemia' then is_prolonged_level_1 end as is_prolonged_below_70,
    case when kind = 'hyperglycemia' then is_prolonged_level_1 end as is_prolonged_above_180,
    case when kind = 'hyperglycemia' then is_prolonged_level_2 end as is_prolonged_above_250,
    start_hour < 6 as is_nocturnal,
    has_suspect_readings,
    has_warm_up_readings
from with_end
