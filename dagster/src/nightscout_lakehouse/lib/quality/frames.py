"""The frames that suites look at: which rows, which columns, and how they are cut into pieces.

| frame | one row per | touched rows are those of |
|---|---|---|
| `raw_documents` | document, its latest version, of a batch that is not processed yet | the pending batches |
| `enriched_readings` | row of `int_glucose_enriched` | the local days changed since the last validation that passed |
| `daily_figures` | such a day, with or without readings | the same days |

A validation takes up the days where the last one that passed has ended: what failed stays in view until it is mended.
A document that stopped a run is out of view as soon as a later batch brings a version of it that is mended, or its end.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from nightscout_lakehouse.lib.lake import Lake, raw_files, sql_list, sql_text
from nightscout_lakehouse.lib.processing import pending_files
from nightscout_lakehouse.lib.quality.suites import Scope
from nightscout_lakehouse.lib.quality.validation import Piece

# Rows that are in memory at once; with the columns of the suites in this repository about 100 MB.
ROWS_PER_PIECE = 500_000
RECENT_DAYS = 14
# Fields that uploaders of entries are known to send; another one is no fault, but worth a look.
KNOWN_FIELDS = (
    *("_id", "identifier", "type", "sgv", "mbg", "date", "mills", "dateString", "sysTime", "created_at", "utcOffset"),
    *("device", "direction", "trend", "trendRate", "noise", "filtered", "unfiltered", "rssi", "delta", "slope"),
    *("intercept", "scale", "isValid", "isReadOnly", "srvCreated", "srvModified", "subject", "modifiedBy", "app"),
    *("units", "glucose", "scaled", "carbs", "insulin", "systime", "previousSGV", "sgvmmol", "_rev", "rawbg"),
)


@dataclass(frozen=True)
class Frame:
    """Rows to validate.

    Attributes:
        name: As suites name it.
        key: Columns that name a row.
        query: All its columns, as SQL over the connection's tables.
        period: Column by which a site's rows are cut into pieces: a date or a number.
        columns: What each column is.
    """

    name: str
    key: tuple[str, ...]
    query: str
    period: str
    columns: dict[str, str] = field(hash=False)


ENRICHED_COLUMNS = {
    "entry_id": "site and id of the document",
    "site": "name of the site",
    "reading_timestamp": "time of the reading, UTC",
    "reading_date": "local day",
    "hour_of_day": "local hour",
    "glucose_mg_dl": "sensor glucose",
    "glucose_category": "one of three",
    "glucose_range": "one of five",
    "glucose_change_mg_dl": "difference to the previous reading of the device",
    "minutes_since_previous": "minutes since it",
    "direction": "trend as sent",
    "device": "device as sent",
    "sensor_interval_minutes": "nominal distance of readings",
    "is_near_duplicate": "another device has this reading",
    "minutes_in_future": "minutes that the reading lies after now, negative for the past",
    "category_differs": "whether the category is not that of the value",
    "change_per_minute_mg_dl": "the change, by the minutes since the previous reading",
}

DAILY_COLUMNS = {
    "site": "name of the site",
    "reading_date": "local day",
    "reading_count": "readings that count; null on a day without any",
    "expected_reading_count": "readings of the whole day at the sensor's interval",
    "data_sufficiency_pct": "readings present of those expected",
    "avg_glucose_mg_dl": "mean",
    "sd_glucose_mg_dl": "standard deviation",
    "cv_pct": "coefficient of variation",
    "time_very_low_pct": "share of the range",
    "time_low_pct": "share of the range",
    "time_in_range_pct": "share of the range",
    "time_high_pct": "share of the range",
    "time_very_high_pct": "share of the range",
    "time_in_tight_range_pct": "share of 70 to 140",
    "estimated_a1c_pct": "GMI",
    "ranges_total_pct": "sum of the five shares",
    "gmi_difference_pct": "GMI minus what follows from the mean",
    "min_above_mean_mg_dl": "lowest reading minus the mean",
    "fact_reading_count": "rows of the fact table on the day",
    "unreconciled_readings": "rows of the day in int_glucose_enriched that count, minus those of the fact table",
    "day_differs_from_fact": "reading_count minus fact_reading_count",
    "is_missing_without_gap": "a day without readings between others that no gap record covers",
}

RAW_COLUMNS = {
    "site": "name of the site",
    "batch": "number of the batch",
    "document_number": "place in the batch",
    "document_id": "id of the document",
    "type": "`type` as sent",
    "is_object": "whether it is a JSON object",
    "date_kind": "JSON type of `date`",
    "sgv_kind": "JSON type of `sgv`",
    "glucose": "`sgv` as a number; null for whole numbers below 20, which are error codes of the sensor",
    "has_time": "whether any field of time is there",
    "has_id": "whether it came with an id",
    "has_glucose": "whether `sgv`, `mbg` or the fields of a calibration are there",
    "minutes_in_future": "minutes that `date` lies after it was fetched",
    "utc_offset_minutes": "`utcOffset` as a number",
    "device": "device as sent",
    "unknown_fields": "names of fields that no known uploader sends; null for none",
}


FRAME_COLUMNS = {
    "raw_documents": RAW_COLUMNS,
    "enriched_readings": ENRICHED_COLUMNS,
    "daily_figures": DAILY_COLUMNS,
}


def raw_frame(
    connection: duckdb.DuckDBPyConnection, lake: Lake, sites: Sequence[str], *, everything: bool = False
) -> Frame | None:
    """The documents of all pending batches, or of all there are; None if there are none.

    Makes the temporary table `raw_superseded`: documents of several batches, with the last one.
    """
    files = [
        (site, lake.duckdb_path(file.path))
        for site in sites
        for file in (raw_files(lake, site) if everything else pending_files(lake, site))
    ]
    connection.execute(
        "create or replace temp table raw_superseded (site varchar, document_id varchar, last_batch bigint)"
    )
    if not files:
        return None
    for site in sites:
        of_site = [path for of, path in files if of == site]
        if len(of_site) > 1:
            connection.execute(
                f"""
                insert into raw_superseded
                select ?, document_id, max(batch)
                from read_parquet({sql_list(of_site)})
                group by document_id
                having min(batch) < max(batch)
                """,
                [site],
            )
    known = ", ".join(sql_text(name) for name in KNOWN_FIELDS)
    parts = [
        f"select {sql_text(site)} as site, * from read_parquet({sql_list(path for of, path in files if of == site)})"
        for site in dict.fromkeys(site for site, _ in files)
    ]
    query = f"""
    with documents as (
        select landed.*, case when json_valid(document) then document else 'null' end as json
        from ({" union all ".join(parts)}) as landed
        left join raw_superseded as later on landed.site = later.site and landed.document_id = later.document_id
        where operation = 'upsert' and landed.batch = coalesce(later.last_batch, landed.batch)
    )

    select
        site,
        batch,
        document_number,
        document_id,
        json ->> '$.type' as type,
        json_type(json) = 'OBJECT' as is_object,
        json_type(json, '$.date') as date_kind,
        json_type(json, '$.sgv') as sgv_kind,
        case
            when try_cast(json ->> '$.sgv' as double) >= 20
                or try_cast(json ->> '$.sgv' as double) <> floor(try_cast(json ->> '$.sgv' as double))
                then try_cast(json ->> '$.sgv' as double)
        end as glucose,
        case when is_object then
            coalesce(
                json ->> '$.date', json ->> '$.mills', json ->> '$.dateString',
                json ->> '$.created_at', json ->> '$.sysTime'
            ) is not null
        end as has_time,
        case when is_object then coalesce(json ->> '$.identifier', json ->> '$._id') is not null end as has_id,
        case when is_object then coalesce(json ->> '$.sgv', json ->> '$.mbg', json ->> '$.slope') is not null end
            as has_glucose,
        (try_cast(json ->> '$.date' as double) - epoch_ms(fetched_at)) / 60000.0 as minutes_in_future,
        try_cast(json ->> '$.utcOffset' as double) as utc_offset_minutes,
        json ->> '$.device' as device,
        case
            when json_type(json) = 'OBJECT'
                then nullif(
                    array_to_string(list_filter(json_keys(json), lambda name: name not in ({known})), ', '), ''
                )
        end as unknown_fields
    from documents
    """
    return Frame("raw_documents", ("site", "batch", "document_id"), query, "batch", RAW_COLUMNS)


def enriched_frame() -> Frame:
    """The rows of `int_glucose_enriched`."""
    query = """
    select
        * exclude (nightscout_id, reading_local_timestamp, day_of_week, gap_minutes),
        epoch_ms(reading_timestamp) / 60000.0 - epoch_ms(now()) / 60000.0 as minutes_in_future,
        glucose_category is distinct from case
            when glucose_mg_dl < 70 then 'hypoglycemia'
            when glucose_mg_dl <= 180 then 'in_range'
            when glucose_mg_dl > 180 then 'hyperglycemia'
        end as category_differs,
        glucose_change_mg_dl / nullif(minutes_since_previous, 0) as change_per_minute_mg_dl
    from intermediate.int_glucose_enriched
    """
    return Frame("enriched_readings", ("entry_id", "site"), query, "reading_date", ENRICHED_COLUMNS)


def daily_frame() -> Frame:
    """The validated days with what was computed of them."""
    query = """
    with days as (
        select site, reading_date from quality_days
    ),

    enriched as (
        select site, reading_date, count(*) as readings
        from intermediate.int_glucose_enriched
        where not is_near_duplicate
        group by site, reading_date
    ),

    facts as (
        select site, reading_date, count(*) as readings
        from curated.fact_glucose_readings
        group by site, reading_date
    ),

    spans as (
        select site, min(reading_date) as first_date, max(reading_date) as last_date
        from curated.dim_glucose_date
        group by site
    )

    select
        days.site,
        days.reading_date,
        daily.* exclude (site, reading_date),
        time_very_low_pct + time_low_pct + time_in_range_pct + time_high_pct + time_very_high_pct as ranges_total_pct,
        estimated_a1c_pct - (3.31 + 0.02392 * avg_glucose_mg_dl) as gmi_difference_pct,
        min_glucose_mg_dl - avg_glucose_mg_dl as min_above_mean_mg_dl,
        coalesce(facts.readings, 0) as fact_reading_count,
        coalesce(enriched.readings, 0) - coalesce(facts.readings, 0) as unreconciled_readings,
        coalesce(daily.reading_count, 0) - coalesce(facts.readings, 0) as day_differs_from_fact,
        daily.reading_count is null
        and days.reading_date between spans.first_date and spans.last_date
        and not exists (
            select 1 from curated.fact_sensor_gaps as gaps
            where
                gaps.site = days.site
                and gaps.start_date < days.reading_date
                and gaps.end_date > days.reading_date
        ) as is_missing_without_gap
    from days
    left join curated.dim_glucose_date as daily on days.site = daily.site and days.reading_date = daily.reading_date
    left join enriched on days.site = enriched.site and days.reading_date = enriched.reading_date
    left join facts on days.site = facts.site and days.reading_date = facts.reading_date
    left join spans on days.site = spans.site
    """
    return Frame("daily_figures", ("site", "reading_date"), query, "reading_date", DAILY_COLUMNS)


def choose_days(warehouse: duckdb.DuckDBPyConnection, consumer: str, models: Sequence[str], *, everything: bool) -> int:
    """Make the temporary table `quality_days`: the days to validate; returns how far the changes are in the models.

    Args:
        warehouse: The open warehouse.
        consumer: Whose watermark tells what has been validated.
        models: The models that are looked at. What they have not taken in yet (their step did not run) is not validated
            by looking at them.
        everything: Every day there is, instead of those that changed.
    """
    row = warehouse.execute(
        "select coalesce(min(coalesce(change_seq, 0)), 0) from unnest(?) as models (name)"
        " left join ops.watermarks on consumer = name",
        [list(models)],
    ).fetchone()
    after = warehouse.execute("select change_seq from ops.watermarks where consumer = ?", [consumer]).fetchone()
    warehouse.execute(
        """
        create or replace temp table quality_days as
        with changes as (
            select site, reading_date from ops.changes where change_seq > $after
        ),

        known as (
            select distinct site, reading_date from intermediate.int_glucose_enriched
        )

        select distinct site, reading_date from changes where reading_date is not null
        union
        select site, reading_date from known
        where $everything or site in (select site from changes where reading_date is null)
        """,
        {"after": after[0] if after else 0, "everything": everything},
    )
    return int(row[0]) if row else 0


def days_passed(warehouse: duckdb.DuckDBPyConnection, consumer: str, change_seq: int) -> None:
    """Keep that all changes up to here have been validated and nothing critical was found."""
    warehouse.execute(
        "insert into ops.watermarks values (?, ?)"
        " on conflict (consumer) do update set change_seq = greatest(watermarks.change_seq, excluded.change_seq)",
        [consumer, change_seq],
    )


def pieces(
    connection: duckdb.DuckDBPyConnection,
    frame: Frame,
    columns: Sequence[str],
    scope: Scope = "touched",
    rows_per_piece: int = ROWS_PER_PIECE,
) -> Iterator[Piece]:
    """The rows of a frame, a bounded number at a time, with the columns that are needed.

    A site is cut only if it has more rows than a piece may have.
    """
    chosen = [name for name in frame.columns if name in {*columns, *frame.key, "site"}]
    query = f"select {', '.join(chosen)}, {frame.period} as period from ({frame.query}) {_where(frame, scope)}"
    counts = connection.execute(
        f"select site, period, count(*) from ({query}) group by site, period order by site, period"
    ).fetchall()
    for sites, first, last in _spans(counts, rows_per_piece):
        rows = connection.execute(
            f"select * exclude (period) from ({query}) where list_contains(?, site) and period between ? and ?",
            [sites, first, last],
        ).to_arrow_table()
        yield Piece(sites[0] if len(sites) == 1 else None, rows.to_pandas())


def _where(frame: Frame, scope: Scope) -> str:
    if frame.name == "raw_documents":
        return ""
    if scope == "touched":
        return "where (site, reading_date) in (select (site, reading_date) from quality_days)"
    return f"""
    where (site, reading_date) in (
        select (readings.site, readings.reading_date)
        from intermediate.int_glucose_enriched as readings
        inner join (
            select site, max(reading_date) as last_date from intermediate.int_glucose_enriched group by site
        ) as sites on readings.site = sites.site and readings.reading_date > sites.last_date - {RECENT_DAYS}
        where readings.site in (select site from quality_days)
    )"""


def _spans(counts: Sequence[tuple[str, Any, int]], most: int) -> Iterator[tuple[list[str], Any, Any]]:
    """The pieces: small sites together with all their periods, a large one by stretches of its periods."""
    small: list[str] = []
    total = 0
    for site, group in itertools.groupby(counts, key=lambda row: row[0]):
        periods = list(group)
        rows = sum(count for _, _, count in periods)
        if rows > most:
            yield from _stretches(site, periods, most)
            continue
        if small and total + rows > most:
            yield _whole(small, counts)
            small, total = [], 0
        small.append(site)
        total += rows
    if small:
        yield _whole(small, counts)


def _stretches(site: str, periods: Sequence[tuple[str, Any, int]], most: int) -> Iterator[tuple[list[str], Any, Any]]:
    first, last, total = periods[0][1], periods[0][1], 0
    for _, period, count in periods:
        if total and total + count > most:
            yield [site], first, last
            first, total = period, 0
        last, total = period, total + count
    yield [site], first, last


def _whole(sites: Sequence[str], counts: Sequence[tuple[str, Any, int]]) -> tuple[list[str], Any, Any]:
    periods = [period for site, period, _ in counts if site in set(sites)]
    return list(sites), min(periods), max(periods)
