"""The SQL that types the device status of batch files: what a loop, its pump and its phone report, every few minutes.

Loop writes `loop`, OpenAPS, AAPS and Trio write `openaps`; `pump` and `uploader` are the same for all.
"""

from collections.abc import Sequence

from nightscout_lakehouse.lib.document_sql import (
    bookkeeping_sql,
    document_time,
    filter_ms,
    landed_sql,
    mg_dl,
    offset_minutes,
    refusals_sql,
    rows_sql,
    text,
)
from nightscout_lakehouse.lib.lake import sql_text

FUTURE_TOLERANCE_MINUTES = 15

_FIELDS = ("created_at", "timestamp", "date", "mills", "utcOffset", "isValid", "device", "uploaderBattery")
_NESTED = ("openaps", "loop", "pump", "uploader")


def device_status_sql(files: Sequence[str], site: str, timezone: str) -> str:
    """The documents of batch files, typed, each with its kind, its partition and why it is refused, if it is.

    The time is `created_at`, else `date`, `mills` or `timestamp`. What was enacted is preferred to what was suggested.
    """
    time_columns = ["d.created_at", "d.date", "d.mills", "d.timestamp"]
    # What OpenAPS did stands in `enacted` only if the pump confirmed it; `suggested` is what it meant to do.
    iob = _first("d.openaps", "$.iob.iob", "$.iob[0].iob", "$.enacted.IOB", "$.suggested.IOB")
    return f"""
    {landed_sql(files, _FIELDS, _NESTED)},

    placed as (
        select
            *,
            'device_status' as kind,
            {offset_minutes('d."utcOffset"', "d.created_at")} as utc_offset_minutes
        from documents
    ),

    typed as (
        select *, {document_time(time_columns, sql_text(timezone))} as device_status_timestamp
        from placed
    ),

    judged as (
        select
            *,
            case
                {refusals_sql("device_status_timestamp", FUTURE_TOLERANCE_MINUTES)}
            end as quarantine_reason
        from typed
    )

    select
        {rows_sql(site, "device_status_id", "device_status_timestamp")},
        utc_offset_minutes,
        {text("d.device")} as device,
        case
            when json_type(d.loop) = 'OBJECT' then 'loop'
            when json_type(d.openaps) = 'OBJECT' then 'openaps'
        end as loop_system,
        coalesce({_first("d.loop", "$.iob.iob")}, {iob}, {_first("d.pump", "$.iob.iob")}) as iob_units,
        coalesce(
            {_first("d.loop", "$.iob.basaliob")}, {_first("d.openaps", "$.iob.basaliob", "$.iob[0].basaliob")}
        ) as basal_iob_units,
        coalesce({_first("d.loop", "$.cob.cob")}, {_first("d.openaps", "$.enacted.COB", "$.suggested.COB")}) as cob_g,
        {mg_dl(f"({_first('d.openaps', '$.enacted.bg', '$.suggested.bg')})", "null::varchar")} as glucose_mg_dl,
        {mg_dl(f"({_eventual()})", "null::varchar")} as eventual_glucose_mg_dl,
        {mg_dl(f"({_first('d.openaps', '$.enacted.targetBG', '$.suggested.targetBG')})", "null::varchar")}
            as target_glucose_mg_dl,
        {_first("d.openaps", "$.enacted.sensitivityRatio", "$.suggested.sensitivityRatio")} as sensitivity_ratio,
        {_first("d.loop", "$.recommendedBolus")} as loop_recommended_bolus_units,
        {_first("d.openaps", "$.enacted.insulinReq", "$.suggested.insulinReq")} as insulin_required_units,
        coalesce(
            {_first("d.loop", "$.enacted.bolusVolume", "$.automaticDoseRecommendation.bolusVolume")},
            {_first("d.openaps", "$.enacted.units", "$.enacted.smb")}
        ) as enacted_bolus_units,
        coalesce(
            {_first("d.loop", "$.enacted.rate")}, {_first("d.openaps", "$.enacted.rate")}
        ) as temp_basal_rate_units_per_hour,
        coalesce(
            {_first("d.loop", "$.enacted.duration")}, {_first("d.openaps", "$.enacted.duration")}
        ) as temp_basal_duration_minutes,
        -- OpenAPS spells it both ways. A cycle that changes nothing says nothing on it.
        case lower(coalesce(d.loop ->> '$.enacted.received', d.openaps ->> '$.enacted.received',
                            d.openaps ->> '$.enacted.recieved'))
            when 'true' then true when 'false' then false
        end as is_closed_loop,
        try_cast(coalesce(
            d.loop -> '$.predicted.values',
            d.openaps -> '$.enacted.predBGs.COB', d.openaps -> '$.suggested.predBGs.COB',
            d.openaps -> '$.enacted.predBGs.UAM', d.openaps -> '$.suggested.predBGs.UAM',
            d.openaps -> '$.enacted.predBGs.IOB', d.openaps -> '$.suggested.predBGs.IOB'
        ) as double[]) as predicted_glucose_mg_dl,
        {text("coalesce(d.loop ->> '$.failureReason', d.openaps ->> '$.failureReason')")} as failure_reason,
        {_first("d.pump", "$.reservoir")} as pump_reservoir_units,
        {_first("d.pump", "$.battery.percent")} as pump_battery_pct,
        {_first("d.pump", "$.battery.voltage")} as pump_battery_volts,
        {text("coalesce(d.pump ->> '$.status.status', d.pump ->> '$.status')")} as pump_status,
        case lower(coalesce(d.pump ->> '$.status.suspended', d.pump ->> '$.suspended'))
            when 'true' then true when 'false' then false
        end as is_pump_suspended,
        coalesce(
            {_first("d.uploader", "$.battery")}, try_cast(d."uploaderBattery" as double)
        ) as uploader_battery_pct,
        {bookkeeping_sql(keep_document=False, filter_time=filter_ms("d.created_at"))}
    from judged
    """


def _eventual() -> str:
    loop = "try_cast(d.loop ->> '$.predicted.values[#-1]' as double)"
    return f"coalesce({loop}, {_first('d.openaps', '$.enacted.eventualBG', '$.suggested.eventualBG')})"


def _first(column: str, *paths: str) -> str:
    """The first finite number that stands at one of the paths."""
    values = (f"try_cast({column} ->> '{path}' as double)" for path in paths)
    return "coalesce(" + ", ".join(f"case when isfinite({value}) then {value} end" for value in values) + ")"
