"""Publishing from the warehouse to a real Postgres."""

import functools
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from nightscout_lakehouse.lib import publishing
from nightscout_lakehouse.lib.errors import LakeError, ServingDatabaseError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.publishing import PublishedTable, PublishReport
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.warehouse import open_warehouse

pytestmark = pytest.mark.postgres

# One of each grain; their names stand in the messages.
TABLES = (
    PublishedTable("dim_site", ("site",), grain="whole"),
    PublishedTable("dim_glucose_date", ("site", "reading_date"), grain="day"),
    PublishedTable("fact_glucose_readings", ("entry_id",), grain="day", indexes=(("site", "reading_date"),)),
    PublishedTable("fact_glucose_metrics", ("site", "metric"), grain="site"),
)
publish = functools.partial(publishing.publish, tables=TABLES)

MODELS = """
create schema if not exists curated;
create or replace table curated.dim_site as select 'amy' as site, 'Europe/Paris' as timezone, 5.0::double as minutes;
create or replace table curated.fact_glucose_readings as
select
    'amy/' || n as entry_id,
    'amy' as site,
    timestamptz '2026-11-01 00:00:00+00' + n * interval 5 minutes as reading_timestamp,
    (timestamptz '2026-11-01 00:00:00+00' + n * interval 5 minutes)::date as reading_date,
    (n % 288 // 12)::smallint as hour_of_day,
    80 + n % 120.0::double as glucose_mg_dl,
    'uploader' as device,
    n % 7 = 0 as is_flagged,
    (n / 10)::decimal(10, 2) as ratio,
    n::bigint as batch
from range(288 * 5) as numbers (n);
create or replace table curated.dim_glucose_date as
select site, reading_date, count(*) as reading_count, avg(glucose_mg_dl) as avg_glucose_mg_dl
from curated.fact_glucose_readings group by all;
create or replace table curated.fact_glucose_metrics as
select site, unnest(['mean', 'sd']) as metric, unnest([139.5, 34.6]) as value
from (values ('amy'), ('zoe')) as sites (site);
"""


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    settings = Settings(LAKEHOUSE_HOME=tmp_path / "home", _env_file=None)
    with open_warehouse(settings) as connection:
        connection.execute(MODELS)
        touch(connection, "amy", None)
        yield connection


def touch(warehouse: duckdb.DuckDBPyConnection, site: str, day: str | None) -> None:
    warehouse.execute("insert into ops.changes (site, reading_date) values (?, ?)", [site, day])


def fetch(connection: PostgresConnection, query: str) -> list[tuple[Any, ...]]:
    with connection.transaction() as opened, opened.cursor() as cursor:
        cursor.execute("set timezone = 'UTC'")
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def written(report: PublishReport) -> dict[str, tuple[int, int, int]]:
    return {table.table: (table.inserted, table.updated, table.deleted) for table in report.tables}


def assert_same(warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection) -> None:
    """Every published table equals its model, value for value."""
    for table in TABLES:
        order = ", ".join(table.key)
        names = [row[0] for row in warehouse.execute(f"describe curated.{table.name}").fetchall()]
        query = f"select {', '.join(names)} from curated.{table.name} order by {order}"
        assert fetch(serving, query) == warehouse.execute(query).fetchall()


def test_first_publish_brings_everything(warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection) -> None:
    report = publish(warehouse, serving)
    assert report.is_full
    assert written(report) == {
        "dim_site": (1, 0, 0),
        "dim_glucose_date": (5, 0, 0),
        "fact_glucose_readings": (1440, 0, 0),
        "fact_glucose_metrics": (4, 0, 0),
    }
    assert_same(warehouse, serving)
    types = dict(
        fetch(
            serving,
            "select column_name::text, data_type::text from information_schema.columns "
            "where table_schema = 'curated' and table_name = 'fact_glucose_readings'",
        )
    )
    assert types == {
        "entry_id": "text",
        "site": "text",
        "reading_timestamp": "timestamp with time zone",
        "reading_date": "date",
        "hour_of_day": "smallint",
        "glucose_mg_dl": "double precision",
        "device": "text",
        "is_flagged": "boolean",
        "ratio": "numeric",
        "batch": "bigint",
    }


def test_publishing_again_does_nothing(warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection) -> None:
    publish(warehouse, serving)
    before = fetch(serving, "select * from ops.publish_state")
    report = publish(warehouse, serving)
    assert (report.tables, report.is_full, report.rows_written) == ((), False, 0)
    assert fetch(serving, "select * from ops.publish_state") == before


def test_only_changed_rows_of_changed_days_are_written(
    warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection
) -> None:
    publish(warehouse, serving)
    places = dict(fetch(serving, "select entry_id, ctid::text from curated.fact_glucose_readings"))
    warehouse.execute("update curated.fact_glucose_readings set glucose_mg_dl = 99.5 where entry_id = 'amy/300'")
    # Its effect on the next day's first reading.
    warehouse.execute("update curated.fact_glucose_readings set batch = -1 where entry_id = 'amy/576'")
    warehouse.execute("delete from curated.fact_glucose_readings where entry_id = 'amy/301'")
    warehouse.execute(
        "insert into curated.fact_glucose_readings by name select * replace ('amy/new' as entry_id) "
        "from curated.fact_glucose_readings where entry_id = 'amy/302'"
    )
    touch(warehouse, "amy", "2026-11-02")
    report = publish(warehouse, serving)
    assert not report.is_full
    assert written(report)["fact_glucose_readings"] == (1, 2, 1)
    assert report.tables[2].considered == 3 * 288
    assert report.tables[2].unchanged == 3 * 288 - 3
    assert_same(warehouse, serving)
    now = dict(fetch(serving, "select entry_id, ctid::text from curated.fact_glucose_readings"))
    moved = {key for key in places.keys() & now.keys() if places[key] != now[key]}
    assert moved == {"amy/300", "amy/576"}


def test_a_table_without_days_is_compared_for_the_sites_that_changed(
    warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection
) -> None:
    publish(warehouse, serving)
    warehouse.execute("delete from curated.fact_glucose_metrics where site = 'amy' and metric = 'sd'")
    warehouse.execute("update curated.fact_glucose_metrics set value = 1 where site = 'amy'")
    touch(warehouse, "amy", "2026-11-02")
    report = publish(warehouse, serving)
    assert not report.is_full
    assert written(report)["fact_glucose_metrics"] == (0, 1, 1)
    assert report.tables[3].considered == 1
    assert_same(warehouse, serving)


def test_reading_moves_to_another_day_and_site_disappears(
    warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection
) -> None:
    warehouse.execute(
        "insert into curated.fact_glucose_readings by name "
        "select * replace ('bob/1' as entry_id, 'bob' as site) from curated.fact_glucose_readings limit 1"
    )
    publish(warehouse, serving)
    warehouse.execute(
        "update curated.fact_glucose_readings set reading_date = '2026-11-05', "
        "reading_timestamp = '2026-11-05 01:02:03.456+00' where entry_id = 'amy/0'"
    )
    warehouse.execute("delete from curated.fact_glucose_readings where site = 'bob'")
    for site, day in (("amy", "2026-11-01"), ("amy", "2026-11-05"), ("bob", None)):
        touch(warehouse, site, day)
    assert written(publish(warehouse, serving))["fact_glucose_readings"] == (0, 1, 1)
    assert_same(warehouse, serving)


def test_another_warehouse_replaces_everything_and_forgets_its_sites(
    warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection
) -> None:
    publish(warehouse, serving)
    fetch(
        serving,
        "insert into curated.fact_glucose_readings (entry_id, site) values ('gone/1', 'gone');"
        "insert into curated.dim_site (site) values ('gone')",
    )
    warehouse.execute("update ops.info set warehouse_id = 'another'")
    report = publish(warehouse, serving)
    assert report.reason == "the warehouse is another one"
    assert written(report) == {
        "dim_site": (0, 0, 1),
        "dim_glucose_date": (0, 0, 0),
        "fact_glucose_readings": (0, 0, 1),
        "fact_glucose_metrics": (0, 0, 0),
    }
    assert_same(warehouse, serving)


def test_new_site_without_readings_arrives(warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection) -> None:
    publish(warehouse, serving)
    warehouse.execute("insert into curated.dim_site values ('new', 'UTC', 5)")
    report = publish(warehouse, serving)
    assert not report.is_full
    assert written(report)["dim_site"] == (1, 0, 0)
    assert report.tables[2].considered == 0
    assert publish(warehouse, serving).tables == ()


def test_rows_that_changed_unannounced_are_found_by_their_number(
    warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection
) -> None:
    publish(warehouse, serving)
    warehouse.execute("delete from curated.fact_glucose_readings where reading_date = '2026-11-04'")
    touch(warehouse, "amy", "2026-11-01")
    report = publish(warehouse, serving)
    assert "number of rows" in report.reason
    assert_same(warehouse, serving)


def test_changes_that_a_model_has_not_taken_in_are_not_called_published(
    warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection
) -> None:
    warehouse.execute("insert into ops.watermarks values ('fact_glucose_readings', 1), ('dim_glucose_date', 1)")
    publish(warehouse, serving)
    touch(warehouse, "amy", "2026-11-01")
    assert publish(warehouse, serving).tables == ()
    warehouse.execute("update curated.fact_glucose_readings set batch = 7 where entry_id = 'amy/5'")
    warehouse.execute("update ops.watermarks set change_seq = 2")
    assert written(publish(warehouse, serving))["fact_glucose_readings"] == (0, 1, 0)


@pytest.mark.parametrize(
    "drift",
    [
        "alter table curated.fact_glucose_readings add column noise integer default 3",
        "alter table curated.fact_glucose_readings drop column ratio",
        "alter table curated.fact_glucose_readings alter column hour_of_day type integer",
        "alter table curated.fact_glucose_readings alter column ratio type decimal(12, 3)",
    ],
)
def test_columns_follow_the_model(
    warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection, drift: str
) -> None:
    publish(warehouse, serving)
    fetch(
        serving,
        "create view marts.daily as select site, max(glucose_mg_dl) as highest from curated.fact_glucose_readings "
        "group by site; create view marts.above as select * from marts.daily where highest > 100;"
        "create view marts.ratios as select ratio, hour_of_day from curated.fact_glucose_readings",
    )
    warehouse.execute(drift)
    report = publish(warehouse, serving)
    assert "columns of fact_glucose_readings" in report.reason
    assert report.tables[2].is_recreated
    assert_same(warehouse, serving)
    assert fetch(serving, "select site from marts.above") == [("amy",)]
    has_ratios = fetch(serving, "select to_regclass('marts.ratios') is not null")[0][0]
    assert has_ratios is ("drop column" not in drift)
    indexes = fetch(serving, "select indexname::text from pg_indexes where schemaname = 'curated' order by 1")
    assert [name for (name,) in indexes] == [
        "dim_glucose_date_pkey",
        "dim_site_pkey",
        "fact_glucose_metrics_pkey",
        "fact_glucose_readings_pkey",
        "fact_glucose_readings_site_reading_date_idx",
    ]
    assert publish(warehouse, serving).tables == ()


NASTY = [
    "",
    " ",
    "\\N",
    "\\.",
    "NULL",
    '"',
    "'",
    '"";',
    "a\nb",
    "a\r\nb",
    "a\tb",
    "\\",
    "\\n",
    "a\n\\.\nb",
    "Ünïcödé 🩸",
    "{}",
]


def test_text_arrives_as_it_is(warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection) -> None:
    for number, device in enumerate([*NASTY, None]):
        warehouse.execute(
            "update curated.fact_glucose_readings set device = ? where entry_id = ?", [device, f"amy/{number}"]
        )
    publish(warehouse, serving)
    assert_same(warehouse, serving)
    # The character that Postgres cannot hold is left out.
    warehouse.execute("update curated.fact_glucose_readings set device = 'a' || chr(0) || 'b' where entry_id = 'amy/0'")
    touch(warehouse, "amy", "2026-11-01")
    publish(warehouse, serving)
    assert fetch(serving, "select device from curated.fact_glucose_readings where entry_id = 'amy/0'") == [("ab",)]


def test_numbers_arrive_as_they_are(warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection) -> None:
    values = [
        "0.1",
        "1e-300",
        "1.7976931348623157e308",
        "'inf'",
        "'-inf'",
        "-0.0",
        "5e-324",
        "null",
        "123456789.123456789",
    ]
    for number, value in enumerate(values):
        warehouse.execute(
            f"update curated.fact_glucose_readings set glucose_mg_dl = {value}, ratio = -0.05, batch = null "
            f"where entry_id = 'amy/{number}'"
        )
    publish(warehouse, serving)
    assert_same(warehouse, serving)
    warehouse.execute("update curated.fact_glucose_readings set glucose_mg_dl = 'nan' where entry_id = 'amy/0'")
    touch(warehouse, "amy", "2026-11-01")
    assert written(publish(warehouse, serving))["fact_glucose_readings"] == (0, 1, 0)
    touch(warehouse, "amy", "2026-11-01")
    assert written(publish(warehouse, serving))["fact_glucose_readings"] == (0, 0, 0)


def test_reader_sees_the_state_before_until_the_commit(
    warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection
) -> None:
    publish(warehouse, serving)
    warehouse.execute("update curated.fact_glucose_readings set batch = -1")
    warehouse.execute("delete from curated.dim_site")
    warehouse.execute("insert into curated.dim_site values ('zoe', 'UTC', 1)")
    touch(warehouse, "amy", None)
    seen: set[tuple[Any, ...]] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.update(
                fetch(
                    serving,
                    "select (select count(*) from curated.fact_glucose_readings where batch = -1), "
                    "(select string_agg(site, ',') from curated.dim_site), "
                    "(select change_seq from ops.publish_state)",
                )
            )

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for day in range(10):
            warehouse.execute(f"update curated.fact_glucose_readings set batch = -1, ratio = {day}")
            publish(warehouse, serving, full=True)
    finally:
        done.set()
        reader.join()
    assert seen <= {(0, "amy", 1), (1440, "zoe", 2)}
    assert (1440, "zoe", 2) in seen


def test_failure_in_the_middle_changes_nothing(
    warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection
) -> None:
    publish(warehouse, serving)
    before = fetch(serving, "select * from curated.dim_glucose_date order by 1, 2")
    warehouse.execute("update curated.dim_glucose_date set reading_count = 0")
    warehouse.execute("insert into curated.fact_glucose_readings from curated.fact_glucose_readings limit 1")
    warehouse.execute("update curated.fact_glucose_readings set entry_id = 'twice' where entry_id = 'amy/0'")
    touch(warehouse, "amy", None)
    with pytest.raises(ServingDatabaseError, match=r"two rows with the same entry_id"):
        publish(warehouse, serving)
    assert fetch(serving, "select * from curated.dim_glucose_date order by 1, 2") == before
    assert fetch(serving, "select change_seq from ops.publish_state") == [(1,)]


def test_two_publishers_take_turns(warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection) -> None:
    reports: list[PublishReport] = []
    other = warehouse.cursor()
    threads = [
        threading.Thread(target=lambda connection=connection: reports.append(publish(connection, serving)))
        for connection in (warehouse, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 2
    assert_same(warehouse, serving)
    assert publish(warehouse, serving).tables == ()


def test_unpublishable_model_is_named(warehouse: duckdb.DuckDBPyConnection, serving: PostgresConnection) -> None:
    warehouse.execute("alter table curated.dim_site add column tags varchar[]")
    with pytest.raises(LakeError, match=re.escape("dim_site.tags has the type VARCHAR[]")):
        publish(warehouse, serving)
    warehouse.execute("drop table curated.dim_site")
    with pytest.raises(LakeError, match=r"no table curated.dim_site"):
        publish(warehouse, serving)
