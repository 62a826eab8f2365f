"""The SQL functions as every connection of ours has them."""

from datetime import date, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pytest

from nightscout_lakehouse.lib.clinical.bootstrap import DailyCounts, bootstrap_intervals
from nightscout_lakehouse.lib.clinical.duckdb_functions import register
from nightscout_lakehouse.lib.clinical.mage import mage
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.warehouse import connect

READINGS = """
    select site, place * 5 as minutes, round(150 + 60 * sin(place / (10 + site)), 1) as glucose
    from range(3) as sites (site), range(3000) as places (place)
    where place not between 100 and 100 + 20 * site
"""


@pytest.fixture
def connection(settings: Settings) -> duckdb.DuckDBPyConnection:
    return connect(settings)


def test_mage_of_each_site_equals_the_function(connection: duckdb.DuckDBPyConnection) -> None:
    rows = connection.sql(
        f"select site, glucose_mage(list(minutes), list(glucose)) from ({READINGS}) group by all order by all"
    ).fetchall()
    for site, found in rows:
        of_site = connection.sql(f"select minutes, glucose from ({READINGS}) where site = {site} order by minutes")
        pairs = np.array(of_site.fetchall(), dtype=np.float64)
        assert found == mage(pairs[:, 0], pairs[:, 1]).mean_amplitude_mg_dl
    assert len(rows) == 3


def test_mage_of_many_rows_at_once(connection: duckdb.DuckDBPyConnection) -> None:
    # More rows than one vector holds; every third has no readings.
    rows = connection.sql(
        """
        select
            number,
            glucose_mage(
                case when number % 3 > 0 then [place * 5.0 for place in range(40)] end,
                [100 + (number % 7) * 10.0 * (place % 20) / 20 for place in range(40)]
            )
        from range(5000) as numbers (number)
        order by number
        """
    ).fetchall()
    by_kind: dict[int, set[float | None]] = {}
    for number, value in rows:
        if number % 3 == 0:
            assert value is None
        else:
            by_kind.setdefault(number % 7, set()).add(value)
    assert all(len(values) == 1 for values in by_kind.values())
    assert len(set.union(*by_kind.values())) == 7


def test_nulls(connection: duckdb.DuckDBPyConnection) -> None:
    assert connection.sql(
        "select glucose_mage(null, [1.0]), glucose_mage([], []), glucose_mage([null, 5], [100, null])"
    ).fetchall() == [(None, None, None)]
    assert connection.sql(
        "select glucose_bootstrap(null, [], [], [], [], [], [], [], []), "
        "glucose_bootstrap('key', [], [], [], [], [], [], [], [])"
    ).fetchall() == [(None, None)]


def test_lists_of_unequal_length_are_an_error(connection: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.InvalidInputException, match="of one length"):
        connection.sql("select glucose_mage([1.0], [1.0, 2.0])").fetchall()
    with pytest.raises(duckdb.InvalidInputException):
        connection.sql("select glucose_bootstrap('k', ['2026-01-01'::date], [], [], [], [], [], [], [])").fetchall()


def test_bootstrap_equals_the_function_and_takes_what_sum_gives(connection: duckdb.DuckDBPyConnection) -> None:
    # sum() of counts is a hugeint; the lists come in no order.
    row = connection.sql(
        """
        select glucose_bootstrap(
            'anna|14d', list(day), list(readings), list(low), list(low), list(in_range),
            list(high), list(high), list(total)
        ) as intervals
        from (
            select
                date '2026-01-01' + number::integer as day, sum(288) as readings, sum(number % 4) as low,
                sum(288 - 2 * (number % 4) - 2 * (number % 9)) as in_range, sum(number % 9) as high,
                sum(40000.5 + number * 100) as total
            from range(14) as numbers (number)
            group by number
            order by hash(number)
        )
        """
    ).fetchall()[0][0]
    days = [
        DailyCounts(
            date(2026, 1, 1) + timedelta(days=number),
            *(288, number % 4, number % 4, 288 - 2 * (number % 4) - 2 * (number % 9), number % 9, number % 9),
            40000.5 + number * 100,
        )
        for number in range(14)
    ]
    expected = bootstrap_intervals("anna|14d", days)
    assert expected is not None
    assert row == vars(expected)
    assert row["tir_low"] < row["tir_high"]


def test_again_and_on_a_second_connection_to_one_file(settings: Settings, tmp_path: Path) -> None:
    first = connect(settings, tmp_path / "warehouse.duckdb")
    second = connect(settings, tmp_path / "warehouse.duckdb")
    register(first)
    register(second)
    first.close()
    assert second.sql("select glucose_mage([1.0], [1.0])").fetchall() == [(None,)]
    assert second.cursor().sql("select glucose_mage([1.0], [1.0])").fetchall() == [(None,)]
    second.close()
    third = connect(settings, tmp_path / "warehouse.duckdb", read_only=True)
    assert third.sql("select glucose_mage([1.0], [1.0])").fetchall() == [(None,)]
