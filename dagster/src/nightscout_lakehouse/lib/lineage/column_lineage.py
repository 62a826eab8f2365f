"""What the columns of a table are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Columns of each table, by schema and table.
Schemas = Mapping[str, Mapping[str, Sequence[str]]]

# How far a value is from its source, the nearest first; as OpenLineage calls it.
DIRECT = ("IDENTITY", "TRANSFORMATION", "AGGREGATION")


@dataclass(frozen=True, order=True)
class ColumnSource:
    """A column that another one is made of.

    Attributes:
        table: Its table with schema.
        column: Its name.
        is_direct: Whether its values go in; else it only decides which do (a condition, an order).
        subtype: OpenLineage's word for how.
    """

    table: str
    column: str
    is_direct: bool = True
    subtype: str = "IDENTITY"

    def via(self, is_direct: bool, subtype: str) -> "ColumnSource":
        """The same source one step further away."""
        if self.is_direct and is_direct:
            return ColumnSource(self.table, self.column, True, max(self.subtype, subtype, key=DIRECT.index))
        return ColumnSource(self.table, self.column, False, self.subtype if not self.is_direct else subtype)


@dataclass(frozen=True)
class QueryLineage:
    """What a query is made of.

    Attributes:
        columns: For each column of its result, in order, the columns it is made of; none for a constant or a count.
        rows: What decides which rows there are, and how many: conditions, joins, groups.
        tables: The tables it reads, with schema.
        unresolved: Columns of which a part could not be resolved.
    """

    columns: Mapping[str, tuple[ColumnSource, ...]]
    rows: tuple[ColumnSource, ...]
    tables: tuple[str, ...]
    unresolved: tuple[str, ...]
