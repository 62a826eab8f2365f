"""The dbt project, run in this process by dbt's own programmatic runner.

The first invocation in a process costs seconds of imports and parsing, the next ones little: see
docs/decisions/0005-dbt-in-process.md.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from filelock import FileLock

from nightscout_lakehouse.lib.data_tests import forget_checks, models_that_passed, record_checks
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.model_versions import (
    built_state,
    is_built,
    mark_everything_changed,
    model_versions,
    outdated_models,
    record_build,
    record_versions,
)
from nightscout_lakehouse.lib.parsed_project import ParsedProject, project_fingerprint
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.settings import DBT_PROJECT_DIR, Settings
from nightscout_lakehouse.lib.warehouse import motherduck_config, open_warehouse

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest

logger = logging.getLogger(__name__)

Target = Literal["duckdb", "postgres"]

# The manifests that were read or made in this process, by the fingerprint of the project.
_MANIFESTS: dict[str, Mapping[str, Any]] = {}


@dataclass(frozen=True)
class DbtNodeResult:
    """What became of one model or test.

    Attributes:
        unique_id: dbt's id of the node.
        name: Its name.
        resource_type: `model`, `test` or `unit_test`.
        status: `success`, `pass`, `warn`, `fail`, `error` or `skipped`.
        message: What dbt says of it.
        failures: Rows that a test found.
        rows_affected: Rows that a model wrote, where the adapter says so.
        execution_seconds: Duration.
        relation: The table or view, with its schema.
        is_table: Whether it is a table.
        live_rows_of: The collection whose live documents are the model's rows, one each; None if they are not.
        column_descriptions: What its columns mean, by their names.
    """

    unique_id: str
    name: str
    resource_type: str
    status: str
    message: str | None
    failures: int | None
    rows_affected: int | None
    execution_seconds: float
    relation: str | None
    is_table: bool
    live_rows_of: str | None = None
    column_descriptions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DbtBuildResult:
    """The results of one invocation, in the order of execution."""

    nodes: tuple[DbtNodeResult, ...]


class DbtError(LakehouseError):
    """A model or a test of severity error failed, or dbt could not start.

    Attributes:
        result: What ran before; None if nothing did.
    """

    def __init__(self, message: str, hint: str = "", result: DbtBuildResult | None = None) -> None:
        super().__init__(message, hint)
        self.result = result


class DbtProject:
    """Builds the models of the repository's dbt project.

    Args:
        settings: Whose warehouse to build, and where artefacts and logs go.
        postgres: The serving database, for the target `postgres`.
    """

    def __init__(self, settings: Settings, postgres: PostgresConnection | None = None) -> None:
        self._settings = settings
        self._postgres = postgres

    def prepare_manifest(self) -> Path:
        """The manifest of the project as it is now; parsed only when a file or a version has changed.

        Raises:
            DbtError: The project does not parse; names the file.
        """
        return self._parsed("duckdb").manifest_file()

    def _manifest(self) -> Mapping[str, Any]:
        fingerprint = project_fingerprint(DBT_PROJECT_DIR)
        if fingerprint not in _MANIFESTS:
            _MANIFESTS[fingerprint] = json.loads(self.prepare_manifest().read_bytes())
        return _MANIFESTS[fingerprint]

    def build(
        self, target: Target, select: Sequence[str], *, full_refresh: bool = False, data_tests: bool = True
    ) -> DbtBuildResult:
        """Build models with their tests; after a change of the models' code, the history is built anew.

        Args:
            target: `duckdb` for staging to curated, `postgres` for the marts.
            select: Names of models, or any of dbt's selectors.
            full_refresh: Build incremental models anew, whatever changed.
            data_tests: False builds the models alone; the next tests look at what these have not seen.

        Raises:
            DbtError: A model failed, or a test of severity error; the result is attached.
        """
        # Unit tests check the code, not the data; they run with the test suite.
        arguments = ["build", "--exclude-resource-type", "unit_test", "--indirect-selection", "cautious"]
        if not data_tests:
            arguments += ["--exclude-resource-type", "test"]
        arguments += ["--select", *select]
        if target == "postgres":
            return self._invoke(target, arguments)
        manifest = self._manifest()
        versions = model_versions(manifest)
        with open_warehouse(self._settings) as warehouse:
            outdated = outdated_models(warehouse, versions)
            if outdated:
                logger.info("The code of %s changed: building the history anew.", ", ".join(outdated))
            if outdated or full_refresh:
                arguments.append("--full-refresh")
                mark_everything_changed(warehouse)
        try:
            result = self._invoke(target, arguments)
        except DbtError as error:
            self._record(error.result, versions, manifest)
            raise
        self._record(result, versions, manifest)
        return result

    def build_if_changed(self, target: Target, models: Sequence[str], position: str = "") -> DbtBuildResult | None:
        """Build models, unless the same code has built them from the same data and all their tests have passed.

        Args:
            target: As for `build`.
            models: Names of models.
            position: Where what they read stands, for the marts: when it was published last.

        Returns:
            None if nothing has changed.

        Raises:
            DbtError: As `build` does.
        """
        all_versions = model_versions(self._manifest())
        versions = {name: all_versions[name] for name in models}
        selection = f"{target}: {', '.join(sorted(models))}"
        with open_warehouse(self._settings) as warehouse:
            if is_built(warehouse, selection, built_state(warehouse, versions, position)):
                return None
        result = self.build(target, models)
        if all(node.status in ("success", "pass") for node in result.nodes):
            with open_warehouse(self._settings) as warehouse:
                record_build(warehouse, selection, built_state(warehouse, versions, position))
        return result

    def check(self, *, full: bool) -> DbtBuildResult:
        """Run the data tests of staging to curated; the marts are tested whole at every build.

        Args:
            full: Look at the whole history, not only at what no tests have passed yet.

        Raises:
            DbtError: A test of severity error failed; the result is attached. What failed is looked at again at every
                tick until it is mended.
        """
        manifest = self._manifest()
        if full:
            with open_warehouse(self._settings) as warehouse:
                forget_checks(warehouse)
        arguments = ["test", "--exclude-resource-type", "unit_test", "--indirect-selection", "cautious"]
        arguments += ["--select", "tag:stg", "tag:int", "tag:curated"]
        try:
            result = self._invoke("duckdb", arguments)
        except DbtError as error:
            self._record(error.result, {}, manifest)
            raise
        self._record(result, {}, manifest)
        return result

    def _record(self, result: DbtBuildResult | None, versions: Mapping[str, str], manifest: Mapping[str, Any]) -> None:
        nodes = result.nodes if result else ()
        built = [node.name for node in nodes if node.is_table and node.status == "success"]
        passed = {node.unique_id for node in nodes if node.status == "pass"}
        with open_warehouse(self._settings) as warehouse:
            record_versions(warehouse, {name: versions[name] for name in built})
            record_checks(warehouse, models_that_passed(manifest, passed))

    def unit_test(self) -> DbtBuildResult:
        """Run the unit tests of the models.

        Raises:
            DbtError: One failed.
        """
        return self._invoke("duckdb", ["test", "--select", "test_type:unit"])

    def _target_dir(self, target: Target) -> Path:
        # One for each target: dbt parses everything anew where the target of the last parse was another.
        return self._settings.dbt_dir / target

    def _invoke(self, target: Target, arguments: Sequence[str]) -> DbtBuildResult:
        from dbt.cli.main import dbtRunner

        manifest = self._parsed(target).manifest()
        with self._dbt(target):
            invocation = dbtRunner(manifest=manifest).invoke([*arguments, *self._common_arguments(target)])
        results = getattr(invocation.result, "results", None)
        if results is None:
            if invocation.exception is not None:
                raise DbtError(f"dbt cannot {arguments[0]} the project: {_first_lines(str(invocation.exception))}")
            return DbtBuildResult(())
        result = DbtBuildResult(tuple(_node_result(item) for item in results))
        for node in result.nodes:
            if node.status in ("error", "fail", "runtime error"):
                raise DbtError(
                    f"The dbt {node.resource_type} {node.name} failed: {_first_lines(node.message or node.status)}",
                    f"The details are in {self._settings.dbt_dir / 'logs' / 'dbt.log'}.",
                    result,
                )
        return result

    @contextmanager
    def _dbt(self, target: Target) -> Iterator[None]:
        """Have dbt's folders, environment and connections for oneself."""
        from dbt.adapters.duckdb.connections import DuckDBConnectionManager

        target_dir = self._target_dir(target)
        target_dir.mkdir(parents=True, exist_ok=True)
        self._settings.warehouse_path.parent.mkdir(parents=True, exist_ok=True)
        # dbt writes its artefacts in place; a UI that loads the definitions must not meet a run that builds.
        lock = FileLock(target_dir.with_suffix(".lock"), timeout=self._settings.lock_timeout_seconds)
        with lock, _environment(self._environment(target)):
            try:
                yield
            finally:
                # dbt keeps its connection until the process ends; others want to open the warehouse.
                DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]

    def _parsed(self, target: Target) -> ParsedProject:
        def parse() -> "Manifest":
            from dbt.cli.main import dbtRunner

            with self._dbt(target):
                invocation = dbtRunner().invoke(["parse", *self._common_arguments(target)])
            if not invocation.success:
                raise DbtError(f"dbt cannot parse the project: {_first_lines(str(invocation.exception))}")
            return cast("Manifest", invocation.result)

        return ParsedProject(DBT_PROJECT_DIR, target, self._database(target), self._settings.dbt_dir, parse)

    def _database(self, target: Target) -> str:
        """The database as dbt names it."""
        if target == "postgres" and self._postgres is not None:
            return self._postgres.database
        if self._settings.is_warehouse_remote:
            return self._settings.warehouse.removeprefix("md:")
        return self._settings.warehouse_path.stem

    def _common_arguments(self, target: Target) -> list[str]:
        return [
            *("--project-dir", str(DBT_PROJECT_DIR), "--profiles-dir", str(DBT_PROJECT_DIR)),
            *("--target", target, "--target-path", str(self._target_dir(target))),
            # What went wrong goes to the log file, nothing to the terminal.
            *("--log-path", str(self._settings.dbt_dir / "logs"), "--log-level-file", "warn"),
            *("--log-level", "none", "--no-use-colors"),
            # Only lineage reads the artefacts; to write them costs as much as building some models.
            "--no-write-json" if self._settings.openlineage_disabled else "--write-json",
        ]

    def _environment(self, target: Target) -> Mapping[str, str]:
        values = {
            "LAKEHOUSE_HOME": str(self._settings.home),
            "LAKEHOUSE_WAREHOUSE": self._settings.warehouse,
            "LAKEHOUSE_DUCKDB_CONFIG": "{}",
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        }
        if self._settings.is_warehouse_remote:
            # Where DuckDB looks for it; a profile's text would be in dbt's log.
            config = motherduck_config(self._settings)
            values["motherduck_token"] = str(config.pop("motherduck_token"))
            values["LAKEHOUSE_DUCKDB_CONFIG"] = repr(config)
        if target == "postgres":
            if self._postgres is None:
                raise DbtError("The target postgres needs the serving database.")
            values |= {
                "LAKEHOUSE_POSTGRES_HOST": self._postgres.host,
                "LAKEHOUSE_POSTGRES_PORT": str(self._postgres.port),
                "LAKEHOUSE_POSTGRES_USER": self._postgres.user,
                "LAKEHOUSE_POSTGRES_DATABASE": self._postgres.database,
                "LAKEHOUSE_POSTGRES_SSLMODE": self._postgres.sslmode,
                # dbt hides the values of variables with this prefix in its logs.
                "DBT_ENV_SECRET_POSTGRES_PASSWORD": self._postgres.password.get_secret_value(),
            }
        return values


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the time of one invocation."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _node_result(item: Any) -> DbtNodeResult:
    node = item.node
    rows = (item.adapter_response or {}).get("rows_affected")
    resource_type = str(getattr(node.resource_type, "value", node.resource_type))
    relation = f"{node.schema}.{node.alias}" if resource_type == "model" else None
    return DbtNodeResult(
        unique_id=node.unique_id,
        name=node.name,
        resource_type=resource_type,
        status=str(getattr(item.status, "value", item.status)),
        message=item.message,
        failures=item.failures,
        rows_affected=rows if isinstance(rows, int) and rows >= 0 else None,
        execution_seconds=item.execution_time,
        relation=relation,
        is_table=relation is not None and node.config.materialized != "view",
        live_rows_of=node.config.meta.get("live_rows_of") if relation else None,
        column_descriptions={name: column.description for name, column in node.columns.items()} if relation else {},
    )


def _first_lines(text: str, count: int = 3) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:count])
