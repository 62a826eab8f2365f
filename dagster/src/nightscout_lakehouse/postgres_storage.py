"""Dagster's storage in Postgres, with the event log's connections kept.

Dagster connects anew for everything that it writes or asks, which is several times for each of some 850 events of a
run: as much work as the models. See docs/decisions/0019-event-log.md.
"""

from typing import Any, Final

from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy import create_engine

# Dagster asks the log by a second connection while it uses the first.
_KEPT_CONNECTIONS: Final = 2
# A connection that has waited this long is made anew.
_RECYCLE_SECONDS: Final = 600


class OpenPostgresEventLogStorage(PostgresEventLogStorage):
    """The same tables as Dagster's own; a process keeps its connections to them."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url, inst_data=inst_data)
        self._engine = create_engine(
            postgres_url,
            isolation_level="AUTOCOMMIT",
            pool_size=_KEPT_CONNECTIONS,
            max_overflow=-1,
            # The server may have been started anew meanwhile.
            pool_pre_ping=True,
            pool_recycle=_RECYCLE_SECONDS,
        )

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "OpenPostgresEventLogStorage":
        """What `dagster.yaml` asks for."""
        return cls(pg_url_from_config(config_value), inst_data)

    def dispose(self) -> None:
        """Close the connections."""
        super().dispose()
        self._engine.dispose()


class OpenPostgresStorage(DagsterPostgresStorage):
    """Dagster's own, but for the event log."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url, inst_data=inst_data)
        self._event_log_storage = OpenPostgresEventLogStorage(postgres_url)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> "OpenPostgresStorage":
        """What `dagster.yaml` asks for."""
        return cls(pg_url_from_config(config_value), inst_data)

    @property
    def event_storage_data(self) -> ConfigurableClassData | None:
        """How another process makes this event log."""
        if self.inst_data is None:
            return None
        return ConfigurableClassData(__name__, OpenPostgresEventLogStorage.__name__, self.inst_data.config_yaml)
