"""The files of a dashboard: one form for what Superset exports, without what differs between two machines.

Superset's own export names files by ids, holds ids of rows of its database, defaults, and what its pages compute
anew whenever they load. Here a bundle is a mapping of file names to YAML texts:

* `metadata.yaml`, `databases/`, `datasets/`, `charts/`, `dashboards/`, one asset per file;
* an asset is known by its `uuid`, and keeps the name that its file has;
* a chart's number (`chartId`), by which other parts of a dashboard refer to it, follows from its uuid;
* what equals Superset's default is left out, and put in again by `completed`, so that an import resets it;
* what the chart editor fills in by itself is left out, unless the file of the chart has it already.

Pure functions, apart from reading and writing the files. `python asset_bundle.py FOLDER` brings files that were written
by hand into this form.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import yaml

Asset = dict[str, Any]

METADATA_FILE: Final = "metadata.yaml"
METADATA: Final = {"version": "1.0.0", "type": "assets"}

# As safe, and ten times as quick where PyYAML comes with libyaml.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_COLUMN_DEFAULTS: Final[Asset] = {
    "verbose_name": None,
    "description": None,
    "expression": None,
    "is_dttm": False,
    "is_active": True,
    "groupby": True,
    "filterable": True,
    "advanced_data_type": None,
    "python_date_format": None,
    "datetime_format": None,
    "extra": None,
}
_METRIC_DEFAULTS: Final[Asset] = {
    "verbose_name": None,
    "description": None,
    "metric_type": None,
    "d3format": None,
    "currency": None,
    "warning_text": None,
    "extra": None,
}
_DEFAULTS: Final[dict[str, Asset]] = {
    "databases": {"cache_timeout": None, "configuration_method": "sqlalchemy_form"},
    "datasets": {
        "description": None,
        "main_dttm_col": None,
        "currency_code_column": None,
        "default_endpoint": None,
        "offset": 0,
        "cache_timeout": None,
        "catalog": None,
        "sql": None,
        "params": None,
        "template_params": None,
        "filter_select_enabled": True,
        "fetch_values_predicate": None,
        "extra": None,
        "normalize_columns": False,
        "always_filter_main_dttm": False,
        "folders": None,
    },
    "charts": {
        "description": None,
        "certified_by": None,
        "certification_details": None,
        "cache_timeout": None,
        # Superset compiles it from `params` whenever a page needs it.
        "query_context": None,
    },
    "dashboards": {
        "description": None,
        "css": None,
        "certified_by": None,
        "certification_details": None,
        "theme_uuid": None,
    },
}
# First what a reader looks for; the other keys follow by name.
_FIRST_KEYS: Final = (
    *("dashboard_title", "slice_name", "table_name", "database_name", "column_name", "metric_name", "slug", "schema"),
    *("viz_type", "type", "expression", "verbose_name", "description"),
)
_LAST_KEYS: Final = (
    "params",
    "metadata",
    "position",
    "metrics",
    "columns",
    "uuid",
    "dataset_uuid",
    "database_uuid",
    "version",
)
# Ids of this database, and what a page writes when it saves without anybody having chosen it.
_VOLATILE_PARAMS: Final = (
    *("datasource", "slice_id", "dashboards", "url_params", "viz_type", "extra_form_data", "temporal_columns_lookup"),
)
_VOLATILE_METADATA: Final = ("shared_label_colors", "map_label_colors", "color_scheme_domain", "show_native_filters")
_EVERYWHERE: Final = {"rootPath": ["ROOT_ID"], "excluded": []}
_COMPUTED: Final = ("chartsInScope", "tabsInScope")


class BundleError(ValueError):
    """A file of a bundle is not what it should be; the message names it."""


def read_bundle(folder: Path) -> dict[str, str]:
    """The YAML files of a folder and its subfolders, by their names from there."""
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.yaml"))
    }


def write_bundle(folder: Path, bundle: Mapping[str, str]) -> list[str]:
    """Make the folder hold this bundle; returns the names of files that changed, came or went."""
    before = read_bundle(folder) if folder.is_dir() else {}
    changed = [name for name in sorted(before.keys() | bundle.keys()) if before.get(name) != bundle.get(name)]
    for name in changed:
        path = folder / name
        if name in bundle:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(bundle[name], encoding="utf-8")
        else:
            path.unlink()
    return changed


def fingerprint(bundle: Mapping[str, str]) -> str:
    """A hash of all names and texts."""
    digest = hashlib.sha256()
    for name, text in sorted(bundle.items()):
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()


def uuids(bundle: Mapping[str, str], kind: str) -> set[str]:
    """The uuids of a bundle's `charts`, `dashboards`, `datasets` or `databases`."""
    return {str(asset["uuid"]) for name, asset in _assets(bundle) if _kind(name) == kind}


def completed(bundle: Mapping[str, str]) -> dict[str, str]:
    """A bundle with the defaults written out: importing it also resets what was set to something else."""
    texts = dict(bundle)
    for name, asset in _assets(bundle):
        kind = _kind(name)
        whole = _DEFAULTS[kind] | asset
        # The importer of whole bundles does not know this key.
        whole.pop("theme_uuid", None)
        if kind == "datasets":
            whole["columns"] = [_COLUMN_DEFAULTS | column for column in asset.get("columns", [])]
            whole["metrics"] = [_METRIC_DEFAULTS | metric for metric in asset.get("metrics", [])]
        if kind == "dashboards":
            for node in _chart_nodes(asset.get("position", {})):
                node["meta"].setdefault("chartId", chart_number(node["meta"]["uuid"]))
        texts[name] = _to_yaml(whole)
    return texts


def check(bundle: Mapping[str, str]) -> None:
    """Raise a `BundleError` if two assets share a uuid, or one refers to another that is not there."""
    files: dict[str, str] = {}
    for name, asset in _assets(bundle):
        uuid = str(asset["uuid"])
        if uuid in files:
            raise BundleError(f"{name} has the uuid of {files[uuid]}.")
        files[uuid] = name
    for name, asset in _assets(bundle):
        wanted = {key: str(asset[key]) for key in ("database_uuid", "dataset_uuid") if key in asset}
        for node in _chart_nodes(asset.get("position", {})):
            wanted[f"chart {node['meta'].get('sliceName', '')}".strip()] = str(node["meta"].get("uuid"))
        for each in asset.get("metadata", {}).get("native_filter_configuration", []):
            for target in each.get("targets", []):
                if "datasetUuid" in target:
                    wanted[f"filter {each.get('name', '')}".strip()] = str(target["datasetUuid"])
        for what, uuid in wanted.items():
            if uuid not in files:
                raise BundleError(f"{name}, {what}: no file has the uuid {uuid}.")


def canonical(
    exported: Mapping[str, str], known: Mapping[str, str], editor_defaults: Mapping[str, Asset] | None = None
) -> dict[str, str]:
    """Superset's export in the form of the repository.

    Args:
        exported: File names and YAML texts, as Superset exports or a person wrote them.
        known: The bundle as it was: assets keep the names of their files, and what is written in these stays.
        editor_defaults: For each kind of chart, what the chart editor fills in by itself.

    Returns:
        The bundle, with the old names for known assets and names after their titles for new ones.
    """
    names = names_by_uuid(known)
    written = {str(asset["uuid"]): asset.get("params") or {} for _, asset in _assets(known)}
    bundle = {METADATA_FILE: _to_yaml(METADATA)}
    for name, asset in sorted(_assets(exported), key=lambda named: str(named[1]["uuid"])):
        kind, uuid = _kind(name), str(asset["uuid"])
        cleaned = _CLEANERS[kind](asset)
        if kind == "charts":
            filled_in = (editor_defaults or {}).get(str(asset.get("viz_type")), {})
            filled_in = {key: value for key, value in filled_in.items() if key not in written.get(uuid, {})}
            cleaned["params"] = _without_defaults(cleaned["params"], filled_in)
        file_name = names.get(uuid) or _free_name(kind, cleaned, {*names.values(), *bundle})
        bundle[file_name] = _to_yaml(_in_order(_without_defaults(cleaned, _DEFAULTS[kind])))
    return dict(sorted(bundle.items()))


def names_by_uuid(bundle: Mapping[str, str]) -> dict[str, str]:
    """Name of the file of each asset, by uuid."""
    return {str(asset["uuid"]): name for name, asset in _assets(bundle)}


def chart_number(uuid: str) -> int:
    """The number of a chart in the files of dashboards: any would do that stays the same."""
    return int(UUID(uuid).hex[:7], 16)


def _assets(bundle: Mapping[str, str]) -> Iterator[tuple[str, Asset]]:
    for name, text in bundle.items():
        if _kind(name) in _DEFAULTS:
            try:
                asset = _parsed(text)
            except yaml.MarkedYAMLError as error:
                line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
                raise BundleError(f"{name} is not valid YAML{line}: {error.problem}.") from None
            if not isinstance(asset, dict) or "uuid" not in asset:
                raise BundleError(f"{name} is not an asset with a uuid.")
            yield name, asset


def _parsed(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_LOADER)  # noqa: S506
    except yaml.MarkedYAMLError:
        # libyaml counts a line too many where a file ends too early.
        return yaml.safe_load(text)


def _kind(name: str) -> str:
    return name.split("/", 1)[0]


def _clean_database(database: Asset) -> Asset:
    secret = ("password", "encrypted_extra", "masked_encrypted_extra", "ssh_tunnel")
    # Superset exports the two under either name, and documents the older one.
    old_names = {
        "allow_file_upload": "allow_csv_upload",
        "schemas_allowed_for_file_upload": "schemas_allowed_for_csv_upload",
    }
    found = {old_names.get(key, key): value for key, value in database.items() if key not in secret}
    extra = {old_names.get(key, key): value for key, value in (found.get("extra") or {}).items()}
    return found | {"extra": _sorted(extra)}


def _clean_dataset(dataset: Asset) -> Asset:
    return dataset | {
        "columns": [
            _in_order(_without_defaults(column, _COLUMN_DEFAULTS))
            for column in sorted(dataset.get("columns", []), key=lambda column: str(column["column_name"]))
        ],
        "metrics": [
            _in_order(_without_defaults(metric, _METRIC_DEFAULTS))
            for metric in sorted(dataset.get("metrics", []), key=lambda metric: str(metric["metric_name"]))
        ],
    }


def _clean_chart(chart: Asset) -> Asset:
    params = {key: value for key, value in chart.get("params", {}).items() if key not in _VOLATILE_PARAMS}
    if not params.get("annotation_layers"):
        params.pop("annotation_layers", None)
    # A grid of charts: two dozen settings that say nothing while it is off.
    if not params.get("matrixify_enable"):
        params = {key: value for key, value in params.items() if not key.startswith("matrixify_")}
    return chart | {"params": _sorted(params), "query_context": None}


def _clean_dashboard(dashboard: Asset) -> Asset:
    position = dashboard.get("position", {})
    nodes = _chart_nodes(position)
    numbers = {
        node["meta"]["chartId"]: chart_number(node["meta"]["uuid"]) for node in nodes if "chartId" in node["meta"]
    }
    for node in nodes:
        node["meta"]["chartId"] = chart_number(node["meta"]["uuid"])
    metadata = {key: value for key, value in dashboard.get("metadata", {}).items() if key not in _VOLATILE_METADATA}
    metadata = _renumbered(_without(metadata, _COMPUTED), numbers)
    # Left out: what is empty, and charts that take part in cross-filtering as all do.
    charts = metadata.get("chart_configuration", {})
    metadata["chart_configuration"] = {
        number: chart for number, chart in charts.items() if chart.get("crossFilters", {}).get("scope") != "global"
    }
    if metadata.get("global_chart_configuration", {}).get("scope") == _EVERYWHERE:
        del metadata["global_chart_configuration"]
    if metadata.get("cross_filters_enabled"):
        del metadata["cross_filters_enabled"]
    metadata = {key: value for key, value in metadata.items() if value not in ({}, [], "{}", None, "")}
    no_texts = {key: None for key in _DEFAULTS["dashboards"] if dashboard.get(key) == ""}
    return dashboard | no_texts | {"metadata": _sorted(metadata), "position": _sorted(position)}


def _chart_nodes(position: Asset) -> list[Asset]:
    return [node for node in position.values() if isinstance(node, dict) and node.get("type") == "CHART"]


_CLEANERS: Final[dict[str, Callable[[Asset], Asset]]] = {
    "databases": _clean_database,
    "datasets": _clean_dataset,
    "charts": _clean_chart,
    "dashboards": _clean_dashboard,
}


def _renumbered(metadata: Asset, numbers: Mapping[int, int]) -> Asset:
    """The metadata of a dashboard with other numbers of charts, everywhere that Superset's importer changes them."""

    def listed(ids: list[int]) -> list[int]:
        return sorted(numbers[each] for each in ids if each in numbers)

    def keyed(by_id: Mapping[str, Any]) -> Asset:
        return {str(numbers[int(key)]): value for key, value in by_id.items() if int(key) in numbers}

    found = dict(metadata)
    for key in ("expanded_slices", "chart_configuration"):
        if key in found:
            found[key] = keyed(found[key])
    for number, chart in found.get("chart_configuration", {}).items():
        chart["id"] = int(number)
    if "timed_refresh_immune_slices" in found:
        found["timed_refresh_immune_slices"] = listed(found["timed_refresh_immune_slices"])
    scopes = [each.get("scope") for each in found.get("native_filter_configuration", [])]
    scopes.append(found.get("global_chart_configuration", {}).get("scope"))
    scopes += [chart.get("crossFilters", {}).get("scope") for chart in found.get("chart_configuration", {}).values()]
    for scope in scopes:
        if isinstance(scope, dict) and "excluded" in scope:
            scope["excluded"] = listed(scope["excluded"])
    return found


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(each, keys) for key, each in value.items() if key not in keys}
    if isinstance(value, list):
        return [_without(each, keys) for each in value]
    return value


def _without_defaults(asset: Asset, defaults: Asset) -> Asset:
    missing = object()
    return {key: value for key, value in asset.items() if value != defaults.get(key, missing)}


def _in_order(asset: Asset) -> Asset:
    def place(key: str) -> tuple[int, int, str]:
        if key in _FIRST_KEYS:
            return 0, _FIRST_KEYS.index(key), key
        if key in _LAST_KEYS:
            return 2, _LAST_KEYS.index(key), key
        return 1, 0, key

    return {key: asset[key] for key in sorted(asset, key=place)}


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list):
        return [_sorted(each) for each in value]
    return value


def _free_name(kind: str, asset: Asset, taken: set[str]) -> str:
    titles = {"dashboards": "slug", "charts": "slice_name", "datasets": "table_name", "databases": "database_name"}
    title = str(asset.get(titles[kind]) or asset.get("dashboard_title") or asset["uuid"])
    slug = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") or str(asset["uuid"])
    name = f"{kind}/{slug}.yaml"
    return name if name not in taken else f"{kind}/{slug}_{UUID(str(asset['uuid'])).hex[:8]}.yaml"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, no anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _to_yaml(asset: Mapping[str, Any]) -> str:
    return yaml.dump(dict(asset), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


if __name__ == "__main__":
    for each in map(Path, sys.argv[1:]):
        written = read_bundle(each)
        write_bundle(each, canonical(written, written))
