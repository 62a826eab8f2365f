"""Law 1 over the whole history: what the raw batch files hold is what the accounting says became of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nightscout_lakehouse.lib.lake import Lake, Pruned, load_pruned, raw_files, sql_list
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.warehouse import open_warehouse


@dataclass(frozen=True)
class Conservation:
    """The accounting against the raw files.

    Attributes:
        batches: Batches that are accounted for.
        documents: Their documents, by the raw files.
        unaccounted: Batch files without accounting: not processed yet, or processed before this warehouse was built.
        faults: One sentence for each batch that does not agree.
        pruned: Batches whose raw files lie in an archive, so that only their sum can be compared.
    """

    batches: int
    documents: int
    unaccounted: int
    faults: tuple[str, ...]
    pruned: int = 0


def compare_with_raw_files(settings: Settings, lake: Lake) -> Conservation:
    """Count the rows of every raw batch file and compare them with `ops.batches`.

    Of batches in an archive the lake knows how many documents and deletions were moved together.
    """
    moved: dict[tuple[str, str], Pruned] = {}
    with open_warehouse(settings) as warehouse:
        warehouse.execute(
            "create or replace temp table raw_rows"
            " (collection varchar, site varchar, batch bigint, documents bigint, deletions bigint)"
        )
        for collection in COLLECTIONS:
            sites = [folder.rpartition("site=")[2] for folder in lake.list_folders(f"raw/{collection.name}")]
            for site in sites:
                if (pruned := load_pruned(lake, site, collection)) is not None:
                    moved[collection.name, site] = pruned
            files = [lake.duckdb_path(file.path) for site in sites for file in raw_files(lake, site, collection)]
            if not files:
                continue
            warehouse.execute(
                f"""
                insert into raw_rows
                select
                    ?, site, batch,
                    count(*) filter (operation = 'upsert'), count(*) filter (operation = 'delete')
                from read_parquet({sql_list(files)}, hive_partitioning = true, hive_types = {{'site': 'varchar'}})
                group by site, batch
                """,
                [collection.name],
            )
        rows = warehouse.execute(
            """
            select
                coalesce(raw_rows.collection, batches.collection) as collection,
                coalesce(raw_rows.site, batches.site) as site,
                coalesce(raw_rows.batch, batches.batch) as batch,
                raw_rows.documents, raw_rows.deletions,
                batches.documents, batches.deletions, batches.stored + batches.duplicates + batches.quarantined
            from raw_rows
            full join ops.batches as batches
                on raw_rows.collection = batches.collection
                and raw_rows.site = batches.site
                and raw_rows.batch = batches.batch
            order by collection, site, batch
            """
        ).fetchall()
    faults, accounted, documents, unaccounted = [], 0, 0, 0
    of_archive: dict[tuple[str, str], dict[int, tuple[int, int]]] = {each: {} for each in moved}
    for name, site, batch, raw, raw_deletions, kept, deletions, outcomes in rows:
        place = f"{site}, {name}, batch {batch}"
        if kept is None:
            unaccounted += 1
            continue
        if raw is None and (name, site) in moved and batch <= moved[name, site].until:
            of_archive[name, site][batch] = (kept, deletions)
            if kept != outcomes:
                faults.append(f"{place}: of {kept} documents {outcomes} are stored, duplicates or quarantined.")
            continue
        accounted += 1
        documents += raw or 0
        if raw is None:
            faults.append(f"{place}: its file is gone; {kept} documents were accounted for.")
        elif not raw == kept == outcomes or raw_deletions != deletions:
            faults.append(
                f"{place}: the file holds {raw} documents and {raw_deletions} deletions; accounted for are {kept} and "
                f"{deletions}, of which {outcomes} are stored, duplicates or quarantined."
            )
    faults += [fault for each, pruned in moved.items() for fault in _faults_of_archive(*each, pruned, of_archive[each])]
    return Conservation(
        accounted, documents, unaccounted, tuple(faults), pruned=sum(pruned.until for pruned in moved.values())
    )


def _faults_of_archive(name: str, site: str, pruned: Pruned, accounted: Mapping[int, tuple[int, int]]) -> Iterator[str]:
    """Where the accounting of batches in an archive is not what was moved, as far as all of it is known."""
    for stretch in pruned.stretches:
        counts = [accounted.get(batch) for batch in range(stretch.first, stretch.last + 1)]
        if None in counts:
            # Processed before this warehouse was built.
            continue
        documents, deletions = (sum(column) for column in zip(*(each for each in counts if each), strict=True))
        if (documents, deletions) != (stretch.documents, stretch.deletions):
            yield (
                f"{site}, {name}, batches {stretch.first} to {stretch.last}: {stretch.documents} documents and "
                f"{stretch.deletions} deletions were moved to the archive; accounted for are {documents} and "
                f"{deletions}."
            )
