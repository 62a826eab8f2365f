"""What gives a person away in files and tables: their ids, devices and notes, and the name of their site.

A probe is a text that stands in the documents of one site and of no other. Files are searched byte by byte, compressed
ones after decompression; tables, whose files are compressed in ways of their own, are searched by SQL.
"""

import gzip
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Final

import duckdb

from nightscout_lakehouse.lib.lake import Lake, sql_text
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS, Collection
from nightscout_lakehouse.lib.partition_counts import HIVE_TYPES

_IDS_PER_COLLECTION: Final = 16
_TEXTS_PER_COLUMN: Final = 12
# Shorter texts stand everywhere by chance.
_SHORTEST: Final = 8
_IDENTIFYING: Final = ("device", "entered_by", "notes")
_BLOCK_BYTES: Final = 8 << 20
_NAME_CHARACTER: Final = "A-Za-z0-9_.-"


@dataclass(frozen=True)
class Traces:
    """What to search for.

    Attributes:
        site: Name of the site.
        probes: Texts of its documents that no other site has.
    """

    site: str
    probes: tuple[str, ...]

    @cached_property
    def _bytes(self) -> tuple[bytes, ...]:
        return tuple(probe.encode() for probe in self.probes)

    @cached_property
    def name_pattern(self) -> str:
        """A pattern for the name as a word of its own, as Python and Postgres take it."""
        return rf"(?<![{_NAME_CHARACTER}]){re.escape(self.site)}(?![A-Za-z0-9_-])"

    @cached_property
    def _name(self) -> re.Pattern[bytes]:
        return re.compile(self.name_pattern.encode())

    def found_in(self, content: bytes, *, by_name: bool = True) -> str:
        """What of it stands in some bytes: `ids, devices or notes`, `the name`, or nothing."""
        if any(probe in content for probe in self._bytes):
            return "ids, devices or notes"
        if by_name and self.site.encode() in content and self._name.search(content):
            return "the name"
        return ""

    def found_in_file(self, path: Path) -> str:
        """The same of a file, compressed ones after decompression."""
        overlap = max([len(self.site), *map(len, self._bytes)], default=0) + 1
        with _opened(path) as file:
            tail, found = b"", ""
            while block := file.read(_BLOCK_BYTES):
                found = self.found_in(tail + block) or found
                if found and found != "the name":
                    return found
                tail = block[-overlap:]
        return found


@dataclass(frozen=True)
class Found:
    """A place where something of the person still stands, and what."""

    place: str
    what: str


def gather(engine: duckdb.DuckDBPyConnection, lake: Lake, site: str) -> Traces:
    """Pick the probes of a site from all its documents in the lake."""
    probes: list[str] = []
    for collection in COLLECTIONS:
        for source, id_column, columns in _sources(lake, collection):
            others = f"select {id_column} from {source} where site <> $site"
            ids = f"""
                select distinct {id_column} from {source}
                where site = $site and length({id_column}) >= {_SHORTEST} and {id_column} not in ({others})
                order by hash({id_column}) limit {_IDS_PER_COLLECTION}
            """
            probes += [row[0] for row in engine.execute(ids, {"site": site}).fetchall()]
            for column in columns:
                texts = f"""
                    select distinct {column} from {source}
                    where site = $site and length({column}) >= {_SHORTEST}
                        and {column} not in (
                            select {column} from {source} where site <> $site and {column} is not null
                        )
                    order by hash({column}) limit {_TEXTS_PER_COLUMN}
                """
                probes += [row[0] for row in engine.execute(texts, {"site": site}).fetchall()]
    return Traces(site, tuple(sorted(set(probes))))


def _sources(lake: Lake, collection: Collection) -> Iterator[tuple[str, str, list[str]]]:
    """What to read a collection's raw and processed documents by, the column of their ids, and of telling texts."""
    folders = lake.list_folders(f"raw/{collection.name}")
    # Where all raw files lie in an archive, only states are left.
    if any(path.endswith(".parquet") for folder in folders for path in lake.list_files(folder)):
        pattern = sql_text(lake.duckdb_path(f"raw/{collection.name}/site=*/*.parquet"))
        yield (
            f"read_parquet({pattern}, hive_partitioning = true, hive_types = {{'site': 'varchar'}})",
            "document_id",
            [],
        )
    if any(lake.list_folders(f"processed/{collection.name}/kind={kind}") for kind in collection.all_kinds):
        pattern = sql_text(lake.duckdb_path(f"processed/{collection.name}/kind=*/site=*/month=*/*.parquet"))
        columns = [column for column in _IDENTIFYING if column in collection.columns]
        yield f"read_parquet({pattern}, hive_partitioning = true, hive_types = {HIVE_TYPES})", "nightscout_id", columns


def in_lake(engine: duckdb.DuckDBPyConnection, lake: Lake, traces: Traces) -> list[Found]:
    """Where the lake still has documents of the site, or with one of the ids."""
    found = []
    for collection in COLLECTIONS:
        for source, id_column, columns in _sources(lake, collection):
            is_trace = " or ".join(f"coalesce(list_contains($probes, {name}), false)" for name in (id_column, *columns))
            query = f"select count(*) from {source} where site = $site or {is_trace}"
            (rows,) = engine.execute(query, {"site": traces.site, "probes": list(traces.probes)}).fetchall()
            if rows[0]:
                found.append(Found(f"{lake.url}, {collection.name}", f"{rows[0]} documents"))
    return found


def in_warehouse(warehouse: duckdb.DuckDBPyConnection, traces: Traces) -> list[Found]:
    """Which tables of the warehouse still have rows of the site, or with one of the probes."""
    tables = warehouse.execute(
        """
        select schema_name, table_name, list(column_name), bool_or(column_name = 'site')
        from duckdb_columns()
        join duckdb_tables() using (schema_name, table_name)
        where data_type = 'VARCHAR'
        group by all
        """
    ).fetchall()
    found = []
    for schema, table, columns, has_site in tables:
        texts = ", ".join(f'"{column}"' for column in columns)
        conditions = [f"regexp_matches(concat_ws(chr(10), {texts}), $pattern)"] if traces.probes else []
        conditions += ["site = $site"] if has_site else []
        if not conditions:
            continue
        values = {"pattern": "|".join(_re2_literal(probe) for probe in traces.probes), "site": traces.site}
        used = {name: value for name, value in values.items() if any(f"${name}" in part for part in conditions)}
        query = f'select count(*) from "{schema}"."{table}" where {" or ".join(conditions)}'
        (rows,) = warehouse.execute(query, used).fetchall()
        if rows[0]:
            found.append(Found(f"warehouse, {schema}.{table}", f"{rows[0]} rows"))
    return found


def in_files(paths: Iterable[Path], traces: Traces, root: Path) -> list[Found]:
    """Which files still hold a trace, in their content or their name."""
    found = []
    for path in paths:
        try:
            what = traces.found_in_file(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            what = f"it cannot be read ({error.strerror})"
        if not what and traces.found_in(str(path.relative_to(root)).encode()):
            what = "the name, in its own"
        if what:
            found.append(Found(str(path.relative_to(root)), what))
    return found


def every_file(root: Path, leave_out: Sequence[Path] = ()) -> Iterator[Path]:
    """All regular files below a folder."""
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if Path(parent, name) not in leave_out)
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _re2_literal(text: str) -> str:
    return re.sub(r"([^A-Za-z0-9_ ])", lambda match: rf"\x{{{ord(match[1]):x}}}", text)


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzip else path.open("rb")  # type: ignore[return-value]
