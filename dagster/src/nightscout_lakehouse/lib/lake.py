"""The lake: plain files under one root, a local folder or an S3 bucket, with the same code for both.

Layout below the root:

    raw/<collection>/site=<site>/batch=<number>.parquet         documents as they came, immutable
    raw/<collection>/site=<site>/batch=<first>-<last>.parquet   the same of several batches (`lakehouse compact`)
    raw/<collection>/site=<site>/state.json                     how far the site has been read
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
from dataclasses import dataclass
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

    def read_json(self, relative: str) -> dict[str, Any] | None:
        """A JSON object, or None if the file is not there.

        Raises:
            LakeError: The file is not a JSON object.
        """
        if not self.exists(relative):
            return None
        with self.filesystem.open_input_stream(f"{self.root}/{relative}") as stream:
            content = bytes(stream.read())
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise LakeError(
                f"{self.url}/{relative} is damaged: it is not a JSON object.",
                "Remove it: what it says is found again from the batch files.",
            )
        return value

    def write_json(self, relative: str, value: dict[str, Any]) -> None:
        """Write a JSON object."""
        self.write_bytes(relative, json.dumps(value, indent=1, sort_keys=True).encode())

    def write_bytes(self, relative: str, content: bytes) -> None:
        """Write a file as a whole.

        Raises:
            LakeError: The lake cannot be written.
        """
        try:
            if self.is_local:
                path = Path(self.root, relative)
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.tmp")
                temporary.write_bytes(content)
                temporary.replace(path)
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


def batch_number(path: str) -> int | None:
    """The number in a batch file's name, the last one where there are several; None if the file is none."""
    found = _batches_of(path)
    return found[1] if found else None


def raw_files(lake: Lake, site: str, collection: Collection = ENTRIES) -> list[RawFile]:
    """The raw files of a site in the order of their batches, each batch in one of them.

    Files that a larger one has taken in do not count: a compaction that was killed leaves some.
    """
    return [file for file, is_taken_in in _all_raw_files(lake, site, collection) if not is_taken_in]


def superseded_files(lake: Lake, site: str, collection: Collection = ENTRIES) -> list[RawFile]:
    """The raw files whose batches are all in a larger one too."""
    return [file for file, is_taken_in in _all_raw_files(lake, site, collection) if is_taken_in]


def merged_file(site: str, first: int, last: int, collection: Collection = ENTRIES) -> str:
    """The file of several batches in a row."""
    return f"{raw_folder(site, collection)}/batch={first:08d}-{last:08d}.parquet"


def _all_raw_files(lake: Lake, site: str, collection: Collection) -> list[tuple[RawFile, bool]]:
    paths = [(path, _batches_of(path)) for path in lake.list_files(raw_folder(site, collection))]
    files = [RawFile(path, *batches) for path, batches in paths if batches is not None]
    found, reached = [], 0
    # Of those that begin at the same batch the longest first.
    for file in sorted(files, key=lambda file: (file.first, -file.last)):
        found.append((file, file.last <= reached))
        reached = max(reached, file.last)
    return found


def _batches_of(path: str) -> tuple[int, int] | None:
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
