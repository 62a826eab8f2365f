"""Pieces of SQL that the parsers of all collections are made of; each takes the name of a column or an expression."""

from collections.abc import Iterable, Sequence

from nightscout_lakehouse.lib.lake import sql_list, sql_text
from nightscout_lakehouse.lib.nightscout_client import EARLIEST_TEXT_MS, FAR_FUTURE_MS, UNIDENTIFIED

__all__ = ["EARLIEST", "MMOL_FACTOR", "UNIDENTIFIED"]

EARLIEST = "2000-01-01 00:00:00+00"
# Nightscout's own factor between mmol/L and mg/dL.
MMOL_FACTOR = 18.01559
# What is below this is no mg/dL value, and no mmol/L value is above it.
_BETWEEN_UNITS = 40


def epoch_ms(column: str) -> str:
    """Epoch milliseconds that a number or a text of one says, as double."""
    # Years 1900 to 9999: beyond, DuckDB's timestamps overflow. Milliseconds are what Nightscout counts in.
    number = f"try_cast({column} as double)"
    return f"case when {number} between -2208988800000 and 253402300799000 then floor({number}) end"


def text_time(column: str, zone: str) -> str:
    """The instant that a text says; without a zone by `utc_offset_minutes`, else in `zone` (an SQL literal)."""
    has_zone = rf"regexp_matches({column}, '\d:\d\d.*(z|[+-]\d\d(:?\d\d)?)\s*$', 'i')"
    by_offset = f"(try_cast({column} as timestamp) - to_minutes(utc_offset_minutes)) at time zone 'UTC'"
    by_zone = f"timezone({zone}, try_cast({column} as timestamp))"
    return (
        f"case when {has_zone} then try_cast({column} as timestamptz)"
        f" when utc_offset_minutes is not null then {by_offset} else {by_zone} end"
    )


def text(column: str) -> str:
    """A text without blanks around it; null for an empty one."""
    # Postgres takes no NUL in a text.
    return f"nullif(trim(replace({column}, chr(0), '')), '')"


def landed_sql(files: Sequence[str], fields: Iterable[str], nested: Iterable[str] = ()) -> str:
    """The documents of batch files with their fields as struct `d`: `fields` as text, `nested` as JSON.

    Adds `is_object`; what is no JSON object has no field.
    """
    keys = [f'"{name}": "VARCHAR"' for name in fields] + [f'"{name}": "JSON"' for name in nested]
    return rf"""
    with landed as (
        select
            *,
            -- Half a surrogate pair in a text is JSON to Nightscout and an error to DuckDB.
            case when json_valid(document) then document else 'null' end as parsable
        from read_parquet({sql_list(files)})
    ),

    documents as (
        select
            * exclude (parsable),
            json_type(parsable) = 'OBJECT' as is_object,
            json_transform(
                case when json_type(parsable) = 'OBJECT' then parsable else '{{}}' end,
                '{{{", ".join(keys)}}}'
            ) as d
        from landed
    )"""


def number(expression: str) -> str:
    """A finite number, or null."""
    cast = f"try_cast(trim({expression}) as double)"
    return f"case when isfinite({cast}) then {cast} end"


def boolean(expression: str) -> str:
    """`true` or `false` as written in JSON, or null."""
    return f"case lower({expression}) when 'true' then true when 'false' then false end"


def any_true(*expressions: str) -> str:
    """Whether any of the booleans is true; null where none is known."""
    known = ", ".join(f"({boolean(expression)})" for expression in expressions)
    return f"list_bool_or([{known}])"


def document_time(columns: Iterable[str], zone: str) -> str:
    """The instant of the first column that holds one: epoch seconds or milliseconds, number or text, or text.

    Text is ISO 8601 in any of its forms, or what JavaScript makes of a date.
    """
    return "coalesce(" + ", ".join(_any_time(column, zone) for column in columns) + ")"


def _any_time(column: str, zone: str) -> str:
    value = f"try_cast({column} as double)"
    # Ten digits are seconds, thirteen are milliseconds.
    in_ms = f"case when abs({value}) between 1e8 and 1e11 then {value} * 1000 else {value} end"
    by_number = f"make_timestamptz(({epoch_ms(f'({in_ms})')} * 1000)::bigint)"
    minutes_only = (
        rf"regexp_replace(trim({column}), '^(\d{{4}}-\d\d-\d\d[Tt ]\d\d:\d\d)(Z|z|[+-]\d\d:?\d\d|)$', '\1:00\2')"
    )
    tight = rf"regexp_replace({minutes_only}, '\s+([+-]\d\d:?\d\d|Z)$', '\1')"
    javascript = rf"try_strptime(regexp_replace({column}, '\s*\(.*$', ''), '%a %b %d %Y %H:%M:%S GMT%z')"
    return f"{by_number}, {text_time(f'({tight})', zone)}, {javascript}"


def offset_minutes(utc_offset: str, time_text: str) -> str:
    """Minutes east of UTC: the field `utcOffset`, else what the text of the time says."""
    sign = rf"case when regexp_extract({time_text}, '([+-])\d\d:?\d\d\s*$', 1) = '-' then -1 else 1 end"
    hours = rf"try_cast(regexp_extract({time_text}, ':\d\d.*[+-](\d\d):?(\d\d)\s*$', 1) as integer)"
    minutes = rf"try_cast(regexp_extract({time_text}, ':\d\d.*[+-](\d\d):?(\d\d)\s*$', 2) as integer)"
    return f"coalesce(try_cast(try_cast({utc_offset} as double) as integer), {sign} * ({hours} * 60 + {minutes}))"


def filter_ms(column: str) -> str:
    """Where the server's filter by text sees a document, in epoch milliseconds.

    Exact for UTC with milliseconds; null for other ISO text, which stands within hours of its time; below 0 for text
    that sorts before all dates, at the end of time for text that sorts after; infinite where the place is not known.
    """
    return rf"""case
        when regexp_full_match({column}, '\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z')
            then epoch_ms(try_cast({column} as timestamptz))
        when regexp_matches({column}, '^\d{{4}}-\d\d-\d\d(T|$)') then null
        when {column} < strftime(make_timestamp({EARLIEST_TEXT_MS} * 1000), '%Y') then -1
        when {column} >= '22' then {FAR_FUTURE_MS - 1}
        else 'infinity'::double
    end"""


def mg_dl(value: str, units: str) -> str:
    """Glucose in mg/dL, of a number and the units that the document names.

    Nightscout's own form converts targets and still writes `mmol`, so the size decides then; a number too small for
    mg/dL in a document that does not say mmol is null: it may be either.
    """
    is_mmol = f"coalesce(lower({units}) like 'mmol%', false)"
    return f"""case
        when {value} <= 0 then null
        when {value} >= {_BETWEEN_UNITS} then {value}
        when {is_mmol} then {value} * {MMOL_FACTOR}
        when {value} >= 20 then {value}
    end"""


def rows_sql(site: str, id_column: str, time_column: str) -> str:
    """The columns that begin every row: operation, kind, partition and ids."""
    return f"""
        operation,
        case when quarantine_reason is not null then 'quarantined' else kind end as kind,
        case
            when operation = 'upsert'
                then coalesce(strftime({time_column} at time zone 'UTC', '%Y-%m'), 'undated')
        end as month,
        known_month,
        {sql_text(site + "/")} || document_id as {id_column},
        document_id as nightscout_id,
        {time_column}"""


def bookkeeping_sql(*, keep_document: bool, filter_time: str) -> str:
    """The columns that end every row.

    Args:
        keep_document: Whether the text is kept of documents that are not refused, too.
        filter_time: Expression for the place in the server's filter.
    """
    document = "document" if keep_document else "case when quarantine_reason is not null then document end"
    return f"""
        coalesce(lower(d."isValid") = 'false', false) as is_deleted,
        false as is_duplicate,
        quarantine_reason,
        {document} as document,
        document_hash,
        batch,
        document_number,
        fetched_at,
        fetched_at as first_fetched_at,
        {filter_time} as date_ms"""


def refusals_sql(time_column: str, future_tolerance_minutes: int) -> str:
    """The reasons for refusal that all collections share, as branches of a `case`."""
    return f"""
                when operation = 'delete' then null
                when not is_object then 'not_a_json_object'
                when document_id like '{UNIDENTIFIED}%' then 'missing_id'
                when {time_column} is null then 'unreadable_timestamp'
                when {time_column} < timestamptz '{EARLIEST}' then 'timestamp_too_old'
                when {time_column} > fetched_at + interval {future_tolerance_minutes} minutes
                    then 'timestamp_in_future'"""


def is_no_number(column: str) -> str:
    """Whether a text is there and is no finite number."""
    return f"({text(column)} is not null and ({number(column)}) is null)"
