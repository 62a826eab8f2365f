"""The dbt models as assets, built in this process: start-up, not SQL, is what a tick costs."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from graphlib import TopologicalSorter
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, dbt_assets

from nightscout_lakehouse.defs.resources import LakehouseResource
from nightscout_lakehouse.defs.retrying import retries_what_may_pass
from nightscout_lakehouse.defs.table_metadata import table_metadata
from nightscout_lakehouse.lib.dbt_project import DbtBuildResult, DbtError, DbtNodeResult, DbtProject, Target
from nightscout_lakehouse.lib.publishing import published_position
from nightscout_lakehouse.lib.settings import load_settings
from nightscout_lakehouse.lib.table_profile import TableProfile, profile_postgres, profile_warehouse
from nightscout_lakehouse.lib.warehouse import open_warehouse

GROUP = "nightscout"
MARTS = "tag:mart"
# What comes before the validation of the readings, which nothing curated may pass.
ENRICHED = "+int_glucose_enriched"
FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=24), warn_window=timedelta(minutes=75))


def published_key(table: str) -> dg.AssetKey:
    """The asset of a curated table's copy in Postgres; a name of its own, since the graph shows names only."""
    return dg.AssetKey(f"published_{table}")


class NightscoutDbtTranslator(DagsterDbtTranslator):
    """How a dbt model looks in Dagster: its own name as key, one group, the engine as kind."""

    def get_asset_spec(self, manifest: Mapping[str, Any], unique_id: str, project: Any) -> dg.AssetSpec:
        """The spec of a model, from what its YAML says."""
        spec = super().get_asset_spec(manifest, unique_id, project)
        props = self.get_resource_props(manifest, unique_id)
        if props["resource_type"] == "source" and props["source_name"] == "published":
            return spec.replace_attributes(key=published_key(props["name"]))
        if props["resource_type"] == "source" and props["source_name"] == "operations":
            return spec.replace_attributes(key=dg.AssetKey(props["name"]))
        if props["resource_type"] != "model":
            return spec
        engine = "postgres" if "mart" in props["tags"] else "duckdb"
        return spec.replace_attributes(
            key=dg.AssetKey(props["name"]),
            group_name=GROUP,
            kinds={"dbt", engine},
            owners=["team:data-platform"],
            freshness_policy=FRESHNESS,
        )


TRANSLATOR = NightscoutDbtTranslator(settings=DagsterDbtTranslatorSettings(enable_asset_checks=True))
MANIFEST = DbtProject(load_settings()).prepare_manifest()


@dbt_assets(manifest=MANIFEST, select=ENRICHED, dagster_dbt_translator=TRANSLATOR, name="nightscout_enriched")
@retries_what_may_pass
def nightscout_enriched(context: dg.AssetExecutionContext, lakehouse: LakehouseResource) -> Iterator[Any]:
    """Readings with what follows from them, on DuckDB: only the days that a batch touched are computed anew."""
    yield from _build(context, lakehouse, "duckdb")


@dbt_assets(
    manifest=MANIFEST,
    exclude=f"{MARTS} {ENRICHED}",
    dagster_dbt_translator=TRANSLATOR,
    name="nightscout_curated",
)
@retries_what_may_pass
def nightscout_curated(context: dg.AssetExecutionContext, lakehouse: LakehouseResource) -> Iterator[Any]:
    """Everything that counts, on DuckDB, from the validated readings."""
    yield from _build(context, lakehouse, "duckdb")


@dbt_assets(manifest=MANIFEST, select=MARTS, dagster_dbt_translator=TRANSLATOR, name="nightscout_marts")
@retries_what_may_pass
def nightscout_marts(context: dg.AssetExecutionContext, lakehouse: LakehouseResource) -> Iterator[Any]:
    """The marts, on Postgres, from the published tables."""
    yield from _build(context, lakehouse, "postgres")


def _build(context: dg.AssetExecutionContext, lakehouse: LakehouseResource, target: Target) -> Iterator[Any]:
    """Build the selected models with their tests; report each to Dagster, also when a later one fails."""
    models = sorted(key.path[-1] for key in context.selected_asset_keys)
    error: DbtError | None = None
    try:
        project = lakehouse.dbt(with_postgres=target == "postgres")
        position = published_position(lakehouse.postgres) if target == "postgres" else ""
        built = project.build_if_changed(target, models, position)
    except DbtError as failure:
        if failure.result is None:
            raise
        error, built = failure, failure.result
    if built is None:
        context.log.info("Nothing has changed: the models stay as they are.")
        yield from _unchanged(context)
        return
    result = built
    yield from _events(context, result, _profiles(lakehouse, result, target))
    if error is not None:
        raise dg.Failure(description=str(error), allow_retries=False) from error


def _unchanged(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """The models stay, and so does what their tests found: they all passed, or the models would be built again."""
    deps = context.assets_def.asset_deps
    # Dagster takes them in the order in which they depend on each other.
    for key in TopologicalSorter({key: sorted(deps[key]) for key in sorted(deps)}).static_order():
        if key in context.selected_asset_keys:
            yield dg.MaterializeResult(asset_key=key, metadata={"unchanged": True, "seconds": 0.0})
    for check in sorted(context.selected_asset_check_keys):
        yield dg.AssetCheckResult(
            asset_key=check.asset_key, check_name=check.name, passed=True, metadata={"unchanged": True}
        )


def _profiles(lakehouse: LakehouseResource, result: DbtBuildResult, target: Target) -> dict[str, TableProfile]:
    """The tables and views that were built, by model; an incremental model in DuckDB does not say what it wrote."""
    built = {node.name: node for node in result.nodes if node.relation and node.status == "success"}
    if target == "postgres":
        with lakehouse.postgres.transaction() as opened, opened.cursor() as cursor:
            return {name: profile_postgres(cursor, str(node.relation)) for name, node in built.items()}
    with open_warehouse(lakehouse.settings) as warehouse:
        return {
            name: profile_warehouse(warehouse, str(node.relation), live_rows_of=node.live_rows_of)
            for name, node in built.items()
        }


def _events(
    context: dg.AssetExecutionContext, result: DbtBuildResult, profiles: Mapping[str, TableProfile]
) -> Iterator[Any]:
    checks = {key.name: key for key in context.selected_asset_check_keys}
    keys = {key.path[-1]: key for key in context.selected_asset_keys}
    for node in result.nodes:
        if node.resource_type == "model" and node.status == "success" and node.name in keys:
            yield dg.MaterializeResult(asset_key=keys[node.name], metadata=_metadata(node, profiles))
        elif node.resource_type == "test" and node.name in checks:
            yield dg.AssetCheckResult(
                asset_key=checks[node.name].asset_key,
                check_name=node.name,
                passed=node.status == "pass",
                severity=dg.AssetCheckSeverity.WARN if node.status == "warn" else dg.AssetCheckSeverity.ERROR,
                metadata={"status": node.status, "failures": node.failures or 0, "message": node.message or ""},
            )


def _metadata(node: DbtNodeResult, profiles: Mapping[str, TableProfile]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"seconds": round(node.execution_seconds, 3)}
    if node.relation:
        metadata["dagster/table_name"] = node.relation
    if node.name in profiles:
        metadata |= table_metadata(profiles[node.name], node.column_descriptions)
    return metadata
