"""Which columns a column of a query is made of, by sqlglot's parser.

`openlineage-dbt` brings a parser of its own, which gives up at `select *`, at a lateral join and at much of DuckDB's
syntax (docs/decisions/0012-lineage.md). Here the tables' columns are known, so that every star is expanded and every
name is resolved. What cannot be resolved is left out: a wrong edge is worse than a missing one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlglot import exp, parse_one
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import Scope, build_scope

from nightscout_lakehouse.lib.lineage.column_lineage import DIRECT, ColumnSource, QueryLineage, Schemas

_ROW_PARTS = (("where", "FILTER"), ("having", "FILTER"), ("qualify", "FILTER"), ("group", "GROUP_BY"))


def query_lineage(sql: str, dialect: str, schemas: Schemas) -> QueryLineage:
    """Resolve every column of a query.

    Args:
        sql: One `select`.
        dialect: `duckdb` or `postgres`.
        schemas: The columns of the tables that it reads.

    Raises:
        sqlglot.errors.SqlglotError: The query cannot be parsed.
    """
    known = {
        schema: {table: dict.fromkeys(columns, "text") for table, columns in tables.items()}
        for schema, tables in schemas.items()
    }
    parsed = parse_one(sql, dialect=dialect)
    _spell_out_unpivots(parsed, dialect, known)
    tree = _qualified(parsed, dialect, known)
    root = build_scope(tree)
    if root is None:
        return QueryLineage({}, (), (), ())
    resolver = _Resolver(known)
    columns = {name: resolver.column(root, name) for name in tree.named_selects}
    return QueryLineage(
        columns={name: _nearest(sources) for name, sources in columns.items()},
        rows=_nearest(resolver.rows(root)),
        tables=tuple(sorted({_table_name(table) for scope in root.traverse() for table in _tables(scope)})),
        unresolved=tuple(name for name in columns if resolver.is_unresolved(root, name)),
    )


def _qualified(tree: Any, dialect: str, schemas: Mapping[str, Any]) -> Any:
    return qualify(
        tree,
        dialect=dialect,
        schema=dict(schemas),
        validate_qualify_columns=False,
        identify=False,
        quote_identifiers=False,
    )


class _Resolver:
    """Follows names through the scopes of one query, each only once."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Mapping[str, str]]]) -> None:
        self._schemas = schemas
        self._found: dict[tuple[int, str], frozenset[ColumnSource]] = {}
        self._unresolved: set[tuple[int, str]] = set()

    def column(self, scope: Scope, name: str) -> frozenset[ColumnSource]:
        """The sources of a column of a scope's result."""
        key = (id(scope.expression), name)
        if key not in self._found:
            # A recursive query names itself.
            self._found[key] = frozenset()
            self._found[key] = self._resolve(scope, name, key)
        return self._found[key]

    def is_unresolved(self, scope: Scope, name: str) -> bool:
        """Whether a part of it was not found."""
        return (id(scope.expression), name) in self._unresolved

    def rows(self, root: Scope) -> frozenset[ColumnSource]:
        """What decides which rows there are: of every query inside, the columns of its conditions and groups."""
        found: set[ColumnSource] = set()
        for scope in root.traverse():
            query = scope.expression
            if not isinstance(query, exp.Select):
                continue
            parts = [(query.args.get(name), word) for name, word in _ROW_PARTS]
            parts += [(join.args.get("on"), "JOIN") for join in query.args.get("joins") or []]
            for part, word in parts:
                if part is not None:
                    found |= {source.via(False, word) for source in self._of_expression(scope, part, (id(part), ""))}
        return frozenset(found)

    def _resolve(self, scope: Scope, name: str, key: tuple[int, str]) -> frozenset[ColumnSource]:
        query = scope.expression
        if isinstance(query, exp.Subquery) and scope.subquery_scopes:
            return self._of_scope(scope.subquery_scopes[0], name, key)
        if isinstance(query, exp.SetOperation):
            position = query.named_selects.index(name)
            return frozenset().union(
                *(self._of_scope(part, _names(part)[position], key) for part in scope.set_operation_scopes)
            )
        if isinstance(query, exp.Select):
            selected = next((item for item in query.selects if item.alias_or_name == name), None)
            if selected is None:
                self._unresolved.add(key)
                return frozenset()
            return self._of_expression(scope, selected.unalias(), key)
        # A table function, as unnest(…): whatever goes in may come out in any of its columns.
        return self._of_expression(scope, query, key)

    def _of_scope(self, scope: Scope, name: str, key: tuple[int, str]) -> frozenset[ColumnSource]:
        sources = self.column(scope, name)
        if self.is_unresolved(scope, name):
            self._unresolved.add(key)
        return sources

    def _of_expression(self, scope: Scope, expression: exp.Expr, key: tuple[int, str]) -> frozenset[ColumnSource]:
        found: set[ColumnSource] = set()
        inner = {id(each.expression): each for each in scope.subquery_scopes}
        for node in expression.walk(prune=lambda each: id(each) in inner):
            if id(node) in inner:
                nested = inner[id(node)]
                for name in _names(nested):
                    found |= {source.via(*_way(node, expression)) for source in self._of_scope(nested, name, key)}
            elif isinstance(node, exp.Column) and not isinstance(node.this, exp.Star):
                found |= {source.via(*_way(node, expression)) for source in self._of_column(scope, node, key)}
        return frozenset(found)

    def _of_column(self, scope: Scope, column: exp.Column, key: tuple[int, str]) -> frozenset[ColumnSource]:
        source = scope.sources.get(column.table) if column.table else None
        if isinstance(source, Scope):
            return self._of_scope(source, column.name, key)
        if isinstance(source, exp.Table) and column.name in self._schemas.get(source.db, {}).get(source.name, {}):
            return frozenset({ColumnSource(_table_name(source), column.name)})
        self._unresolved.add(key)
        return frozenset()


def _way(node: exp.Expr, top: exp.Expr) -> tuple[bool, str]:
    """How a column goes into an expression: whether by its values, and OpenLineage's word for it."""
    if node is top:
        return True, "IDENTITY"
    subtype = "TRANSFORMATION"
    child = node
    while child is not top:
        parent = child.parent
        if parent is None:
            break
        if isinstance(parent, exp.Filter) and child is parent.expression:
            return False, "FILTER"
        if (isinstance(parent, exp.If) and child is parent.this) or (
            isinstance(parent, exp.Case) and child is parent.this
        ):
            return False, "CONDITIONAL"
        if isinstance(parent, exp.Window) and child is not parent.this:
            return False, "WINDOW"
        if isinstance(parent, exp.Ordered):
            return False, "SORT"
        if isinstance(parent, exp.AggFunc):
            subtype = "AGGREGATION"
        child = parent
    return True, subtype


def _names(scope: Scope) -> list[str]:
    return list(scope.expression.named_selects) if isinstance(scope.expression, exp.Query) else []


def _nearest(sources: frozenset[ColumnSource]) -> tuple[ColumnSource, ...]:
    """One entry per source column: by its values rather than not, and the nearest way."""
    best: dict[tuple[str, str], ColumnSource] = {}
    for source in sorted(sources, key=lambda each: (not each.is_direct, _rank(each), each)):
        best.setdefault((source.table, source.column), source)
    return tuple(sorted(best.values()))


def _rank(source: ColumnSource) -> int:
    return DIRECT.index(source.subtype) if source.subtype in DIRECT else len(DIRECT)


def _tables(scope: Scope) -> list[exp.Table]:
    return [source for source in scope.sources.values() if isinstance(source, exp.Table) and source.db]


def _table_name(table: exp.Table) -> str:
    return f"{table.db}.{table.name}"


def _spell_out_unpivots(tree: Any, dialect: str, schemas: Mapping[str, Any]) -> None:
    """Put a plain `select` in the place of each CTE that is DuckDB's statement `unpivot`, which has no columns yet."""
    for position, cte in enumerate(tree.ctes):
        pivot = cte.this
        if not (isinstance(pivot, exp.Pivot) and pivot.args.get("unpivot") and pivot.args.get("into")):
            continue
        source = pivot.this.copy()
        source = source.subquery("unpivoted") if isinstance(source, exp.Select) else source
        everything = exp.select("*").from_(source)
        everything.set("with_", exp.With(expressions=[each.copy() for each in tree.ctes[:position]]))
        columns = _qualified(everything, dialect, schemas).named_selects
        stacked = _stacked_columns(pivot, columns)
        into = pivot.args["into"]
        spelled = exp.select(
            *(exp.column(name) for name in columns if name not in stacked),
            exp.alias_(exp.Literal.string(""), into.this.name),
            exp.alias_(exp.func("coalesce", *(exp.column(name) for name in stacked)), into.expressions[0].name),
        ).from_(source.copy())
        cte.set("this", spelled)


def _stacked_columns(pivot: exp.Pivot, columns: Sequence[str]) -> list[str]:
    stacked: list[str] = []
    for each in pivot.expressions:
        star = each.this if isinstance(each, exp.Columns) else None
        if isinstance(star, exp.Star):
            left_out = {column.name for column in star.args.get("except_") or []}
            stacked += [name for name in columns if name not in left_out]
        else:
            stacked.append(each.name)
    return stacked
