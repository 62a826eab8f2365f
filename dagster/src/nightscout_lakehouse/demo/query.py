"""What `find[…]` means to Nightscout 15, quirks included (its `lib/server/query.js`)."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from nightscout_lakehouse.demo.person import zulu

Document = dict[str, Any]
Test = Callable[[Document], bool]

DEFAULT_WINDOW_MS = 4 * 86_400_000

_FIND = re.compile(r"find\[([\w.]+)\](?:\[(\$?\w+)\])?(?:\[\])?")
_LEADING_INTEGER = re.compile(r"\s*[-+]?\d+")
# Values of these are read as integers, whatever they look like: 2015-06-06T… is 2015.
_INTEGER_FIELDS = frozenset({"date", "sgv", "mbg", "filtered", "unfiltered", "rssi", "noise", "carbs", "insulin"})
_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda value, bound: bool(value == bound),
    "$ne": lambda value, bound: bool(value != bound),
    "$gt": lambda value, bound: _comparable(value, bound) and bool(value > bound),
    "$gte": lambda value, bound: _comparable(value, bound) and bool(value >= bound),
    "$lt": lambda value, bound: _comparable(value, bound) and bool(value < bound),
    "$lte": lambda value, bound: _comparable(value, bound) and bool(value <= bound),
    "$regex": lambda value, bound: isinstance(value, str) and re.search(bound, value) is not None,
}

_LOWER, _UPPER = ("$gte", "$gt", "$eq"), ("$lte", "$lt", "$eq")


class QueryError(Exception):
    """The database would refuse the query; the server answers with 500 and this description."""

    def __init__(self, description: object) -> None:
        super().__init__(str(description))
        self.description = description


@dataclass(frozen=True)
class Query:
    """A parsed query: bounds on the time field for a quick look-up, and a test for the rest.

    Attributes:
        low: Lower bound of `date`, epoch milliseconds.
        high: Upper bound of `date`.
        text_low: Lower bound of `dateString`.
        text_high: Upper bound of `dateString`.
        tests: All conditions.
        has_find: Whether the request has any condition.
        is_time_bounded: Whether it has one that keeps the server from adding its own window.
        only_type: Whether it has none but the type.
        parsed: The conditions as the server would show them.
    """

    low: float | None
    high: float | None
    text_low: str | None
    text_high: str | None
    tests: tuple[Test, ...]
    has_find: bool
    is_time_bounded: bool
    only_type: bool
    parsed: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, document: Document) -> bool:
        """Whether a document passes every condition."""
        return all(test(document) for test in self.tests)


def parse_find(
    pairs: Iterable[tuple[str, str]], *, time_field: str, now_ms: float, now_text: str, forced_type: str | None = None
) -> Query:
    """Read the `find[…]` parameters of a request.

    Args:
        pairs: Query parameters in order.
        time_field: `date` for entries, `created_at` or `startDate` for the other collections.
        now_ms: The time that the default window counts from.
        now_text: Start of the default window as text, for collections whose time is a text.
        forced_type: What `/entries/sgv.json` puts in the place of `find[type]`.

    Raises:
        QueryError: A bound is no number where one is needed, or the operator is unknown.
        ValueError: A bound on a time that is text is no date.
    """
    conditions: dict[str, list[tuple[str, Any]]] = {}
    for name, raw in pairs:
        if (match := _FIND.fullmatch(name)) is None:
            continue
        column, operator = match.group(1), match.group(2) or "$eq"
        conditions.setdefault(column, []).append((operator, _value(column, operator, raw)))
    has_find = bool(conditions)
    only_type = set(conditions) <= {"type"}
    if forced_type is not None:
        conditions["type"] = [("$eq", forced_type)]
    bounded = bool({time_field, "dateString", "_id"} & conditions.keys())
    if not bounded:
        start: Any = now_ms - DEFAULT_WINDOW_MS if time_field == "date" else now_text
        conditions[time_field] = [("$gte", start)]
    if time_field != "date" and bounded and time_field in conditions:
        conditions[time_field] = [(o, _utc_text(str(v))) for o, v in conditions[time_field]]
    tests = tuple(_test(column, operator, value) for column, found in conditions.items() for operator, value in found)
    bounds = conditions.get(time_field, []) if time_field == "date" else []
    texts = conditions.get("dateString", [])
    return Query(
        low=max((v for o, v in bounds if o in _LOWER), default=None),
        high=min((v for o, v in bounds if o in _UPPER), default=None),
        text_low=max((v for o, v in texts if o in _LOWER), default=None),
        text_high=min((v for o, v in texts if o in _UPPER), default=None),
        tests=tests,
        has_find=has_find,
        is_time_bounded=bounded,
        only_type=only_type,
        parsed={column: dict(found) if found[0][0] != "$eq" else found[0][1] for column, found in conditions.items()},
    )


def parse_count(raw: str | None, default: int) -> int:
    """The number of documents asked for.

    Raises:
        QueryError: It is no number.
    """
    if raw is None or raw == "":
        return default
    match = _LEADING_INTEGER.match(raw)
    if match is None:
        raise QueryError({})
    return int(match.group())


def newest_first(documents: Sequence[Document], count: int, *, oldest: bool) -> list[Document]:
    """The newest `count` documents, or the oldest; in either case the newest of them first."""
    chosen = documents[:count] if oldest else documents[-count:]
    return list(reversed(chosen))


def _value(column: str, operator: str, raw: str) -> Any:
    if operator not in _OPERATORS:
        raise QueryError({} if column in _INTEGER_FIELDS else {"ok": 0, "code": 2, "codeName": "BadValue"})
    if column not in _INTEGER_FIELDS:
        return raw
    match = _LEADING_INTEGER.match(raw)
    if match is None:
        raise QueryError({})
    return int(match.group())


def _utc_text(raw: str) -> str:
    """How the server writes a bound on a time that is text: in UTC, to the millisecond; a number stays as it is.

    Raises:
        ValueError: It is neither a number nor a date.
    """
    try:
        float(raw)
    except ValueError:
        moment = datetime.fromisoformat(raw.replace(" ", "+"))
        return zulu(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return raw


def _test(column: str, operator: str, bound: Any) -> Test:
    compare = _OPERATORS[operator]
    return lambda document: compare(document.get(column), bound)


def _comparable(value: Any, bound: Any) -> bool:
    # MongoDB compares within one type: a date stored as text is never in a numeric range.
    numbers = (int, float)
    if isinstance(bound, numbers):
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, str)
