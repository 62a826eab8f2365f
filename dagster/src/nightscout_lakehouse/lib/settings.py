"""Settings: the one place where the environment is read.

Everything can be set by an environment variable or in a `.env` file; `.env.example` documents each.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from nightscout_lakehouse.lib.errors import ConfigurationError

REPOSITORY_ROOT = Path(__file__).resolve().parents[4]
DBT_PROJECT_DIR = REPOSITORY_ROOT / "dbt"


class Settings(BaseSettings):
    """All settings of one lakehouse.

    Secrets are `SecretStr`, so that printing or logging the settings never shows them.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        env_ignore_empty=True,
    )

    home: Path = Field(Path(".lakehouse"), validation_alias="LAKEHOUSE_HOME")
    lake_url_setting: str = Field("", validation_alias="LAKE_URL")
    s3_endpoint: str = Field("", validation_alias="LAKE_S3_ENDPOINT")
    s3_region: str = Field("us-east-1", validation_alias="LAKE_S3_REGION")
    s3_access_key_id: SecretStr = Field(SecretStr(""), validation_alias="LAKE_S3_ACCESS_KEY_ID")
    s3_secret_access_key: SecretStr = Field(SecretStr(""), validation_alias="LAKE_S3_SECRET_ACCESS_KEY")
    database_url: SecretStr = Field(SecretStr(""), validation_alias="DATABASE_URL")
    warehouse_setting: str = Field("", validation_alias="LAKEHOUSE_WAREHOUSE")
    motherduck_token: SecretStr = Field(SecretStr(""), validation_alias="MOTHERDUCK_TOKEN")
    duckdb_memory_limit: str = Field("2GB", validation_alias="DUCKDB_MEMORY_LIMIT")
    duckdb_threads: int = Field(0, ge=0, validation_alias="DUCKDB_THREADS")

    secrets_file: Path | None = Field(None, validation_alias="LAKEHOUSE_SECRETS_FILE")

    sites_file: Path = Field(Path("sites.toml"), validation_alias="LAKEHOUSE_SITES_FILE")
    nightscout_url: SecretStr = Field(SecretStr(""), validation_alias="NIGHTSCOUT_URL")
    nightscout_token: SecretStr = Field(SecretStr(""), validation_alias="NIGHTSCOUT_TOKEN")
    nightscout_api_secret: SecretStr = Field(SecretStr(""), validation_alias="NIGHTSCOUT_API_SECRET")
    nightscout_site: str = Field("default", validation_alias="NIGHTSCOUT_SITE")
    nightscout_timezone: str = Field("", validation_alias="NIGHTSCOUT_TIMEZONE")
    sensor_interval_minutes: float | None = Field(
        None, gt=0, le=60, validation_alias="NIGHTSCOUT_SENSOR_INTERVAL_MINUTES"
    )

    first_fetch: Annotated[int | None, NoDecode] = Field(None, validation_alias="NIGHTSCOUT_FIRST_FETCH")
    window_days: int = Field(30, ge=1, le=366, validation_alias="NIGHTSCOUT_WINDOW_DAYS")
    overlap_hours: int = Field(48, ge=1, le=24 * 31, validation_alias="NIGHTSCOUT_OVERLAP_HOURS")
    reread_days_per_tick: int = Field(3, ge=0, le=366, validation_alias="NIGHTSCOUT_REREAD_DAYS_PER_TICK")
    max_count: int = Field(50_000, ge=1, validation_alias="NIGHTSCOUT_MAX_COUNT")
    timeout_seconds: float = Field(60.0, gt=0, validation_alias="NIGHTSCOUT_TIMEOUT_SECONDS")
    max_attempts: int = Field(5, ge=1, le=20, validation_alias="NIGHTSCOUT_MAX_ATTEMPTS")
    max_retry_wait_seconds: float = Field(60.0, gt=0, validation_alias="NIGHTSCOUT_MAX_RETRY_WAIT_SECONDS")
    max_concurrent_sites: int = Field(4, ge=1, le=64, validation_alias="NIGHTSCOUT_MAX_CONCURRENT_SITES")
    read_device_status: bool = Field(True, validation_alias="NIGHTSCOUT_READ_DEVICE_STATUS")
    api_v3: Literal["auto", "off"] = Field("auto", validation_alias="NIGHTSCOUT_API_V3")
    accept_mass_deletions: bool = Field(False, validation_alias="NIGHTSCOUT_ACCEPT_MASS_DELETIONS")

    stale_minutes: int = Field(60, ge=5, validation_alias="LAKEHOUSE_STALE_MINUTES")
    quarantine_warn_pct: float = Field(5.0, ge=0, le=100, validation_alias="LAKEHOUSE_QUARANTINE_WARN_PCT")
    drop_dir_setting: Path | None = Field(None, validation_alias="LAKEHOUSE_DROP_DIR")
    drop_timezone: str = Field("", validation_alias="LAKEHOUSE_DROP_TIMEZONE")
    drop_date_order: Literal["day_first", "month_first"] | None = Field(
        None, validation_alias="LAKEHOUSE_DROP_DATE_ORDER"
    )

    alert_urls: SecretStr = Field(SecretStr(""), validation_alias="LAKEHOUSE_ALERT_URLS")
    alert_escalation_urls: SecretStr = Field(SecretStr(""), validation_alias="LAKEHOUSE_ALERT_ESCALATION_URLS")
    alert_escalate_minutes: int = Field(15, ge=1, le=24 * 60, validation_alias="LAKEHOUSE_ALERT_ESCALATE_MINUTES")
    alert_quiet_hours: str = Field(
        "", pattern=r"^$|^\d\d:\d\d-\d\d:\d\d$", validation_alias="LAKEHOUSE_ALERT_QUIET_HOURS"
    )
    ui_url: str = Field("", validation_alias="LAKEHOUSE_UI_URL")
    openlineage_disabled: bool = Field(False, validation_alias="OPENLINEAGE_DISABLED")
    openlineage_url: SecretStr = Field(SecretStr(""), validation_alias="OPENLINEAGE_URL")
    openlineage_endpoint: str = Field("api/v1/lineage", validation_alias="OPENLINEAGE_ENDPOINT")
    openlineage_api_key: SecretStr = Field(SecretStr(""), validation_alias="OPENLINEAGE_API_KEY")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", validation_alias="LAKEHOUSE_LOG_LEVEL")
    log_format: Literal["text", "json"] = Field("text", validation_alias="LAKEHOUSE_LOG_FORMAT")
    dagster_postgres_url: SecretStr = Field(SecretStr(""), validation_alias="DAGSTER_POSTGRES_URL")

    superset_port: int = Field(8088, ge=1, le=65535, validation_alias="SUPERSET_PORT")
    superset_admin_password: SecretStr = Field(SecretStr(""), validation_alias="SUPERSET_ADMIN_PASSWORD")
    superset_secret_key: SecretStr = Field(SecretStr(""), validation_alias="SUPERSET_SECRET_KEY")
    superset_https: bool = Field(False, validation_alias="SUPERSET_HTTPS")
    superset_database_url: SecretStr = Field(SecretStr(""), validation_alias="SUPERSET_DATABASE_URL")
    bi_reader_password: SecretStr = Field(SecretStr(""), validation_alias="BI_READER_PASSWORD")

    dagster_port: int = Field(3000, ge=1, le=65535, validation_alias="DAGSTER_PORT")
    run_history_days: float = Field(3.0, ge=0.1, le=3650, validation_alias="LAKEHOUSE_RUN_HISTORY_DAYS")
    lock_timeout_seconds: float = Field(900.0, ge=0, validation_alias="LAKEHOUSE_LOCK_TIMEOUT_SECONDS")

    @field_validator("first_fetch", mode="before")
    @classmethod
    def _all_or_a_number(cls, value: object) -> object:
        return None if isinstance(value, str) and value.strip().lower() == "all" else value

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _in_any_case(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        return value.strip().upper() if info.field_name == "log_level" else value.strip().lower()

    @field_validator("home", "sites_file", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def lake_url(self) -> str:
        """Root of the lake: an absolute folder or an `s3://bucket[/prefix]` URL, no trailing slash."""
        if self.lake_url_setting.startswith("s3://"):
            return self.lake_url_setting.rstrip("/")
        if "://" in self.lake_url_setting:
            scheme = urlsplit(self.lake_url_setting).scheme
            raise ConfigurationError(
                f"LAKE_URL starts with {scheme}://, which is not supported.",
                "Use a folder or s3://bucket.",
            )
        root = Path(self.lake_url_setting).expanduser() if self.lake_url_setting else self.home / "lake"
        return str(root.absolute())

    @property
    def drop_dir(self) -> Path:
        """Where people drop exported files, in one folder per site."""
        return self.drop_dir_setting.expanduser().absolute() if self.drop_dir_setting else self.home / "drop"

    @property
    def warehouse_path(self) -> Path:
        """The DuckDB file that dbt builds, where the warehouse is a file."""
        if self.warehouse_setting and not self.is_warehouse_remote:
            return Path(self.warehouse_setting).expanduser().absolute()
        return self.home / "warehouse.duckdb"

    @property
    def warehouse_scratch_dir(self) -> Path:
        """Where DuckDB puts what of the warehouse does not fit into memory; it stays where a process was killed."""
        return self.warehouse_path.with_name(f"{self.warehouse_path.name}.tmp")

    @property
    def is_warehouse_remote(self) -> bool:
        """Whether the warehouse is a database of MotherDuck."""
        return self.warehouse_setting.startswith("md:")

    @property
    def warehouse(self) -> str:
        """The warehouse as DuckDB and dbt open it: a file, or `md:database`."""
        if not self.is_warehouse_remote:
            return str(self.warehouse_path)
        if not re.fullmatch(r"md:[A-Za-z_][A-Za-z0-9_]*", self.warehouse_setting):
            raise ConfigurationError(
                "LAKEHOUSE_WAREHOUSE is not a database of MotherDuck.",
                "Write it as md:database; the token goes into MOTHERDUCK_TOKEN.",
            )
        return self.warehouse_setting

    @property
    def has_warehouse(self) -> bool:
        """Whether the pipeline has made a warehouse; of a remote one only opening it tells."""
        return self.is_warehouse_remote or self.warehouse_path.is_file()

    @property
    def postgres_dir(self) -> Path:
        """Data, log and credentials of the embedded Postgres."""
        return self.home / "postgres"

    @property
    def dagster_home(self) -> Path:
        """Dagster's instance folder: runs, schedules, event logs."""
        return self.home / "dagster"

    @property
    def dbt_dir(self) -> Path:
        """Where dbt keeps its compiled artefacts and logs."""
        return self.home / "dbt"

    @property
    def quality_dir(self) -> Path:
        """Results and reports of the validations."""
        return self.home / "quality"

    @property
    def alerts_dir(self) -> Path:
        """State and outbox of the alerts."""
        return self.home / "alerts"

    @property
    def run_url(self) -> str:
        """Where people open a run in the Dagster UI; its id follows."""
        return f"{self.ui_url.rstrip('/') or f'http://127.0.0.1:{self.dagster_port}'}/runs/"

    @property
    def lineage_dir(self) -> Path:
        """OpenLineage events, and those that are still to be sent."""
        return self.home / "lineage"

    @property
    def journal_path(self) -> Path:
        """What every run did, until Postgres knows it and for some weeks after."""
        return self.home / "runs.sqlite"

    @property
    def log_dir(self) -> Path:
        """The log, as lines of JSON."""
        return self.home / "logs"

    @property
    def metrics_path(self) -> Path:
        """What Prometheus may know of the runs, as text."""
        return self.home / "metrics" / "lakehouse.prom"

    @property
    def superset_dir(self) -> Path:
        """Superset's secret key and logs."""
        return self.home / "superset"

    @property
    def duckdb_extension_dir(self) -> Path:
        """Links to the DuckDB extensions that came as wheels."""
        return self.home / "duckdb_extensions"

    @property
    def lock_path(self) -> Path:
        """File whose lock the one writing run of this lake holds."""
        return self.home / "lake.lock"


def load_settings() -> Settings:
    """Read the settings from the environment and `.env`.

    Raises:
        ConfigurationError: A value is malformed; names the variable, never shows a secret's value.
    """
    try:
        # pydantic's own argument: of several files the last one counts, the environment before all.
        return Settings(_env_file=_secret_files())
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
        )
        raise ConfigurationError(
            f"A setting is malformed: {problems}.",
            "See .env.example for what each takes.",
        ) from None


def site_secret(variable: str) -> SecretStr:
    """The secret that a site of `sites.toml` names by its environment variable; empty if it is not set."""
    return SecretStr(os.environ.get(variable, "") or _from_files(variable))


def _from_files(variable: str) -> str:
    from dotenv import dotenv_values

    return next((value for file in reversed(_secret_files()) if (value := dotenv_values(file).get(variable))), "")


def _secret_files() -> tuple[Path, ...]:
    """`.env`, and the file that `LAKEHOUSE_SECRETS_FILE` names, which only its owner may read.

    Raises:
        ConfigurationError: That file is not there, or others can read it.
    """
    from dotenv import dotenv_values

    dotenv = Path(".env")
    named = os.environ.get("LAKEHOUSE_SECRETS_FILE") or dotenv_values(dotenv).get("LAKEHOUSE_SECRETS_FILE")
    if not named:
        return (dotenv,)
    path = Path(named).expanduser()
    if not path.is_file():
        raise ConfigurationError(f"LAKEHOUSE_SECRETS_FILE names {path}, which is not there.", "Make it, or unset it.")
    if can_be_read_by_others(path):
        raise ConfigurationError(f"{path} holds secrets, and others can read it.", f"Run: chmod 600 {path}")
    return (dotenv, path)


def can_be_read_by_others(path: Path) -> bool:
    """Whether a file's permissions let its group or everybody read or write it."""
    return bool(path.stat().st_mode & 0o066)
