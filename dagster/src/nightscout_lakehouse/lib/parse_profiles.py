"""The SQL that types the profiles of batch files: the therapy settings, as they stood from a day on."""

from collections.abc import Sequence

from nightscout_lakehouse.lib.document_sql import (
    bookkeeping_sql,
    document_time,
    landed_sql,
    number,
    refusals_sql,
    rows_sql,
    text,
)
from nightscout_lakehouse.lib.lake import sql_text

# A profile can be written for the days to come.
FUTURE_TOLERANCE_MINUTES = 366 * 24 * 60

_FIELDS = ("startDate", "created_at", "mills", "date", "isValid", "defaultProfile", "units", "enteredBy")
_SCHEDULES = {
    "basal": "basal_schedule",
    "carbratio": "carb_ratio_schedule",
    "sens": "sensitivity_schedule",
    "target_low": "target_low_schedule",
    "target_high": "target_high_schedule",
}


def profiles_sql(files: Sequence[str], site: str, timezone: str) -> str:
    """The documents of batch files, typed, each with its kind, its partition and why it is refused, if it is.

    The time is `startDate`, else `created_at`, `date` or `mills`. The schedules are those of the default profile, as
    JSON, in the units that the column `units` names; `store` has all profiles of the document.
    """
    zone = sql_text(timezone)
    schedules = ",\n        ".join(f"(profile -> '$.{key}')::varchar as {column}" for key, column in _SCHEDULES.items())
    return f"""
    {landed_sql(files, _FIELDS, ["store"])},

    placed as (
        select
            *,
            'profile' as kind,
            null::integer as utc_offset_minutes,
            -- By key, not by path: a name may hold any character.
            try(json_transform(d.store, '"MAP(VARCHAR, JSON)"'))[d."defaultProfile"] as profile
        from documents
    ),

    typed as (
        select
            *,
            {document_time(['d."startDate"', "d.created_at", "d.date", "d.mills"], zone)} as profile_timestamp,
            {document_time(["d.created_at"], zone)} as created_timestamp
        from placed
    ),

    judged as (
        select
            *,
            case
                {refusals_sql("profile_timestamp", FUTURE_TOLERANCE_MINUTES)}
                when json_type(d.store) is distinct from 'OBJECT' then 'missing_store'
            end as quarantine_reason
        from typed
    )

    select
        {rows_sql(site, "profile_id", "profile_timestamp")},
        created_timestamp,
        {text('d."defaultProfile"')} as default_profile_name,
        {text("profile ->> '$.timezone'")} as timezone,
        coalesce({text("profile ->> '$.units'")}, {text("d.units")}) as units,
        {number("(profile ->> '$.dia')")} as insulin_action_hours,
        {schedules},
        {text('d."enteredBy"')} as entered_by,
        d.store::varchar as store,
        {bookkeeping_sql(keep_document=True, filter_time="null::double")}
    from judged
    """
