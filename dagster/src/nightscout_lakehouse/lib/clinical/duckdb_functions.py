"""The SQL functions of this package, for every DuckDB connection of ours: dbt's, the program's and `lakehouse sql`.

* `glucose_mage(minutes double[], glucose double[]) -> double`: MAGE in mg/dL of readings in any order; `minutes` from
  an origin on a full 5 minutes, such as `epoch(reading_timestamp) / 60`. Null where no excursion counts.
* `glucose_bootstrap(key varchar, days date[], readings double[], very_low double[], low double[], in_range double[],
  high double[], very_high double[], glucose_sums double[])
  -> struct(tir_low, tir_high, gmi_low, gmi_high, gri_low, gri_high)`: 95 % intervals of a period from its days, one
  list element a day, in any order. Null with fewer than 7 days that have readings.
* `glucose_difference_intervals(key varchar, now_days date[], now_sums double[][], before_days date[],
  before_sums double[][]) -> struct(metric, low, high)[]`: 95 % intervals of the later period's figures less the
  earlier's, one list element a day; `DailySums` says what a day's sums are. Empty with fewer than 7 days on a side.

A null argument gives null. A view that calls them works only on connections of ours; tables that were built with them
work everywhere.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
from duckdb.func import ARROW, SPECIAL
from duckdb.sqltypes import DuckDBPyType

_INTERVALS = ("tir_low", "tir_high", "gmi_low", "gmi_high", "gri_low", "gri_high")


def register(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the functions known to the connection's database; a second time does nothing, its connections share them."""
    doubles = duckdb.list_type(duckdb.type("DOUBLE"))
    dates = duckdb.list_type(duckdb.type("DATE"))
    intervals = duckdb.struct_type(dict.fromkeys(_INTERVALS, duckdb.type("DOUBLE")))
    _create(connection, "glucose_mage", _mage, [doubles, doubles], duckdb.type("DOUBLE"))
    _create(connection, "glucose_bootstrap", _bootstrap, [duckdb.type("VARCHAR"), dates, *[doubles] * 7], intervals)
    interval_of_metric = {"metric": duckdb.type("VARCHAR"), "low": duckdb.type("DOUBLE"), "high": duckdb.type("DOUBLE")}
    _create(
        connection,
        "glucose_difference_intervals",
        _difference_intervals,
        [duckdb.type("VARCHAR"), *[dates, duckdb.list_type(doubles)] * 2],
        duckdb.list_type(duckdb.struct_type(interval_of_metric)),
    )


def _create(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    function: Callable[..., Any],
    parameters: list[Any],
    result: DuckDBPyType,
) -> None:
    try:
        connection.create_function(
            name,
            function,
            parameters,
            result,
            type=ARROW,
            null_handling=SPECIAL,
            side_effects=False,
        )
    except (duckdb.CatalogException, duckdb.NotImplementedException) as error:
        if "already" not in str(error):
            raise


@cache
def functions_version() -> str:
    """A hash of this package's code: a table built with other code is outdated, as with a model's own code."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# All arguments are Arrow arrays. DuckDB evaluates the annotations, so they name no type that is imported late.
def _mage(minutes: Any, glucose: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    from nightscout_lakehouse.lib.clinical.mage import mage

    values: list[float | None] = []
    for row_minutes, row_glucose in zip(minutes, glucose, strict=True):
        if not (row_minutes.is_valid and row_glucose.is_valid):
            values.append(None)
            continue
        # A null inside a list comes as NaN, which `mage` leaves out.
        result = mage(
            np.asarray(row_minutes.values.to_numpy(zero_copy_only=False)),
            np.asarray(row_glucose.values.to_numpy(zero_copy_only=False)),
        )
        values.append(result.mean_amplitude_mg_dl)
    return pa.array(values, pa.float64())


def _bootstrap(
    key: Any,
    days: Any,
    readings: Any,
    very_low: Any,
    low: Any,
    in_range: Any,
    high: Any,
    very_high: Any,
    glucose_sums: Any,
) -> Any:
    import pyarrow as pa

    from nightscout_lakehouse.lib.clinical.bootstrap import DailyCounts, bootstrap_intervals

    arguments = (key, days, readings, very_low, low, in_range, high, very_high, glucose_sums)
    values: list[dict[str, float] | None] = []
    for row_key, *columns in zip(*(argument.to_pylist() for argument in arguments), strict=True):
        if row_key is None or any(column is None for column in columns):
            values.append(None)
            continue
        intervals = bootstrap_intervals(row_key, [DailyCounts(*day) for day in zip(*columns, strict=True)])
        values.append(asdict(intervals) if intervals else None)
    return pa.array(values, pa.struct([(name, pa.float64()) for name in _INTERVALS]))


def _difference_intervals(key: Any, now_days: Any, now_sums: Any, before_days: Any, before_sums: Any) -> Any:
    import pyarrow as pa

    from nightscout_lakehouse.lib.clinical.comparison import DailySums, difference_intervals

    arguments = (key, now_days, now_sums, before_days, before_sums)
    values: list[list[dict[str, Any]] | None] = []
    for row_key, *columns in zip(*(argument.to_pylist() for argument in arguments), strict=True):
        if row_key is None or any(column is None for column in columns):
            values.append(None)
            continue
        now, before = (
            [DailySums(day, tuple(sums)) for day, sums in zip(*pair, strict=True)]
            for pair in (columns[:2], columns[2:])
        )
        values.append([asdict(interval) for interval in difference_intervals(row_key, now, before)])
    fields = [("metric", pa.string()), ("low", pa.float64()), ("high", pa.float64())]
    return pa.array(values, pa.list_(pa.struct(fields)))
