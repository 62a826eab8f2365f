"""The OpenLineage JSON schemas, offline, as the installed OpenLineage packages hold them.

* `openlineage-python` holds the core and every facet as classes that its authors generate from the JSON schemas of the
  specification: names, types, what must be there, allowed values, formats, and the URL of the schema. Here they are
  turned back into JSON schemas, so that an event is held to just that version of the standard which it names.
* `openlineage-integration-common` holds the JSON schemas of dbt's own facets as files, and one more as a class.
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
from datetime import datetime
from functools import cache
from importlib.resources import files
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
_CORE = "https://openlineage.io/spec/2-0-2/OpenLineage.json"
# dbt's facets take the base of a facet from these; it is the same in all of them.
_OLDER_CORES = ("https://openlineage.io/spec/1-0-2/OpenLineage.json",)
# RFC 3986: a scheme, and no other characters than these.
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*")

_formats = FormatChecker(())


@_formats.checks("date-time", ValueError)
def _is_date_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@_formats.checks("uuid", ValueError)
def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or str(UUID(value)) == value.lower()


@_formats.checks("uri", ValueError)
def _is_uri(value: object) -> bool:
    return not isinstance(value, str) or bool(_URI.fullmatch(value))


def faults(event: Mapping[str, Any]) -> list[str]:
    """What in an event does not follow the standard: the event by its `schemaURL`, each facet by its `_schemaURL`."""
    found = list(_faults_of(event, str(event.get("schemaURL")), "event"))
    for path, facet in _facets(event, "event"):
        found += _faults_of(facet, str(facet["_schemaURL"]), path)
    return found


def documents() -> dict[str, dict[str, Any]]:
    """The schemas by the URL of their document, with their definitions by name."""
    found: dict[str, dict[str, Any]] = {}
    modules = [
        importlib.import_module(f"{generated.__name__}.{each.name}")
        for each in pkgutil.iter_modules(generated.__path__)
    ]
    for module in (*modules, dbt_facets):
        for name, each in inspect.getmembers(module, lambda member: inspect.isclass(member) and attr.has(member)):
            if "_get_schema" in vars(each):
                url, _, fragment = each._get_schema().partition("#/$defs/")
                found.setdefault(url, {"$defs": {}})["$defs"][fragment or name] = _object(each)
    for path in files("openlineage.common").joinpath("schema").iterdir():
        if path.name.startswith("dbt-"):
            schema = json.loads(path.read_text(encoding="utf-8"))
            found[schema["$id"]] = {"$defs": schema["$defs"]}
    found.update(dict.fromkeys(_OLDER_CORES, found[_CORE]))
    return found


def _faults_of(value: Mapping[str, Any], url: str, path: str) -> Iterator[str]:
    validator = _validator(url)
    if validator is None:
        yield f"{path}: {url} is no schema of the installed OpenLineage"
        return
    for error in validator.iter_errors(value):
        yield f"{path}{error.json_path.removeprefix('$')}: {error.message[:300]} (by {url})"


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


def _facets(value: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All facets of an event, those inside facets too."""
    if isinstance(value, Mapping):
        if "_schemaURL" in value:
            yield path, value
        for key, inner in value.items():
            yield from _facets(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _facets(inner, f"{path}[{number}]")


def _object(described: type[Any]) -> dict[str, Any]:
    """The schema of a generated class; as in the specification, further properties are allowed."""
    hints = typing.get_type_hints(described)
    properties, required = {}, []
    for field in attr.fields(described):
        schema = _schema(hints[field.name])
        if field.validator is not None and schema.get("type") == "string":
            names = field.validator.__code__.co_names
            schema.update(("format", form) for call, form in _FORMATS.items() if call in names)
        properties[field.name] = schema
        # The classes fill these in themselves; the specification demands them.
        if field.default is attr.NOTHING or field.name in {"_producer", "_schemaURL", "producer", "schemaURL"}:
            required.append(field.name)
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
