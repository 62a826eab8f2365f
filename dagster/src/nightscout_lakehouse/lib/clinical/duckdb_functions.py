"""The SQL functions of this package, for every DuckDB connection of ours: dbt's, the program's and `lakehouse sql`.

* `glucose_mage(minutes double[], glucose double[]) -> double`: MAGE in mg/dL of readings in any order; `minutes` from
  an origin on a full 5 minutes, such as `epoch(reading_timestamp) / 60`. Null where no excursion counts.
* `glucose_bootstrap(key varchar, days date[], readings double[], very_low double[], low double[], in_range double[],
  high double[], very_high double[], glucose_sums double[])
  -> struct(tir_low, tir_high, gmi_low, gmi_high, gri_low, gri_high)`: 95 % intervals of a period from its days, one
  list element a day, in any order. Null with fewer than 7 days that have readings.

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
