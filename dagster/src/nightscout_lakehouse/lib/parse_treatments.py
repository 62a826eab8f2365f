"""The SQL that types the treatments of batch files, and says why one is refused."""

from collections.abc import Sequence

from nightscout_lakehouse.lib.document_sql import (
    any_true,
    bookkeeping_sql,
    document_time,
    filter_ms,
    is_no_number,
    landed_sql,
    mg_dl,
    number,
    offset_minutes,
    refusals_sql,
    rows_sql,
    text,
)
from nightscout_lakehouse.lib.lake import sql_text

# The carbohydrates of a pre-bolus, and those spread over hours, are written ahead of their time.
FUTURE_TOLERANCE_MINUTES = 24 * 60
# No pump or pen gives as much at once; above, it is a typing error or another unit.
HIGHEST_INSULIN_UNITS = 200
# AAPS writes negative grams where carbohydrates entered before were not eaten.
HIGHEST_CARBS_G = 1000
HIGHEST_RATE_UNITS_PER_HOUR = 100

_FIELDS = (
    *("created_at", "timestamp", "date", "mills", "eventTime", "utcOffset", "isValid", "eventType"),
    *("insulin", "carbs", "protein", "fat", "duration", "durationInMilliseconds", "absolute", "rate", "percent"),
    *("enteredBy", "notes", "reason", "device", "pumpType", "automatic", "isSMB", "type", "bolusType"),
    *("splitNow", "splitExt", "relative", "preBolus", "profile", "percentage", "timeshift"),
    *("targetBottom", "targetTop", "glucose", "glucoseType", "units"),
)
_NUMBERS = {
    "insulin": "insulin_units",
    "carbs": "carbs_g",
    "protein": "protein_g",
    "fat": "fat_g",
    "percent": "rate_percent",
    "splitNow": "split_now_pct",
    "splitExt": "split_ext_pct",
    "relative": "extended_insulin_rate",
    "preBolus": "pre_bolus_minutes",
    "percentage": "profile_percentage",
    "timeshift": "profile_timeshift_hours",
}
_TEXTS = {
    "eventType": "event_type",
    "enteredBy": "entered_by",
    "notes": "notes",
    "reason": "reason",
    "profile": "profile_name",
    "glucoseType": "glucose_type",
    "units": "glucose_units",
}


def treatments_sql(files: Sequence[str], site: str, timezone: str) -> str:
    """The documents of batch files, typed, each with its kind, its partition and why it is refused, if it is.

    The time is `created_at`, which the server goes by, else `date`, `mills`, `timestamp` or `eventTime`. Rates are
    `absolute`, else `rate`; `percent` is the difference to the scheduled basal. Targets and glucose are mg/dL.
    """
    time_columns = ["d.created_at", "d.date", "d.mills", "d.timestamp", 'd."eventTime"']
    numbers = ",\n        ".join(f'{number(f"""d."{field}" """)} as {column}' for field, column in _NUMBERS.items())
    texts = ",\n        ".join(f'{text(f"""d."{field}" """)} as {column}' for field, column in _TEXTS.items())
    duration, exact_ms = number("d.duration"), number('d."durationInMilliseconds"')
    targets = {column: f"({number(f'd.{column}')})" for column in ("targetBottom", "targetTop", "glucose")}
    return f"""
    {landed_sql(files, _FIELDS)},

    placed as (
        select
            *,
            'treatment' as kind,
            {offset_minutes('d."utcOffset"', "d.created_at")} as utc_offset_minutes
        from documents
    ),

    typed as (
        select
            *,
            {document_time(time_columns, sql_text(timezone))} as treatment_timestamp,
            {numbers},
            {texts},
            -- `duration` is in whole minutes where the exact one stands beside it; an edit changes `duration` alone.
            case
                when {duration} is null or floor({exact_ms} / 60000) = {duration} then {exact_ms} / 60000
            end as exact_minutes,
            {duration} as whole_minutes,
            coalesce({number("d.absolute")}, {number("d.rate")}) as rate_units_per_hour
        from placed
    ),

    judged as (
        select
            *,
            coalesce(exact_minutes, whole_minutes) as duration_minutes,
            case
                {refusals_sql("treatment_timestamp", FUTURE_TOLERANCE_MINUTES)}
                when {is_no_number("d.insulin")} then 'insulin_not_a_number'
                when insulin_units < 0 or insulin_units > {HIGHEST_INSULIN_UNITS} then 'insulin_out_of_range'
                when {is_no_number("d.carbs")} then 'carbs_not_a_number'
                when abs(carbs_g) > {HIGHEST_CARBS_G} then 'carbs_out_of_range'
                when {is_no_number("coalesce(d.absolute, d.rate)")} or {is_no_number("d.percent")}
                    then 'rate_not_a_number'
                when rate_units_per_hour < 0 or rate_units_per_hour > {HIGHEST_RATE_UNITS_PER_HOUR}
                    then 'rate_out_of_range'
                when {is_no_number("d.duration")} then 'duration_not_a_number'
                when coalesce(exact_minutes, whole_minutes) < 0 then 'duration_out_of_range'
            end as quarantine_reason
        from typed
    )

    select
        {rows_sql(site, "treatment_id", "treatment_timestamp")},
        utc_offset_minutes,
        {", ".join(_NUMBERS.values())},
        {", ".join(_TEXTS.values())},
        duration_minutes,
        rate_units_per_hour,
        coalesce({text("d.device")}, {text('d."pumpType"')}) as device,
        case
            when upper(d.type) = 'SMB' then true
            else {any_true("d.automatic", 'd."isSMB"')}
        end as is_automatic,
        coalesce({text('d."bolusType"')}, {text("d.type")}) as bolus_type,
        {mg_dl(targets["targetBottom"], "d.units")} as target_low,
        {mg_dl(targets["targetTop"], "d.units")} as target_high,
        {mg_dl(targets["glucose"], "d.units")} as glucose,
        {bookkeeping_sql(keep_document=True, filter_time=filter_ms("d.created_at"))}
    from judged
    """
