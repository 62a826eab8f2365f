"""The OpenLineage JSON schemas, offline: the published files where they were to be had, the installed packages else.

* `openlineage_spec/` has the core and eight facets as they are published; see its README.
* `openlineage-python` holds the core and every facet as classes that its authors generate from the JSON schemas of the
  specification: names, types, what must be there, allowed values, formats, and the URL of the schema. Of the other
  facets they are turned back into JSON schemas, so that an event is held to just that version which it names.
* `openlineage-integration-common` holds the JSON schemas of dbt's own facets as files, and one more as a class.

What the classes give was compared with the published files in November 2026 (openlineage-python 1.54), fact by fact:
types, what must be there, values, formats, bounds, what is nested. `PUBLISHED` names each file and how its text was
had. All facts are the same but for these, which the classes lose: a job event has no run, a dataset event not both a
job and a run (both are in the published core), and a window lasts at least one second, which `PUBLISHED` adds. Two
marks of `deprecated` reject nothing. Five files were not to be had in just the version that is named; each was compared
with the version nearest to it, and the `type` of a subset's condition is added from there.
"""

import enum
import importlib
import inspect
import json
import pkgutil
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import UUID

import attr
from jsonschema import Draft202012Validator, FormatChecker
from openlineage.client import generated
from openlineage.common.provider.dbt import facets as dbt_facets
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}
# What the generated classes call to check a format of the specification.
_FORMATS = {"isoparse": "date-time", "UUID": "uuid", "urlparse": "uri"}
_SPEC_DIR = Path(__file__).parent / "openlineage_spec"
_SPEC = "https://openlineage.io/spec/"
_CORE = f"{_SPEC}2-0-2/OpenLineage.json"
# dbt's facets take the base of a facet from these; it is the same in all of them.
_OLDER_CORES = (f"{_SPEC}1-0-2/OpenLineage.json",)
_EVENTS = ("RunEvent", "JobEvent", "DatasetEvent")
# The core: which kind of facet stands where in an event.
_PLACES = {
    "RunFacet": {"run.facets"},
    "JobFacet": {"job.facets"},
    "DatasetFacet": {"inputs.facets", "outputs.facets", "dataset.facets"},
    "InputDatasetFacet": {"inputs.inputFacets"},
    "OutputDatasetFacet": {"outputs.outputFacets"},
}
# RFC 3986: a scheme, and no other characters than these.
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:([A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
# RFC 3339, section 5.6.
_DATE_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})")


@dataclass(frozen=True)
class Published:
    """A published schema that was compared with the one made from the classes.

    `document` is its address below `https://openlineage.io/spec/`, `keys` the name of each facet's place in an event
    (the `properties` of the document itself), `source` how the text was had, and `demands` what the document demands of
    a definition beyond what the classes hold, as JSON schemas of our own.
    """

    document: str
    keys: Mapping[str, str]
    source: str
    demands: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return _SPEC + self.document


# The SHA-256 of the core, schema and error message is the one that another project pins for release 1.53.0.
_RELEASE_1_50 = "spec/ of release 1.50.0, in openlineage_spec/"
# The text of an earlier version with what is new in the classes; its SHA-256 is the one pinned for this release.
_RELEASE_1_53 = "spec/ of release 1.53.0"
_WEBSITE = "website/static/spec/, where the site keeps each version"
_OTHER_VERSION = "not to be had; compared with "


def _kind_of_condition(kind: str) -> Mapping[str, Any]:
    return {"properties": {"type": {"const": kind}}, "required": ["type"]}


PUBLISHED = (
    Published("2-0-2/OpenLineage.json", {}, _RELEASE_1_50),
    Published(
        "facets/1-0-0/BaseSubsetDatasetFacet.json",
        {"InputSubsetInputDatasetFacet": "subset", "OutputSubsetOutputDatasetFacet": "subset"},
        f"{_OTHER_VERSION}BaseSubsetCondition.json 1-0-0 before it, and the site's page on subsets",
        {
            "BinarySubsetCondition": _kind_of_condition("binary"),
            "CompareSubsetCondition": _kind_of_condition("compare"),
            "LocationSubsetCondition": _kind_of_condition("location"),
            "PartitionSubsetCondition": _kind_of_condition("partition"),
        },
    ),
    Published(
        "facets/1-2-0/ColumnLineageDatasetFacet.json", {"ColumnLineageDatasetFacet": "columnLineage"}, _RELEASE_1_50
    ),
    Published(
        "facets/1-1-0/DataQualityAssertionsDatasetFacet.json",
        {"DataQualityAssertionsDatasetFacet": "dataQualityAssertions"},
        f"{_OTHER_VERSION}1-2-0, which is no facet of inputs any more",
    ),
    Published(
        "facets/1-0-1/DataQualityMetricsDatasetFacet.json",
        {"DataQualityMetricsDatasetFacet": "dataQualityMetrics"},
        _WEBSITE,
    ),
    Published(
        "facets/1-0-3/DataQualityMetricsInputDatasetFacet.json",
        {"DataQualityMetricsInputDatasetFacet": "dataQualityMetrics"},
        _WEBSITE,
    ),
    Published("facets/1-0-1/DatasourceDatasetFacet.json", {"DatasourceDatasetFacet": "dataSource"}, _RELEASE_1_50),
    Published(
        "facets/1-1-0/DocumentationDatasetFacet.json", {"DocumentationDatasetFacet": "documentation"}, _RELEASE_1_53
    ),
    Published("facets/1-1-0/DocumentationJobFacet.json", {"DocumentationJobFacet": "documentation"}, _RELEASE_1_53),
    Published("facets/1-0-1/ErrorMessageRunFacet.json", {"ErrorMessageRunFacet": "errorMessage"}, _RELEASE_1_50),
    Published(
        "facets/2-0-4/JobTypeJobFacet.json",
        {"JobTypeJobFacet": "jobType"},
        _RELEASE_1_53,
        {"JobTypeJobFacet": {"properties": {"emissionPattern": {"properties": {"windowDuration": {"minimum": 1}}}}}},
    ),
    Published(
        "facets/1-0-1/NominalTimeRunFacet.json", {"NominalTimeRunFacet": "nominalTime"}, f"{_OTHER_VERSION}1-0-0"
    ),
    Published(
        "facets/1-0-2/OutputStatisticsOutputDatasetFacet.json",
        {"OutputStatisticsOutputDatasetFacet": "outputStatistics"},
        _RELEASE_1_50,
    ),
    Published("facets/1-0-1/OwnershipDatasetFacet.json", {"OwnershipDatasetFacet": "ownership"}, _RELEASE_1_53),
    Published("facets/1-0-1/OwnershipJobFacet.json", {"OwnershipJobFacet": "ownership"}, _RELEASE_1_53),
    Published("facets/1-2-0/ParentRunFacet.json", {"ParentRunFacet": "parent"}, _WEBSITE),
    Published(
        "facets/1-1-1/ProcessingEngineRunFacet.json", {"ProcessingEngineRunFacet": "processing_engine"}, _RELEASE_1_50
    ),
    Published("facets/1-1-0/SQLJobFacet.json", {"SQLJobFacet": "sql"}, _RELEASE_1_50),
    Published("facets/1-2-0/SchemaDatasetFacet.json", {"SchemaDatasetFacet": "schema"}, _RELEASE_1_50),
    Published("facets/1-0-1/SourceCodeJobFacet.json", {"SourceCodeJobFacet": "sourceCode"}, f"{_OTHER_VERSION}1-0-0"),
    Published(
        "facets/1-1-0/SourceCodeLocationJobFacet.json", {"SourceCodeLocationJobFacet": "sourceCodeLocation"}, _WEBSITE
    ),
    Published("facets/1-0-1/SymlinksDatasetFacet.json", {"SymlinksDatasetFacet": "symlinks"}, _RELEASE_1_50),
    Published("facets/1-0-0/TagsRunFacet.json", {"TagsRunFacet": "tags"}, f"{_OTHER_VERSION}2-0-3, as it was numbered"),
)

_formats = FormatChecker(())


@_formats.checks("date-time", ValueError)
def _is_date_time(value: object) -> bool:
    return not isinstance(value, str) or bool(_DATE_TIME.fullmatch(value) and datetime.fromisoformat(value.upper()))


@_formats.checks("uuid", ValueError)
def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or str(UUID(value)) == value.lower()


@_formats.checks("uri", ValueError)
def _is_uri(value: object) -> bool:
    return not isinstance(value, str) or bool(_URI.fullmatch(value))


def faults(event: Mapping[str, Any]) -> list[str]:
    """What in an event does not follow the standard.

    The event is held to its `schemaURL` and must be one of the kinds of event; each facet to its `_schemaURL`, which
    must be a schema that was compared with the published one, and must stand where that says.
    """
    url = str(event.get("schemaURL"))
    found = list(_faults_of(event, url, "event"))
    kinds = [name for name in _EVENTS if _is_valid(event, f"{_CORE}#/$defs/{name}")]
    if not found and len(kinds) != 1:
        found.append(f"event: is not one kind of event: {kinds} (by {url})")
    for trail, facet in _facets(event, ()):
        path = "event" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in trail)
        found += _faults_of(facet, str(facet["_schemaURL"]), path)
        found += _misplaced(trail, str(facet["_schemaURL"]), path)
    return found


def documents() -> dict[str, dict[str, Any]]:
    """The schemas by the URL of their document, with their definitions by name."""
    found: dict[str, dict[str, Any]] = {}
    for url, described in _classes().items():
        document, _, name = url.partition("#/$defs/")
        found.setdefault(document, {"$defs": {}})["$defs"][name or described.__name__] = _object(described)
    for schema in _files_of_dbt():
        # The classes name the same file by another address, and hold less of it.
        for document in [each for each in found if _name_of_file(each) == _name_of_file(schema["$id"])]:
            for name in found[document]["$defs"].keys() & schema["$defs"].keys():
                _add(found[document], name, {"$ref": f"{schema['$id']}#/$defs/{name}"})
        found[schema["$id"]] = {"$defs": schema["$defs"]}
    for published in PUBLISHED:
        for name, demand in published.demands.items():
            _add(found[published.url], name, demand)
    found.update((schema["$id"], schema) for schema in published_files())
    found.update(dict.fromkeys(_OLDER_CORES, found[_CORE]))
    return found


def published_files() -> list[dict[str, Any]]:
    """The schemas that are here as they are published."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(_SPEC_DIR.rglob("*.json"))]


def _add(document: dict[str, Any], name: str, demand: Mapping[str, Any]) -> None:
    # First, since an event that is of another kind is told by it at once.
    document["$defs"][name] = {"allOf": [demand, document["$defs"][name]]}


@cache
def _classes() -> dict[str, type[Any]]:
    """The generated classes by the URL of their schema."""
    modules = [
        importlib.import_module(f"{generated.__name__}.{each.name}")
        for each in pkgutil.iter_modules(generated.__path__)
    ]
    return {
        each._get_schema(): each
        for module in (*modules, dbt_facets)
        for _name, each in inspect.getmembers(module, lambda member: inspect.isclass(member) and attr.has(member))
        if "_get_schema" in vars(each)
    }


def _files_of_dbt() -> list[dict[str, Any]]:
    folder = files("openlineage.common").joinpath("schema")
    return [json.loads(path.read_text("utf-8")) for path in folder.iterdir() if path.name.startswith("dbt-")]


def _name_of_file(url: str) -> str:
    return url.rsplit("/", 1)[-1]


@cache
def _keys() -> dict[str, str]:
    """The key of each facet that was compared, by the URL of its schema; dbt's by the name of the file."""
    of_dbt = {_name_of_file(schema["$id"]): key for schema in _files_of_dbt() for key in schema.get("properties", ())}
    # The one that is a class only.
    of_dbt["dbt-model-dataset-facet.json"] = "dbt_model"
    core = {f"{each.url}#/$defs/{name}": key for each in PUBLISHED for name, key in each.keys.items()}
    return core | of_dbt


def _misplaced(trail: tuple[str | int, ...], url: str, path: str) -> Iterator[str]:
    """Where a facet stands under another name, or in another part of the event, than its schema says."""
    key = _keys().get(url) or _keys().get(_name_of_file(url))
    if key is None:
        yield f"{path}: {url} was not compared with the published schema"
        return
    steps = [step for step in trail if isinstance(step, str)]
    if steps[-1] != key:
        yield f"{path}: stands under {steps[-1]}, not {key} (by {url})"
    bases = {each.__name__ for each in _classes()[url].__mro__} if url in _classes() else set()
    places = {place for base in bases & _PLACES.keys() for place in _PLACES[base]}
    if places and ".".join(steps[-3:-1]) not in places:
        yield f"{path}: belongs in {' or '.join(sorted(places))} (by {url})"


def _faults_of(value: Mapping[str, Any], url: str, path: str) -> Iterator[str]:
    validator = _validator(url)
    if validator is None:
        yield f"{path}: {url} is no schema of the installed OpenLineage"
        return
    for error in validator.iter_errors(value):
        # A long message repeats the whole event before it says what is wrong.
        said = error.message if len(error.message) <= 300 else f"{error.message[:200]} … {error.message[-100:]}"
        yield f"{path}{error.json_path.removeprefix('$')}: {said} (by {url})"


def _is_valid(value: Mapping[str, Any], url: str) -> bool:
    validator = _validator(url)
    return validator is not None and validator.is_valid(value)


@cache
def _registry() -> tuple[dict[str, dict[str, Any]], Registry[Any]]:
    known = documents()
    resources = [(url, Resource(document, DRAFT202012)) for url, document in known.items()]
    return known, Registry().with_resources(resources)


@cache
def _validator(url: str) -> Draft202012Validator | None:
    known, registry = _registry()
    document, _, name = url.partition("#/$defs/")
    definitions = known.get(document, {"$defs": {}})["$defs"]
    # dbt's facets name the document alone; it defines one thing.
    name = name or next(iter(definitions), "")
    if name not in definitions:
        return None
    schema = {"$ref": f"{document}#/$defs/{name}"}
    return Draft202012Validator(schema, registry=registry, format_checker=_formats)


def _facets(value: Any, trail: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Any]]]:
    """All facets of an event, those inside facets too, with the steps to them."""
    if isinstance(value, Mapping):
        if "_schemaURL" in value:
            yield trail, value
        for key, inner in value.items():
            yield from _facets(inner, (*trail, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _facets(inner, (*trail, number))


def _object(described: type[Any]) -> dict[str, Any]:
    """The schema of a generated class; as in the specification, further properties are allowed."""
    hints = typing.get_type_hints(described)
    properties, required = {}, []
    for each in attr.fields(described):
        schema = _schema(hints[each.name])
        if each.validator is not None and schema.get("type") == "string":
            names = each.validator.__code__.co_names
            schema.update(("format", form) for call, form in _FORMATS.items() if call in names)
        properties[each.name] = schema
        # The classes fill these in themselves; the specification demands them.
        if each.default is attr.NOTHING or each.name in {"_producer", "_schemaURL", "producer", "schemaURL"}:
            required.append(each.name)
    return {"type": "object", "properties": properties, "required": required}


def _schema(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        # What is not there is left out; null is never sent.
        options = [_schema(each) for each in arguments if each is not type(None)]
        return options[0] if len(options) == 1 else {"anyOf": options}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1])}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return {"enum": [each.value for each in hint]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if inspect.isclass(hint) and attr.has(hint):
        # A class with a URL of its own is a definition of the specification, and may hold itself.
        return {"$ref": hint._get_schema()} if "_get_schema" in vars(hint) else _object(hint)
    if hint is Any:
        return {}
    raise TypeError(f"{hint} is not known")
