"""Gives dbt's DuckDB connections what all of ours have: UTC, limits, access to the lake."""

from dbt.adapters.duckdb.plugins import BasePlugin
from duckdb import DuckDBPyConnection

from nightscout_lakehouse.lib.settings import load_settings
from nightscout_lakehouse.lib.warehouse import configure_connection


class Plugin(BasePlugin):
    """Loaded by name from `dbt/profiles.yml`."""

    def configure_connection(self, conn: DuckDBPyConnection) -> None:
        """Called once for each connection that dbt opens."""
        configure_connection(conn, load_settings())
