"""What a de-identified export may have: columns by a list that the models know, and no day that tells its date."""

import csv
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import pytest
import yaml

from nightscout_lakehouse.lib.care.export import _TABLES, What, export
from nightscout_lakehouse.lib.settings import DBT_PROJECT_DIR

CHANGE = date(2026, 3, 29)
ZONE = ZoneInfo("Europe/Berlin")
IDENTIFYING = ("_id", "device", "notes", "entered_by", "reason", "profile_name", "event_type", "document", "timezone")


def contract(model: str) -> dict[str, str]:
    content = yaml.safe_load((DBT_PROJECT_DIR / "models" / "curated" / f"{model}.yml").read_text())
    (found,) = (each for each in content["models"] if each["name"] == model)
    return {column["name"]: column["data_type"] for column in found["columns"]}


@pytest.fixture
def warehouse() -> Iterator[duckdb.DuckDBPyConnection]:
    """The tables as their contracts say, with hourly readings of five days around a change of clocks."""
    with duckdb.connect() as connection:
        connection.execute("create schema curated")
        for model in ("dim_site", *(table.model for table in _TABLES.values())):
            columns = ", ".join(f"{name} {kind}" for name, kind in contract(model).items())
            connection.execute(f"create table curated.{model} ({columns})")
        connection.execute("insert into curated.dim_site (site, timezone) values ('anna', 'Europe/Berlin')")
        moment = datetime(2026, 3, 26, 23, tzinfo=UTC)
        while (local := moment.astimezone(ZONE)).date() < date(2026, 4, 1):
            connection.execute(
                "insert into curated.fact_glucose_readings (site, entry_id, reading_timestamp, reading_local_timestamp,"
                " reading_date, glucose_mg_dl, direction, device) values ('anna', ?, ?, ?, ?, 100, ?, 'serial 4711')",
                [
                    f"anna/{moment}",
                    moment,
                    local.replace(tzinfo=None),
                    local.date(),
                    "Flat" if local.hour else "my own",
                ],
            )
            moment += timedelta(hours=1)
        yield connection


def readings(folder: Path) -> list[dict[str, str]]:
    with (folder / "readings.csv").open() as file:
        return list(csv.DictReader(file))


def test_no_column_of_the_list_tells_who_it_is() -> None:
    for table in _TABLES.values():
        columns = contract(table.model)
        assert set(table.deidentified) <= columns.keys(), table.model
        assert [name for name in table.deidentified if name.endswith(IDENTIFYING) or name in IDENTIFYING] == []
        assert [name for name in table.deidentified if "time zone" in columns[name]] == []
        texts = {name for name in table.deidentified if columns[name] == "varchar"}
        # Of a text column, all values must be words of ours; `direction` is held to a list.
        assert texts <= {"glucose_category", "glucose_range", "direction", "treatment_kind", "kind"}


def test_the_day_on_which_clocks_change_is_left_out(warehouse: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    export(warehouse, tmp_path / "plain", sites=["anna"], what=[What.READINGS])
    export(warehouse, tmp_path / "safe", sites=["anna"], what=[What.READINGS], deidentify=True)
    plain, safe = readings(tmp_path / "plain"), readings(tmp_path / "safe")
    assert sum(row["reading_date"] == str(CHANGE) for row in plain) == 23
    assert len(safe) == len(plain) - 23
    # Day for day 24 hours: none shows where the missing one was.
    assert len({row["reading_date"] for row in safe}) * 24 == len(safe)
    assert {row["direction"] for row in safe} == {"Flat", ""}
    assert "direction" in plain[0]
    assert {row["direction"] for row in plain} == {"Flat", "my own"}


def test_two_exports_cannot_be_joined_by_name_or_date(warehouse: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    names, shifts = set(), set()
    for number in range(12):
        folder = tmp_path / str(number)
        export(warehouse, folder, sites=["anna"], what=[What.READINGS], deidentify=True)
        rows = readings(folder)
        names |= {row["site"] for row in rows}
        shifts.add(date(2026, 3, 27) - date.fromisoformat(rows[0]["reading_date"]))
    assert len(names) == 12
    assert len(shifts) > 6
    assert all(shift.days % 7 == 0 and shift.days >= 14 for shift in shifts)
