"""What each processed Parquet file holds, counted when it is written: `ops.partitions` in the warehouse.

So that a tick can say how many documents there are, of which kinds and from when to when, without opening the files of
all years. A warehouse that does not know a site's files yet counts them once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import duckdb
import pyarrow as pa

from nightscout_lakehouse.lib.lake import Lake, partition_files, sql_list, sql_text
from nightscout_lakehouse.lib.nightscout_collections import DEVICE_STATUS, ENTRIES, PROFILES, TREATMENTS, Collection

HIVE_TYPES = "{'kind': 'varchar', 'site': 'varchar', 'month': 'varchar'}"

# What a collection's rows are counted by.
_LABEL = {
    ENTRIES.name: "kind",
    TREATMENTS.name: "case when kind = 'quarantined' then kind else coalesce(event_type, 'none') end",
    DEVICE_STATUS.name: "case when kind = 'quarantined' then kind else coalesce(loop_system, 'other') end",
    PROFILES.name: "kind",
}


@dataclass(frozen=True)
class LiveRows:
    """The live documents of a collection: how many, and their least and greatest time, UTC."""

    row_count: int
    first_time: datetime | None
    last_time: datetime | None


def counts_query(collection: Collection, source: str) -> str:
    """SQL of the counts of rows that have the columns of processed files.

    Args:
        collection: Whose rows they are.
        source: A table, or a function that reads files, with the columns `kind` and `month`.

    Returns:
        A query with the columns kind, month, label, quarantine_reason, row_count, live_row_count, first_live_time and
        last_live_time; live rows are of the collection's first kind and neither deleted nor repeated.
    """
    moment = collection.time_column
    return f"""
    select
        kind,
        month,
        {_LABEL[collection.name]} as label,
        quarantine_reason,
        count(*) as row_count,
        count(*) filter (is_live) as live_row_count,
        min({moment}) filter (is_live) as first_live_time,
        max({moment}) filter (is_live) as last_live_time
    from {source},
    lateral (select kind = {sql_text(collection.kinds[0])} and not is_deleted and not is_duplicate as is_live)
    group by all
    """


def live_rows(warehouse: duckdb.DuckDBPyConnection, collection: str) -> LiveRows:
    """The live documents of the sites that the models know."""
    rows = warehouse.execute(
        """
        select coalesce(sum(live_row_count), 0)::bigint, min(first_live_time), max(last_live_time)
        from ops.partitions
        where collection = ? and site in (select site from ops.sites)
        """,
        [collection],
    ).fetchall()
    return LiveRows(*rows[0])


def replace_counts(
    warehouse: duckdb.DuckDBPyConnection,
    collection: Collection,
    site: str,
    partitions: Iterable[tuple[str, str]],
    counts: pa.Table,
) -> None:
    """Put the counts of some partitions of a site in place of the ones before; the caller's transaction holds it.

    Args:
        warehouse: Where the counts are kept.
        collection: The collection.
        site: The site.
        partitions: Kind and month of each partition that is written again, also of those now empty.
        counts: Answer of `counts_query` for their rows.
    """
    pairs = list(partitions)
    warehouse.execute(
        """
        delete from ops.partitions
        where collection = ? and site = ?
            and (kind, month) in (select unnest(?::varchar[]), unnest(?::varchar[]))
        """,
        [collection.name, site, [kind for kind, _ in pairs], [month for _, month in pairs]],
    )
    warehouse.register("partition_counts", counts)
    warehouse.execute(
        """
        insert into ops.partitions
        select
            ?, kind, ?, month, label, quarantine_reason, row_count, live_row_count, first_live_time, last_live_time
        from partition_counts
        """,
        [collection.name, site],
    )
    warehouse.unregister("partition_counts")


def count_unknown_sites(
    warehouse: duckdb.DuckDBPyConnection, lake: Lake, collection: Collection, sites: Iterable[str]
) -> None:
    """Count the files of the sites of which the warehouse knows none: after an upgrade, or where it was removed."""
    known = warehouse.execute("select distinct site from ops.partitions where collection = ?", [collection.name])
    for site in set(sites) - {row[0] for row in known.fetchall()}:
        files = [
            file for kind in collection.all_kinds for file in partition_files(lake, kind, site, collection).values()
        ]
        if files:
            paths = sql_list(lake.duckdb_path(file) for file in files)
            source = f"read_parquet({paths}, hive_partitioning = true, hive_types = {HIVE_TYPES})"
            counts = warehouse.execute(counts_query(collection, source)).to_arrow_table()
            replace_counts(warehouse, collection, site, [], counts)
