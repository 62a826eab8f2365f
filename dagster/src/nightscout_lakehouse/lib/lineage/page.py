"""The lineage as one HTML page that needs nothing beside itself: no network, no server.

The layout is that of Sugiyama: tables in layers from left to right, those of a layer in an order with few crossings,
and a line over several layers led through the gaps between the cards. Heights are given by the page, where cards open.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from nightscout_lakehouse.lib.lineage.graph import ColumnKey, Graph, Step

PAGE_FILE = "lineage.html"
_SWEEPS = 24


@dataclass(frozen=True)
class Layout:
    """Where tables and lines go.

    Attributes:
        layers: From left to right, each from top to bottom; a table by its number, a line that passes through by a
            negative number.
        paths: By line (from, to) the numbers that it goes through, with its two ends.
    """

    layers: Sequence[Sequence[int]]
    paths: Mapping[tuple[int, int], Sequence[int]]


def write_page(graph: Graph, folder: Path, made_at: datetime) -> Path:
    """Write the page into a folder and give its path; a reader never sees half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE_FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(render(graph, made_at), encoding="utf-8")
    temporary.replace(path)
    return path


def render(graph: Graph, made_at: datetime) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("nightscout_lakehouse.lib.lineage", "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    data = json.dumps(page_data(graph, made_at), ensure_ascii=False, separators=(",", ":"))
    # Inside a script element only these could end it or begin a comment.
    safe = Markup(data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704
    return environment.get_template("lineage.html").render(data=safe)


def page_data(graph: Graph, made_at: datetime) -> dict[str, Any]:
    """What the page draws, in plain values; tables and columns are named by their numbers."""
    numbers = {key: number for number, key in enumerate(graph.datasets)}
    columns = {key: graph.columns_of(key) for key in numbers}
    places = {
        ColumnKey(key, column.name): (numbers[key], place)
        for key, found in columns.items()
        for place, column in enumerate(found)
    }
    lines = sorted(
        {
            (numbers[source], numbers[target])
            for step in graph.steps.values()
            for source in step.inputs
            for target in step.outputs
            if source != target
        }
    )
    layout = lay_out(len(numbers), lines)
    return {
        "made_at": made_at.astimezone(UTC).isoformat(timespec="seconds"),
        "tables": [
            {
                "label": dataset.label,
                "namespace": key.namespace,
                "name": key.name,
                "platform": dataset.platform,
                "description": dataset.description,
                "rows": dataset.row_count,
                "bytes": dataset.byte_count,
                "rows_written": dataset.rows_written,
                "written_at": _iso(dataset.written_at),
                "checks": [[check.name, check.column or "", check.is_passed] for check in dataset.checks],
                "columns": [[column.name, column.type, column.description] for column in columns[key]],
                "traced": key in graph.traced,
                "steps": [_step(step) for step in graph.producers.get(key, ())],
            }
            for key, dataset in graph.datasets.items()
        ],
        "layers": layout.layers,
        "lines": [list(layout.paths[line]) for line in lines],
        "columns": [
            [*places[link.node], *places[column], link.how, link.bond.value]
            for column, links in graph.sources.items()
            if column in places
            for link in links
            if isinstance(link.node, ColumnKey) and link.node in places
        ],
    }


def lay_out(count: int, lines: Sequence[tuple[int, int]]) -> Layout:
    """Layers, order and paths.

    Args:
        count: Tables, numbered from 0.
        lines: From which to which, each once, none to itself. Of a circle one line goes backwards.
    """
    forward = _without_circles(count, lines)
    depth = _depths(count, forward)
    layers: list[list[int]] = [[] for _ in range(max(depth, default=-1) + 1)]
    for table in range(count):
        layers[depth[table]].append(table)
    paths: dict[tuple[int, int], Sequence[int]] = {}
    neighbours: dict[int, list[int]] = defaultdict(list)
    through = 0
    for source, target in lines:
        path = [source]
        for layer in range(depth[source] + 1, depth[target]):
            through -= 1
            layers[layer].append(through)
            path.append(through)
        path.append(target)
        paths[source, target] = path
        for left, right in pairwise(path):
            neighbours[left].append(right)
            neighbours[right].append(left)
    return Layout(_ordered(layers, neighbours), paths)


def _without_circles(count: int, lines: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The lines without those that close a circle."""
    following: dict[int, list[int]] = defaultdict(list)
    for source, target in lines:
        following[source].append(target)
    done: set[int] = set()
    kept: list[tuple[int, int]] = []
    for start in range(count):
        if start in done:
            continue
        open_nodes, stack = {start}, [(start, iter(following[start]))]
        while stack:
            node, targets = stack[-1]
            target = next(targets, -1)
            if target < 0:
                done.add(node)
                open_nodes.discard(node)
                stack.pop()
            elif target not in open_nodes:
                kept.append((node, target))
                if target not in done:
                    open_nodes.add(target)
                    stack.append((target, iter(following[target])))
    return kept


def _depths(count: int, lines: Sequence[tuple[int, int]]) -> list[int]:
    """The layer of each table: right of all that it comes from, and what comes from nothing beside what reads it."""
    sources: dict[int, list[int]] = defaultdict(list)
    targets: dict[int, list[int]] = defaultdict(list)
    for source, target in lines:
        sources[target].append(source)
        targets[source].append(target)
    waiting = {table: len(sources[table]) for table in range(count)}
    depth = [0] * count
    ready = [table for table in range(count) if not waiting[table]]
    while ready:
        table = ready.pop()
        for target in targets[table]:
            depth[target] = max(depth[target], depth[table] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    for table in range(count):
        if not sources[table] and targets[table]:
            depth[table] = min(depth[target] for target in targets[table]) - 1
    return depth


def _ordered(layers: Sequence[Sequence[int]], neighbours: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Each layer in the order of the mean places of its neighbours, again and again; the best order found counts."""
    current = [list(layer) for layer in layers]
    best, fewest = current, _crossings(current, neighbours)
    for sweep in range(_SWEEPS):
        current = [list(layer) for layer in current]
        rightwards = sweep % 2 == 0
        for number in range(1, len(current)) if rightwards else range(len(current) - 2, -1, -1):
            beside = current[number - 1 if rightwards else number + 1]
            current[number] = _by_neighbours(current[number], beside, neighbours)
        crossings = _crossings(current, neighbours)
        if crossings < fewest:
            best, fewest = current, crossings
    return best


def _by_neighbours(layer: Sequence[int], beside: Sequence[int], neighbours: Mapping[int, Sequence[int]]) -> list[int]:
    """A layer in the order of its neighbours' mean places; what has no neighbour there keeps its place."""
    place = {node: position for position, node in enumerate(beside)}
    means = {}
    for position, node in enumerate(layer):
        found = [place[each] for each in neighbours[node] if each in place]
        means[node] = sum(found) / len(found) if found else float(position)
    return sorted(layer, key=means.__getitem__)


def _crossings(layers: Sequence[Sequence[int]], neighbours: Mapping[int, Sequence[int]]) -> int:
    """How many pairs of lines cross between layers."""
    crossings = 0
    for left, right in pairwise(layers):
        place = {node: position for position, node in enumerate(right)}
        ends = [end for node in left for end in sorted(place[each] for each in neighbours[node] if each in place)]
        crossings += sum(end > later for index, end in enumerate(ends) for later in ends[index + 1 :])
    return crossings


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": step.key.name,
        "integration": step.integration,
        "description": step.description,
        "sql": step.sql,
        "commit": step.commit,
        "state": step.state,
        "error": step.error,
        "run": step.run_id,
        "at": _iso(step.at),
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")
