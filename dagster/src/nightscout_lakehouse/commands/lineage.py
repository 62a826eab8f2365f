"""`lakehouse lineage`: where a figure comes from, what depends on it, and what changed between two runs."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nightscout_lakehouse.commands.shared import console, says_what_went_wrong
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.settings import load_settings

if TYPE_CHECKING:
    from rich.tree import Tree

    from nightscout_lakehouse.lib.lineage.diff import Change, PipelineRun
    from nightscout_lakehouse.lib.lineage.event_log import EventLog
    from nightscout_lakehouse.lib.lineage.graph import Branch, ColumnKey, Graph

lineage_app = typer.Typer(help="Where figures come from, and what changed between two runs.", no_args_is_help=True)

MOST_DEPTH = 100
_MOST_DETAIL_LINES = 12
_MADE_OF_NONE = "¹ A count of rows, or what the query itself says; --conditions tells what decides which rows."
_KINDS = {
    "steps": "Steps",
    "code": "Code",
    "inputs": "What was read",
    "rows": "Rows",
    "schema": "Columns",
    "lineage": "Where columns come from",
    "checks": "Checks",
}


class Format(StrEnum):
    """How it is printed."""

    TABLE = "table"
    JSON = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="A tree or table to read, or json for a program.")]


@lineage_app.command()
@says_what_went_wrong
def show(
    name: Annotated[str, typer.Argument(help="A table or a column: mart_glucose_overview.time_in_range_pct")],
    upstream: Annotated[bool, typer.Option("--upstream", help="Only what it comes from.")] = False,
    downstream: Annotated[bool, typer.Option("--downstream", help="Only what comes from it.")] = False,
    depth: Annotated[int, typer.Option(min=1, max=MOST_DEPTH, help="How many steps to go.")] = MOST_DEPTH,
    conditions: Annotated[
        bool, typer.Option("--conditions", help="Follow filters, joins, groups and orders, too.")
    ] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Print what a table or column comes from, back to the Nightscout server, and what comes from it."""
    from nightscout_lakehouse.lib.lineage.graph import Direction

    graph = _graph()
    node = graph.find(name)
    chosen = [each for each, is_chosen in zip(Direction, (upstream, downstream), strict=True) if is_chosen]
    walks = {each: graph.walk(node, each, depth, with_conditions=conditions) for each in chosen or Direction}
    if output is Format.JSON:
        _print_json({"name": graph.label(node), **{each.value: _plain(graph, walks[each]) for each in walks}})
        return
    target = _console_of_trees()
    for direction, branch in walks.items():
        target.print(_tree(graph, branch, direction.value))
        if direction is Direction.UPSTREAM and any(map(graph.is_made_of_none, _ends(branch))):
            target.print(f"[dim]{_MADE_OF_NONE}[/]")


@lineage_app.command("open")
@says_what_went_wrong
def open_page(
    name: Annotated[str | None, typer.Argument(help="A table or a column to begin with.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it, or only print the path.")] = True,
) -> None:
    """Draw the whole graph as one HTML page, and open it in the browser."""
    import webbrowser
    from urllib.parse import quote

    from nightscout_lakehouse.lib.lineage.page import write_page

    graph = _graph()
    begin = f"#{quote(graph.label(graph.find(name)), safe='')}" if name else ""
    folder = load_settings().lineage_dir
    try:
        path = write_page(graph, folder, datetime.now(UTC))
    except OSError as error:
        raise LakehouseError(
            f"The page cannot be written to {folder} ({error.strerror}).", "Make room there."
        ) from None
    console.print(str(path), markup=False, soft_wrap=True)
    if browser and not webbrowser.open(path.as_uri() + begin):
        console.print("No browser could be opened; open the file yourself.")


@lineage_app.command()
@says_what_went_wrong
def runs(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many runs to list.")] = 20,
    output: FormatOption = Format.TABLE,
) -> None:
    """List the runs, the newest first."""
    from nightscout_lakehouse.lib.lineage.diff import pipeline_runs

    log = _log()
    found = pipeline_runs(log.heads(), most=limit)
    if output is Format.JSON:
        _print_json([_plain_run(run) for run in found])
        return
    table = Table(box=None, pad_edge=False)
    for title in ("run", "job", "began (UTC)", "seconds", "steps", "ended", "failed steps"):
        table.add_column(title, overflow="fold", justify="right" if title in ("seconds", "steps") else "left")
    for run in found:
        seconds = f"{(run.ended_at - run.started_at).total_seconds():,.1f}"
        began = f"{run.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
        state = {"COMPLETE": "[green]complete[/]", "RUNNING": "not yet"}.get(run.state, f"[red]{run.state.lower()}[/]")
        failed = escape(", ".join(run.failed_steps))
        table.add_row(run.run_id[:8], escape(run.job), began, seconds, str(run.step_count), state, failed)
    _console_of_trees().print(table)
    if len(found) < limit:
        _tell_if_cut(log)


@lineage_app.command()
@says_what_went_wrong
def diff(
    before: Annotated[str, typer.Argument(metavar="RUN1", help="previous, or the beginning of a run's id.")] = (
        "previous"
    ),
    after: Annotated[str, typer.Argument(metavar="RUN2", help="latest, or the beginning of a run's id.")] = "latest",
    output: FormatOption = Format.TABLE,
) -> None:
    """Say what changed from one run to another: inputs, row counts, code, columns, failed checks."""
    from nightscout_lakehouse.lib.lineage.diff import choose_run, compare, pipeline_runs, run_facts

    log = _log()
    # By its id a run may be as old as the file goes; the last two are at its end.
    words = {before.casefold(), after.casefold()}
    by_place = words <= {"latest", "previous"}
    known = pipeline_runs(log.heads(), most=2 if by_place else None, with_commands=not by_place)
    first, second = choose_run(known, before), choose_run(known, after)
    changes = compare(*run_facts(log, (first, second)))
    if output is Format.JSON:
        _print_json({"before": _plain_run(first), "after": _plain_run(second), "changes": changes})
        return
    _print_changes(_console_of_trees(), first, second, changes)


def _log() -> "EventLog":
    from nightscout_lakehouse.lib.lineage.event_log import EventLog

    return EventLog(load_settings().lineage_dir)


def _graph() -> "Graph":
    from nightscout_lakehouse.lib.lineage.event_log import GRAPH_BYTES, EventLog
    from nightscout_lakehouse.lib.lineage.graph import build_graph

    return build_graph(EventLog(load_settings().lineage_dir, GRAPH_BYTES).events())


def _tell_if_cut(log: "EventLog") -> None:
    if log.is_cut:
        console.print(f"Only the newest {log.most_bytes >> 20} MB of events were read.", style="dim")


def _console_of_trees() -> Console:
    """A line is never folded in a pipe or a file."""
    return console if sys.stdout.isatty() else Console(highlight=False, width=1_000)


def _print_json(value: Any) -> None:
    from nightscout_lakehouse.lib.lineage.event_log import as_json

    sys.stdout.write(as_json(value) + "\n")


def _tree(graph: "Graph", branch: "Branch", title: str) -> "Tree":
    from rich.tree import Tree

    words = {"upstream": "comes from", "downstream": "goes into"}
    tree = Tree(f"[bold]{escape(graph.label(branch.node))}[/] {words[title]}")
    if not branch.branches:
        is_count = title == "upstream" and any(map(graph.is_made_of_none, _ends(branch)))
        tree.add("[dim]no other column¹[/]" if is_count else "[dim]nothing that the lineage knows[/]")
    for each in branch.branches:
        _grow(graph, tree, each)
    return tree


def _ends(branch: "Branch") -> "Iterator[ColumnKey]":
    """The columns at which a tree ends."""
    from nightscout_lakehouse.lib.lineage.graph import ColumnKey

    if isinstance(branch.node, ColumnKey) and not branch.branches:
        yield branch.node
    for each in branch.branches:
        yield from _ends(each)


def _grow(graph: "Graph", tree: "Tree", branch: "Branch") -> None:
    below = tree.add(_line(graph, branch))
    for each in branch.branches:
        _grow(graph, below, each)


def _line(graph: "Graph", branch: "Branch") -> str:
    from nightscout_lakehouse.lib.lineage.graph import Bond, ColumnKey

    node, link = branch.node, branch.link
    key = node.dataset if isinstance(node, ColumnKey) else node
    dataset = graph.datasets[key]
    notes = [dataset.platform]
    if link is not None and link.how:
        notes.append(link.how if link.bond is Bond.VALUE else f"condition: {link.how}")
    if not isinstance(node, ColumnKey):
        if dataset.row_count is not None:
            notes.append(f"{dataset.row_count:,} rows")
        elif dataset.rows_written is not None:
            notes.append(f"{dataset.rows_written:,} rows written")
        if dataset.written_at is not None:
            notes.append(f"{dataset.written_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
    notes += ["see above"] if branch.is_repeated else []
    notes += ["more follows"] if branch.is_cut else []
    mark = "¹" if isinstance(node, ColumnKey) and not branch.branches and graph.is_made_of_none(node) else ""
    return f"{escape(graph.label(node))}{mark} [dim]· {escape(' · '.join(notes))}[/]"


def _plain(graph: "Graph", branch: "Branch") -> dict[str, Any]:
    """A tree in plain values, for JSON."""
    from nightscout_lakehouse.lib.lineage.graph import ColumnKey

    key = branch.node.dataset if isinstance(branch.node, ColumnKey) else branch.node
    plain: dict[str, Any] = {"name": graph.label(branch.node), "namespace": key.namespace, "dataset": key.name}
    if isinstance(branch.node, ColumnKey):
        plain["column"] = branch.node.column
    if branch.link is not None:
        plain |= {"how": branch.link.how, "bond": branch.link.bond, "step": branch.link.step.name}
    plain |= {"is_repeated": branch.is_repeated, "is_cut": branch.is_cut}
    plain["next"] = [_plain(graph, each) for each in branch.branches]
    return plain


def _plain_run(run: "PipelineRun") -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "job": run.job,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "state": run.state,
        "steps": run.step_count,
        "failed_steps": run.failed_steps,
    }


def _print_changes(target: Console, before: "PipelineRun", after: "PipelineRun", changes: "list[Change]") -> None:
    for word, run in (("from", before), ("to", after)):
        began = f"{run.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        target.print(f"{word:<5}[bold]{run.run_id[:8]}[/]  {began}  {run.step_count} steps, {run.state.lower()}")
    if not changes:
        target.print("Nothing that the lineage tells has changed.")
        return
    for kind, title in _KINDS.items():
        found = [change for change in changes if change.kind == kind]
        if not found:
            continue
        target.print()
        target.print(f"[bold]{title}[/]")
        for change in _gathered(found) if kind == "steps" else found:
            added = [f" ({line})" for line in change.detail] if kind == "rows" else []
            nothing = "did not run" if kind == "steps" else "not there"
            was, now = change.before or nothing, change.after or nothing
            target.print(f"  {change.subject}: {was} → {now}{''.join(added)}", markup=False, soft_wrap=True)
            if kind == "code":
                for line in change.detail[:_MOST_DETAIL_LINES]:
                    target.print(f"    {line}", markup=False, soft_wrap=True)
                more = len(change.detail) - _MOST_DETAIL_LINES
                if more > 0:
                    target.print(f"    … {more} lines more with --format json", style="dim")


def _gathered(changes: "list[Change]") -> "list[Change]":
    """The checks that ran in one run alone in one line: a tick tests what is new, and there may be nothing."""
    from dataclasses import replace

    checks = [each for each in changes if each.subject.endswith(".checks") and None in (each.before, each.after)]
    lines = [each for each in changes if each not in checks]
    for is_gone in (True, False):
        of_these = [each for each in checks if (each.after is None) is is_gone]
        if of_these:
            lines.append(replace(of_these[0], subject=f"checks of {len(of_these)} tables"))
    return lines
