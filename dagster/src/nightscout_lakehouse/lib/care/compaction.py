"""Many small raw files into few: the same rows, each with its batch and place, in one file for many batches.

A tick writes some kilobytes; a year of ticks is many thousand files, which every look at the whole history must open.
Only batches that are processed are taken, and only in a row. The large file appears whole, is read back and compared,
and only then the small ones go. Between the two both are there, and a reader goes by the large one (`lake.raw_files`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightscout_lakehouse.lib.errors import LakeError
from nightscout_lakehouse.lib.lake import (
    RAW_SCHEMA,
    Lake,
    RawFile,
    load_pruned,
    merged_file,
    processing_state_file,
    raw_files,
    superseded_files,
)
from nightscout_lakehouse.lib.locking import lake_lock
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS, Collection
from nightscout_lakehouse.lib.settings import Settings

# A file of this size opens as quickly for its size as a larger one, and fits into memory when it is written.
LARGE_BYTES: Final = 16 << 20
LARGE_ROWS: Final = 200_000


@dataclass(frozen=True)
class Compaction:
    """What became of the raw files of a site's collection; sizes in bytes."""

    site: str
    collection: str
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int


def compact(settings: Settings, *, dry_run: bool = False) -> list[Compaction]:
    """Put the small raw files of every site together.

    Args:
        settings: Which lake.
        dry_run: Only say what would be done; the size afterwards is then that of before.

    Returns:
        One report for each site and collection in which something is to be done.

    Raises:
        LakehouseError: Another run is writing the lake, or a file cannot be read or is not what was written.
    """
    lake, reports = Lake.open(settings), []
    with lake_lock(settings, "lakehouse compact", wait_seconds=0):
        for collection in COLLECTIONS:
            for folder in lake.list_folders(f"raw/{collection.name}"):
                report = _compact_site(lake, folder.rpartition("site=")[2], collection, dry_run=dry_run)
                if report.files_before != report.files_after:
                    reports.append(report)
    return reports


def _compact_site(lake: Lake, site: str, collection: Collection, *, dry_run: bool) -> Compaction:
    before, leftovers = raw_files(lake, site, collection), leftovers_of_compaction(lake, site, collection)
    size = sum(lake.size_bytes(file.path) for file in (*before, *leftovers))
    groups = list(_groups(lake, before, processed_until(lake, site, collection)))
    if not dry_run:
        for file in leftovers:
            drop_leftover(lake, file, before)
        for group in groups:
            _merge(lake, site, group, collection)
    files_after = len(before) - sum(len(group) - 1 for group in groups)
    size_after = size if dry_run else sum(lake.size_bytes(f.path) for f in raw_files(lake, site, collection))
    return Compaction(site, collection.name, len(before) + len(leftovers), files_after, size, size_after)


def leftovers_of_compaction(lake: Lake, site: str, collection: Collection) -> list[RawFile]:
    """The small files that a killed compaction left; what a killed pruning left is for the next one."""
    pruned = load_pruned(lake, site, collection)
    until = pruned.until if pruned else 0
    return [file for file in superseded_files(lake, site, collection) if file.first > until]


def processed_until(lake: Lake, site: str, collection: Collection) -> int:
    """Up to which batch everything is processed; 0 while the site is being processed anew."""
    state = lake.read_json(processing_state_file(site, collection)) or {}
    processed = int(state.get("processed_batch", 0))
    return processed if processed >= int(state.get("rebuilt_until", 0)) else 0


def _groups(lake: Lake, files: Sequence[RawFile], processed: int) -> Iterator[list[RawFile]]:
    """Files that become one: processed, in a row, at least two, and together not too large."""
    group: list[RawFile] = []
    size = rows = 0
    for file in files:
        if file.last > processed:
            break
        file_size, file_rows = lake.size_bytes(file.path), lake.parquet_rows(file.path)
        is_next = group and group[-1].last + 1 == file.first
        if not is_next or size + file_size > LARGE_BYTES or rows + file_rows > LARGE_ROWS:
            if len(group) > 1:
                yield group
            group, size, rows = [], 0, 0
        group.append(file)
        size, rows = size + file_size, rows + file_rows
    if len(group) > 1:
        yield group


def _merge(lake: Lake, site: str, group: Sequence[RawFile], collection: Collection) -> None:
    first, last = group[0].first, group[-1].last
    target = merged_file(site, first, last, collection)
    metadata = {"site": site, "batch": f"{first}-{last}"}
    merged = pa.concat_tables([read_raw(lake, file.path) for file in group]).replace_schema_metadata(metadata)
    lake.write_parquet(target, merged)
    # A file of the group may bear the same name only if it is the whole group, which has two at least.
    if not read_raw(lake, target).equals(merged.replace_schema_metadata(None)):
        lake.delete(target)
        raise LakeError(f"{target} is not what was written.", "Nothing was removed. Check the disk.")
    for file in group:
        lake.delete(file.path)


def drop_leftover(lake: Lake, leftover: RawFile, files: Sequence[RawFile]) -> None:
    """Remove what a killed compaction left, if all of it is in the large file.

    Raises:
        LakeError: It is not.
    """
    (large,) = [file for file in files if file.first <= leftover.first and leftover.last <= file.last]
    rows = read_raw(lake, large.path)
    batches = pa.array(range(leftover.first, leftover.last + 1), pa.int64())
    if not rows.filter(pc.is_in(rows["batch"], batches)).equals(read_raw(lake, leftover.path)):
        raise LakeError(
            f"{leftover.path} and {large.path} do not say the same of a batch.",
            "Nothing was removed. This is a fault of the program; please report it.",
        )
    lake.delete(leftover.path)


def read_raw(lake: Lake, path: str) -> pa.Table:
    """The rows of a raw file, without what its metadata say.

    Raises:
        LakeError: It cannot be read as one.
    """
    try:
        with lake.filesystem.open_input_file(f"{lake.root}/{path}") as file:
            table = pq.ParquetFile(file).read()
    except (OSError, pa.ArrowInvalid) as error:
        raise LakeError(
            f"{lake.url}/{path} cannot be read as raw documents ({str(error).partition(chr(10))[0]}).",
            "Nothing was removed. Check the disk, and put the file back from a copy.",
        ) from None
    return table.replace_schema_metadata(None).cast(RAW_SCHEMA)
