"""How datasets are named, by OpenLineage's naming spec: the same one the same by every producer."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS, ENTRIES, Collection
from nightscout_lakehouse.lib.serving import serving_location
from nightscout_lakehouse.lib.settings import Settings

NAMESPACE = "nightscout"
_RAW_ASSETS = {f"raw_{collection.name}": collection for collection in COLLECTIONS} | {
    "reread_nightscout_entries": ENTRIES,
    "raw_file_drop": ENTRIES,
    "imported_files": ENTRIES,
}
_PROCESSED_ASSETS = {f"processed_{collection.name}": collection for collection in COLLECTIONS}
PUBLISHED_PREFIX = "published_"
# What each run did, told by the runs themselves.
RUN_RECORDS = ("pipeline_runs", "pipeline_run_sites")
# In a namespace; a space is among them, and makes no URI either.
_REFUSED_BY_MARQUEZ = re.compile(r"[^a-zA-Z0-9:;=/_.@+-]")
FILE_DROP = "raw_file_drop"
IMPORT = "imported_files"


@dataclass(frozen=True, order=True)
class DatasetName:
    """A dataset: where it is, and what it is called there."""

    namespace: str
    name: str


@dataclass(frozen=True)
class DatasetNames:
    """The names of all datasets of one lakehouse.

    Attributes:
        lake_url: Root of the lake.
        drop_dir: Where exported files are dropped.
        warehouse: Path of the DuckDB file, as it can stand in a namespace.
        postgres: `host:port` and database of the serving database; None while it has never been started.
    """

    lake_url: str
    drop_dir: str
    warehouse: str
    postgres: tuple[str, str] | None = None

    @classmethod
    def of(cls, settings: Settings) -> "DatasetNames":
        """The names by the settings; starts nothing."""
        return cls(
            lake_url=settings.lake_url,
            drop_dir=str(settings.drop_dir),
            warehouse=_REFUSED_BY_MARQUEZ.sub("_", str(settings.warehouse_path)),
            postgres=serving_location(settings),
        )

    def api(self, collection: Collection) -> DatasetName:
        """A collection of the Nightscout servers: what it is, not where, since there are many servers."""
        return DatasetName(NAMESPACE, collection.api_path.removeprefix("/").removesuffix(".json"))

    def raw(self, collection: Collection) -> DatasetName:
        """The batch files of a collection."""
        return self._lake(f"raw/{collection.name}")

    def processed(self, collection: Collection) -> DatasetName:
        """The typed Parquet files of a collection, which the warehouse shows as the view `lake.…`."""
        return self._lake(f"processed/{collection.name}")

    def drop(self) -> DatasetName:
        """The folder of dropped files."""
        return DatasetName("file", self.drop_dir)

    def exports(self) -> DatasetName:
        """Files that are imported from anywhere; their own names may name a person."""
        return DatasetName("file", "exported_files")

    def in_warehouse(self, relation: str) -> DatasetName:
        """A table or view of DuckDB, named with its schema; the views over the lake are the lake's own datasets."""
        for collection in COLLECTIONS:
            if relation == f"lake.{collection.name}":
                return self.processed(collection)
        return self.warehouse_name(relation)

    def warehouse_name(self, relation: str) -> DatasetName:
        """A table or view of DuckDB as such."""
        stem = self.warehouse.rpartition("/")[2].rpartition(".")[0]
        return DatasetName(f"duckdb://{self.warehouse}", f"{stem}.{relation}")

    def in_postgres(self, relation: str) -> DatasetName | None:
        """A table of the serving database, named with its schema."""
        if self.postgres is None:
            return None
        address, database = self.postgres
        return DatasetName(f"postgres://{address}", f"{database}.{relation}")

    def relation(self, engine: str, relation: str) -> DatasetName | None:
        """A table by the engine that holds it: `postgres` or `duckdb`."""
        return self.in_postgres(relation) if engine == "postgres" else self.in_warehouse(relation)

    def of_asset(self, asset: str) -> DatasetName | None:
        """What an asset writes that is no dbt model, by its name."""
        if asset in _RAW_ASSETS:
            return self.raw(_RAW_ASSETS[asset])
        if asset in _PROCESSED_ASSETS:
            return self.processed(_PROCESSED_ASSETS[asset])
        if asset.startswith(PUBLISHED_PREFIX):
            return self.in_postgres(f"curated.{asset.removeprefix(PUBLISHED_PREFIX)}")
        if asset in RUN_RECORDS:
            return self.in_postgres(f"ops.{asset}")
        return None

    def _lake(self, relative: str) -> DatasetName:
        if self.lake_url.startswith("s3://"):
            parts = urlsplit(self.lake_url)
            prefix = parts.path.strip("/")
            return DatasetName(f"s3://{parts.netloc}", f"{prefix}/{relative}" if prefix else relative)
        return DatasetName("file", f"{self.lake_url}/{relative}")


def raw_collection(asset: str) -> Collection | None:
    """The collection whose batch files an asset writes; None if it writes none."""
    return _RAW_ASSETS.get(asset)


def processed_collection(asset: str) -> Collection | None:
    """The collection that an asset types; None if it types none."""
    return _PROCESSED_ASSETS.get(asset)
