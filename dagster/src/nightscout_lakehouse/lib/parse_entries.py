"""The SQL that types the entries of batch files, and says why one is refused."""

from collections.abc import Sequence

from nightscout_lakehouse.lib.document_sql import (
    EARLIEST,
    UNIDENTIFIED,
    epoch_ms,
    text,
    text_time,
)
from nightscout_lakehouse.lib.lake import sql_list, sql_text

LOWEST_READING_MG_DL = 20
HIGHEST_READING_MG_DL = 600
FUTURE_TOLERANCE_MINUTES = 15


def entries_sql(files: Sequence[str], site: str, timezone: str) -> str:
    """The documents of batch files, typed, each with its kind, its partition and why it is refused, if it is.

    The time of a reading is `date` (epoch milliseconds, number or text), else `mills`, else `dateString`,
    `date`, `created_at` or `sysTime` as text. Text without a zone counts by `utcOffset` (minutes), else by the
    site's zone.
    """
    zone = sql_text(timezone)
    return rf"""
    with landed as (
        select
            *,
            -- Half a surrogate pair in a text is JSON to Nightscout and an error to DuckDB.
            case when json_valid(document) then document else 'null' end as parsable,
        from read_parquet({sql_list(files)})
    ),

    documents as (
        select
            * exclude (parsable),
            json_type(parsable) = 'OBJECT' as is_object,
            json_transform(
                case when json_type(parsable) = 'OBJECT' then parsable else '{{}}' end,
                '{{"type": "VARCHAR", "date": "VARCHAR", "mills": "VARCHAR", "dateString": "VARCHAR",
                   "created_at": "VARCHAR", "sysTime": "VARCHAR", "utcOffset": "VARCHAR", "sgv": "VARCHAR",
                   "mbg": "VARCHAR", "direction": "VARCHAR", "device": "VARCHAR", "trend": "VARCHAR",
                   "noise": "VARCHAR", "filtered": "VARCHAR", "unfiltered": "VARCHAR", "rssi": "VARCHAR",
                   "slope": "VARCHAR", "intercept": "VARCHAR", "scale": "VARCHAR", "isValid": "VARCHAR"}}'
            ) as d,
            json_type(parsable, '$.date') in ('BIGINT', 'UBIGINT', 'DOUBLE', 'HUGEINT') as date_is_number
        from landed
    ),

    numbers as (
        select
            *,
            {epoch_ms("d.date")} as date_as_ms,
            {epoch_ms("d.mills")} as mills_as_ms,
            try_cast(try_cast(d."utcOffset" as double) as integer) as utc_offset_minutes,
            case
                when d.type is null and d.sgv is not null then 'sgv'
                when d.type is null and d.mbg is not null then 'mbg'
                else lower(d.type)
            end as type
        from documents
    ),

    timed as (
        select
            *,
            coalesce(
                make_timestamptz((coalesce(date_as_ms, mills_as_ms) * 1000)::bigint),
                {text_time('d."dateString"', zone)},
                {text_time("d.date", zone)},
                {text_time("d.created_at", zone)},
                {text_time('d."sysTime"', zone)}
            ) as reading_timestamp,
            trim(case type when 'sgv' then d.sgv when 'mbg' then d.mbg end) as glucose_text
        from numbers
    ),

    measured as (
        select
            *,
            case when isfinite(try_cast(glucose_text as double)) then try_cast(glucose_text as double) end as glucose
        from timed
    ),

    judged as (
        select
            *,
            case
                when operation = 'delete' then null
                when not is_object then 'not_a_json_object'
                when document_id like '{UNIDENTIFIED}%' then 'missing_id'
                when type is null or type not in ('sgv', 'mbg', 'cal') then 'unknown_type'
                when reading_timestamp is null then 'unreadable_timestamp'
                when reading_timestamp < timestamptz '{EARLIEST}' then 'timestamp_too_old'
                when reading_timestamp > fetched_at + interval {FUTURE_TOLERANCE_MINUTES} minutes
                    then 'timestamp_in_future'
                when type = 'cal' then null
                when glucose_text is null then 'missing_glucose'
                when upper(glucose_text) in ('HIGH', 'LOW', 'HI', 'LO') then 'glucose_sentinel'
                when glucose is null then 'glucose_not_a_number'
                when glucose > 0 and glucose < {LOWEST_READING_MG_DL} then 'sensor_error_code'
                when glucose <= 0 or glucose > {HIGHEST_READING_MG_DL} then 'glucose_out_of_range'
            end as quarantine_reason
        from measured
    )

    select
        operation,
        case when quarantine_reason is not null then 'quarantined' else type end as kind,
        case
            when operation = 'upsert'
                then coalesce(strftime(reading_timestamp at time zone 'UTC', '%Y-%m'), 'undated')
        end as month,
        known_month,
        {sql_text(site + "/")} || document_id as entry_id,
        document_id as nightscout_id,
        reading_timestamp,
        case when quarantine_reason is null then glucose end as glucose_mg_dl,
        {text("d.direction")} as direction,
        {text("d.device")} as device,
        try_cast(try_cast(d.trend as double) as integer) as trend,
        try_cast(try_cast(d.noise as double) as integer) as noise,
        try_cast(d.filtered as double) as filtered,
        try_cast(d.unfiltered as double) as unfiltered,
        try_cast(try_cast(d.rssi as double) as integer) as rssi,
        utc_offset_minutes,
        try_cast(d.slope as double) as slope,
        try_cast(d.intercept as double) as intercept,
        try_cast(d.scale as double) as scale,
        coalesce(lower(d."isValid") = 'false', false) as is_deleted,
        false as is_duplicate,
        quarantine_reason,
        case when quarantine_reason is not null then document end as document,
        document_hash,
        batch,
        document_number,
        fetched_at,
        fetched_at as first_fetched_at,
        case when date_is_number then date_as_ms end as date_ms
    from judged
    """
