"""The lake: plain files under one root, a local folder or an S3 bucket, with the same code for both.

Layout below the root:

    raw/<collection>/site=<site>/batch=<number>.parquet         documents as they came, immutable
    raw/<collection>/site=<site>/batch=<first>-<last>.parquet   the same of several batches (`lakehouse compact`)
    raw/<collection>/site=<site>/state.json                     how far the site has been read
    raw/<collection>/site=<site>/pruned.json                    which batches lie in an archive (`lakehouse prune`)
    raw/<collection>/site=<site>/archives.json                  every archive that was given files of the site
    raw/nightscout_entries/site=<site>/imports.json             which files have been imported
    processed/<collection>/kind=<kind>/site=<site>/month=<YYYY-MM>/<file>.parquet
    processed/<collection>/state/<site>.json                    how far its batches have been processed
    processed/layout.json                                       which columns the processed files have

The collections are `nightscout_entries`, `nightscout_treatments`, `nightscout_device_status` and `nightscout_profiles`.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from nightscout_lakehouse.lib.errors import LakeError
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES, Collection
from nightscout_lakehouse.lib.settings import Settings

# Begins the id of a document that came from another source than the site's server.
IMPORTED_ID_PREFIX = "import:"

RAW_SCHEMA = pa.schema(
    [
        pa.field("batch", pa.int64(), nullable=False),
        pa.field("document_number", pa.int64(), nullable=False),
        pa.field("operation", pa.string(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("document_hash", pa.string()),
        pa.field("known_month", pa.string()),
        pa.field("fetched_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("document", pa.string()),
    ]
)


@dataclass(frozen=True)
class Lake:
    """Reads and writes files below one root, each write atomic: a reader sees the old file or the new one.

    Attributes:
        url: Root as DuckDB takes it: an absolute folder or `s3://bucket[/prefix]`.
        root: Root as `filesystem` takes it.
        filesystem: The local file system or S3.
    """

    url: str
    root: str
    filesystem: pafs.FileSystem

    @classmethod
    def open(cls, settings: Settings) -> "Lake":
        """The lake of the settings; a local root is created on first use.

        Raises:
            LakeError: The folder cannot be created or written.
        """
        url = settings.lake_url
        if url.startswith("s3://"):
            return cls(url=url, root=url.removeprefix("s3://"), filesystem=_s3(settings))
        try:
            Path(url).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LakeError(
                f"The lake folder {url} cannot be created ({error.strerror}).",
                "Set LAKEHOUSE_HOME or LAKE_URL to a folder that you can write to.",
            ) from None
        return cls(url=url, root=url, filesystem=pafs.LocalFileSystem())

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder."""
        return not self.url.startswith("s3://")

    def duckdb_path(self, relative: str) -> str:
        """A path below the root, as DuckDB's functions take it."""
        return f"{self.url}/{relative}"

    def exists(self, relative: str) -> bool:
        """Whether a file is there."""
        return bool(self._info(relative).type == pafs.FileType.File)

    def size_bytes(self, relative: str) -> int:
        """Size of a file; 0 if it is not there."""
        info = self._info(relative)
        return int(info.size or 0) if info.type == pafs.FileType.File else 0

    def list_files(self, relative: str, *, recursive: bool = False) -> list[str]:
        """Files below a folder, as sorted paths relative to the root; empty if the folder is not there."""
        selector = pafs.FileSelector(f"{self.root}/{relative}", recursive=recursive, allow_not_found=True)
        return self._relative(info for info in self._listed(selector) if info.type == pafs.FileType.File)

    def list_folders(self, relative: str) -> list[str]:
        """Folders directly below a folder, as sorted paths relative to the root."""
        selector = pafs.FileSelector(f"{self.root}/{relative}", recursive=False, allow_not_found=True)
        return self._relative(info for info in self._listed(selector) if info.type == pafs.FileType.Directory)

    def read_json(
        self, relative: str, mend: str = "Remove it: what it says is found again from the batch files."
    ) -> dict[str, Any] | None:
        """A JSON object, or None if the file is not there.

        Args:
            relative: The file.
            mend: What to do where it is damaged.

        Raises:
            LakeError: The file is not a JSON object.
        """
        if not self.exists(relative):
            return None
        try:
            value = json.loads(self.read_bytes(relative))
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise LakeError(f"{self.url}/{relative} is damaged: it is not a JSON object.", mend)
        return value

    def read_bytes(self, relative: str) -> bytes:
        """The content of a file.

        Raises:
            LakeError: It is not there or cannot be read.
        """
        try:
            with self.filesystem.open_input_stream(f"{self.root}/{relative}") as stream:
                return bytes(stream.read())
        except OSError as error:
            raise self._cannot_read(relative, error) from None

    def write_json(self, relative: str, value: dict[str, Any], *, durable: bool = False) -> None:
        """Write a JSON object."""
        self.write_bytes(relative, json.dumps(value, indent=1, sort_keys=True).encode(), durable=durable)

    def write_bytes(self, relative: str, content: bytes, *, durable: bool = False) -> None:
        """Write a file as a whole.

        Args:
            relative: The file.
            content: What it is to have.
            durable: Also after a power cut it is there: because another copy is removed next.

        Raises:
            LakeError: The lake cannot be written.
        """
        try:
            if self.is_local:
                path = Path(self.root, relative)
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.tmp")
                temporary.write_bytes(content)
                if durable:
                    sync_to_disk(temporary)
                temporary.replace(path)
                if durable:
                    sync_to_disk(path.parent)
            else:
                with self.filesystem.open_output_stream(f"{self.root}/{relative}") as stream:
                    stream.write(content)
        except OSError as error:
            raise self._cannot_write(relative, error) from None

    def write_parquet(self, relative: str, table: pa.Table) -> int:
        """Write an Arrow table as Parquet, compressed by ZSTD; returns its size in bytes."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        self.write_bytes(relative, content)
        return len(content)

    def write_query(self, connection: duckdb.DuckDBPyConnection, relative: str, query: str) -> None:
        """Write the rows of a query as one Parquet file, compressed by ZSTD."""
        try:
            if self.is_local:
                path = Path(self.root, relative)
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.tmp")
                _copy(connection, query, temporary)
                temporary.replace(path)
                return
            # Not straight into the bucket: DuckDB completes the upload of a query that fails half-way, over what was
            # there. A file is a month of one site.
            with TemporaryDirectory(prefix="lakehouse-") as folder:
                temporary = Path(folder, "rows.parquet")
                _copy(connection, query, temporary)
                self.write_bytes(relative, temporary.read_bytes())
        except (OSError, duckdb.IOException) as error:
            raise self._cannot_write(relative, error) from None

    def parquet_rows(self, relative: str) -> int:
        """Number of rows of a Parquet file, from its footer."""
        try:
            with self.filesystem.open_input_file(f"{self.root}/{relative}") as file:
                return int(pq.read_metadata(file).num_rows)
        except (OSError, pa.ArrowInvalid) as error:
            raise self._cannot_read(relative, error) from None

    def delete(self, relative: str) -> None:
        """Remove a file if it is there."""
        try:
            if self.exists(relative):
                self.filesystem.delete_file(f"{self.root}/{relative}")
        except OSError as error:
            # From a bucket the file is removed, and then Arrow writes an object for its folder, which not every server
            # takes: what counts is whether the file is gone.
            if self.is_local or self.exists(relative):
                raise self._cannot_write(relative, error) from None

    def delete_folder(self, relative: str) -> None:
        """Remove a folder and all below it, if it is there."""
        if self._info(relative).type == pafs.FileType.Directory:
            self.filesystem.delete_dir(f"{self.root}/{relative}")

    def _info(self, relative: str) -> pafs.FileInfo:
        try:
            return self.filesystem.get_file_info(f"{self.root}/{relative}")
        except OSError as error:
            raise self._cannot_read(relative, error) from None

    def _listed(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        try:
            return list(self.filesystem.get_file_info(selector))
        except OSError as error:
            raise self._cannot_read(selector.base_dir, error) from None

    def _relative(self, infos: Iterable[pafs.FileInfo]) -> list[str]:
        prefix = len(self.root) + 1
        return sorted(info.path[prefix:] for info in infos)

    def _cannot_write(self, relative: str, error: Exception) -> LakeError:
        return LakeError(
            f"The lake cannot be written: {self.url}/{relative} ({_first_line(error)}).",
            "Check the free space and the permissions of the folder, or the endpoint and keys of the bucket.",
        )

    def _cannot_read(self, relative: str, error: Exception) -> LakeError:
        return LakeError(
            f"The lake cannot be read: {self.url}/{relative} ({_first_line(error)}).",
            "Check the permissions of the folder, or the endpoint and keys of the bucket.",
        )


def raw_folder(site: str, collection: Collection = ENTRIES) -> str:
    """Folder of a site's batch files."""
    return f"raw/{collection.name}/site={site}"


def batch_file(site: str, batch: int, collection: Collection = ENTRIES) -> str:
    """One batch file of a site; numbers start at 1 and have no gaps when written."""
    return f"{raw_folder(site, collection)}/batch={batch:08d}.parquet"


@dataclass(frozen=True)
class RawFile:
    """A file of raw documents: of one batch, or of several in a row whose rows still say which batch they are of.

    Attributes:
        path: Relative to the root.
        first: Number of its first batch.
        last: Number of its last batch.
    """

    path: str
    first: int
    last: int


@dataclass(frozen=True)
class PrunedStretch:
    """Batches in a row whose raw files were moved into an archive at one time.

    Attributes:
        first: Number of the first batch.
        last: Number of the last batch.
        documents: Documents in them.
        deletions: Deletions in them.
        size_bytes: Size of their files.
        sha256: Hash of the names and hashes of their files, in hex.
        pruned_at: When they were moved, ISO 8601, UTC.
    """

    first: int
    last: int
    documents: int
    deletions: int
    size_bytes: int
    sha256: str
    pruned_at: str


@dataclass(frozen=True)
class Pruned:
    """What of a site's collection is not in the lake any more, as `pruned.json` says it.

    Attributes:
        archive: The folder that it was moved to, as it was named last.
        stretches: The batches, from the first on and without a gap.
    """

    archive: str
    stretches: tuple[PrunedStretch, ...]

    @property
    def until(self) -> int:
        """Number of the last batch that was moved."""
        return self.stretches[-1].last


def pruned_file(site: str, collection: Collection = ENTRIES) -> str:
    """Where it is kept which batches of a site lie in an archive."""
    return f"{raw_folder(site, collection)}/pruned.json"


def load_pruned(lake: Lake, site: str, collection: Collection = ENTRIES) -> Pruned | None:
    """What of a site's collection was moved into an archive; None if nothing was.

    Raises:
        LakeError: The file that says so is damaged.
    """
    path = pruned_file(site, collection)
    mend = "Take it from a backup. Do not remove it: it says that the raw files of the lake are not all there are."
    stored = lake.read_json(path, mend)
    if stored is None:
        return None
    try:
        stretches = tuple(PrunedStretch(**stretch) for stretch in stored["stretches"])
        pruned = Pruned(str(stored["archive"]), stretches)
        is_whole = [each.first for each in stretches] == [1, *(each.last + 1 for each in stretches[:-1])]
    except (KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise LakeError(f"{lake.url}/{path} is damaged: it does not say which batches were moved.", mend)
    return pruned


def save_pruned(lake: Lake, site: str, collection: Collection, pruned: Pruned) -> None:
    """Keep what was moved into an archive: from here on these batches count as being there."""
    lake.write_json(pruned_file(site, collection), asdict(pruned), durable=True)


def archives_file(site: str, collection: Collection = ENTRIES) -> str:
    """Where it is kept to which archives files of a site were ever copied."""
    return f"{raw_folder(site, collection)}/archives.json"


def load_archives(lake: Lake, site: str, collection: Collection = ENTRIES) -> tuple[str, ...]:
    """Every archive that may have raw files of a site's collection, also those whose files were brought back since.

    Raises:
        LakeError: A file that says so is damaged.
    """
    path, mend = archives_file(site, collection), "Take it from a backup: it says where raw files of the site lie."
    stored = lake.read_json(path, mend)
    archives = [] if stored is None else stored.get("archives")
    if not isinstance(archives, list):
        raise LakeError(f"{lake.url}/{path} is damaged: it does not name archives.", mend)
    pruned = load_pruned(lake, site, collection)
    return tuple(sorted({*map(str, archives), *([pruned.archive] if pruned else [])}))


def remember_archive(lake: Lake, site: str, collection: Collection, archive: str) -> None:
    """Keep that an archive has raw files of a site's collection, or is about to: whoever is forgotten is so there."""
    known = load_archives(lake, site, collection)
    lake.write_json(archives_file(site, collection), {"archives": sorted({*known, archive})}, durable=True)


def last_batch(lake: Lake, site: str, collection: Collection = ENTRIES) -> int:
    """Number of the last batch that was written, also if its file was pruned since; 0 if none was."""
    pruned = load_pruned(lake, site, collection)
    files = raw_files(lake, site, collection)
    return max([file.last for file in files] + ([pruned.until] if pruned else []), default=0)


def raw_files(lake: Lake, site: str, collection: Collection = ENTRIES) -> list[RawFile]:
    """The raw files of a site in the order of their batches, each batch in one of them.

    Files that a larger one has taken in do not count, nor do those that lie in an archive: a compaction or a pruning
    that was killed leaves some.
    """
    return [file for file, is_taken_in in _all_raw_files(lake, site, collection) if not is_taken_in]


def superseded_files(lake: Lake, site: str, collection: Collection = ENTRIES) -> list[RawFile]:
    """The raw files whose batches are all in a larger one, or in an archive, too."""
    return [file for file, is_taken_in in _all_raw_files(lake, site, collection) if is_taken_in]


def merged_file(site: str, first: int, last: int, collection: Collection = ENTRIES) -> str:
    """The file of several batches in a row."""
    return f"{raw_folder(site, collection)}/batch={first:08d}-{last:08d}.parquet"


def _all_raw_files(lake: Lake, site: str, collection: Collection) -> list[tuple[RawFile, bool]]:
    paths = lake.list_files(raw_folder(site, collection))
    files = [RawFile(path, *batches) for path in paths if (batches := batches_of(path)) is not None]
    pruned = load_pruned(lake, site, collection) if pruned_file(site, collection) in paths else None
    found, reached = [], pruned.until if pruned else 0
    # Of those that begin at the same batch the longest first.
    for file in sorted(files, key=lambda file: (file.first, -file.last)):
        found.append((file, file.last <= reached))
        reached = max(reached, file.last)
    return found


def batches_of(path: str) -> tuple[int, int] | None:
    """Numbers of the first and last batch in a raw file's name; None if the file is none."""
    match = re.fullmatch(r"batch=(\d+)(?:-(\d+))?\.parquet", path.rpartition("/")[2])
    return (int(match[1]), int(match[2] or match[1])) if match else None


def ingestion_state_file(site: str, collection: Collection = ENTRIES) -> str:
    """Where it is kept how far a site has been read."""
    return f"{raw_folder(site, collection)}/state.json"


def imports_file(site: str) -> str:
    """Where it is kept which files of a site have been imported."""
    return f"{raw_folder(site)}/imports.json"


def processing_state_file(site: str, collection: Collection = ENTRIES) -> str:
    """Where it is kept how far a site's batches have been processed."""
    return f"processed/{collection.name}/state/{site}.json"


# Which columns the processed files have: of a lake with another layout the files are written again once.
LAYOUT_FILE = "processed/layout.json"


def partition_file(kind: str, site: str, month: str, collection: Collection = ENTRIES) -> str:
    """The Parquet file of one kind, site and UTC month (`YYYY-MM`, or `undated` in quarantine)."""
    return f"processed/{collection.name}/kind={kind}/site={site}/month={month}/{collection.file_name}"


def partition_files(lake: Lake, kind: str, site: str, collection: Collection = ENTRIES) -> dict[str, str]:
    """The Parquet files of a kind and site, by month."""
    folder = f"processed/{collection.name}/kind={kind}/site={site}"
    files = lake.list_files(folder, recursive=True)
    name = f"/{collection.file_name}"
    return {file.split("/month=")[1].partition("/")[0]: file for file in files if file.endswith(name)}


def sql_text(value: str) -> str:
    """A text as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def sql_list(values: Iterable[str]) -> str:
    """Texts as an SQL list literal."""
    return "[" + ", ".join(sql_text(value) for value in values) + "]"


def _copy(connection: duckdb.DuckDBPyConnection, query: str, target: Path) -> None:
    connection.execute(f"copy ({query}) to {sql_text(str(target))} (format parquet, compression zstd)")


def sync_to_disk(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk, so that it is still there after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _s3(settings: Settings) -> pafs.FileSystem:
    # Arrow's client would send checksums that many servers other than Amazon's do not understand.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    scheme, separator, host = settings.s3_endpoint.partition("://")
    return pafs.S3FileSystem(
        access_key=settings.s3_access_key_id.get_secret_value() or None,
        secret_key=settings.s3_secret_access_key.get_secret_value() or None,
        region=settings.s3_region,
        endpoint_override=(host if separator else scheme).rstrip("/") or None,
        scheme=scheme if separator else "https",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
