"""Days of 23 and 25 hours: all readings count, on the day that the wearer had."""

import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta

import pytest

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect

# From local midnight to local midnight, as UTC; Lord Howe Island moves its clocks by half an hour.
DAYS = {
    "berlin": ("Europe/Berlin", date(2026, 3, 29), datetime(2026, 3, 28, 23, tzinfo=UTC), 23.0),
    "berlin-autumn": ("Europe/Berlin", date(2026, 10, 25), datetime(2026, 10, 24, 22, tzinfo=UTC), 25.0),
    "new-york": ("America/New_York", date(2026, 11, 1), datetime(2026, 11, 1, 4, tzinfo=UTC), 25.0),
    "lord-howe": ("Australia/Lord_Howe", date(2026, 4, 5), datetime(2026, 4, 4, 13, tzinfo=UTC), 24.5),
    "kathmandu": ("Asia/Kathmandu", date(2026, 3, 29), datetime(2026, 3, 28, 18, 15, tzinfo=UTC), 24.0),
}


@pytest.fixture(scope="module")
def warehouse_of_full_days(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Per site one whole local day, and the last five minutes before and the first after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("full days")))
        settings = load_settings()
    lake = Lake.open(settings)
    for site, (_, _, start, hours) in DAYS.items():
        texts = [
            json.dumps(
                {
                    "_id": f"{number + 1:024x}",
                    "type": "sgv",
                    "sgv": 100,
                    "date": int((start + timedelta(minutes=5 * number)).timestamp() * 1000),
                    "device": "sensor",
                }
            )
            for number in range(-1, int(hours * 12) + 1)
        ]
        write_batch(lake, site, 1, documents_from_json(texts), datetime(2026, 11, 20, tzinfo=UTC))
    sites = [Site(name, "http://127.0.0.1:1", timezone=zone) for name, (zone, *_) in DAYS.items()]
    process_sites(sites, settings, lake)
    DbtProject(settings).build("duckdb", ["+dim_glucose_date"], data_tests=False)
    return settings


def test_a_day_is_as_long_as_it_was(warehouse_of_full_days: Settings) -> None:
    with connect(warehouse_of_full_days, warehouse_of_full_days.warehouse_path, read_only=True) as warehouse:
        found = warehouse.execute(
            """
            select site, reading_date, day_length_hours, expected_reading_count, reading_count, data_sufficiency_pct
            from curated.dim_glucose_date
            """
        ).fetchall()
    days = {(site, day): figures for site, day, *figures in found}
    for site, (_, day, _, hours) in DAYS.items():
        assert days[site, day] == [hours, int(hours * 12), int(hours * 12), 100.0]
        assert days[site, day - timedelta(days=1)][2] == 1
        assert days[site, day + timedelta(days=1)][2] == 1


def test_the_hour_that_comes_twice_has_twice_the_readings(warehouse_of_full_days: Settings) -> None:
    with connect(warehouse_of_full_days, warehouse_of_full_days.warehouse_path, read_only=True) as warehouse:
        found = warehouse.execute(
            """
            select readings.site, hour_of_day, count(*), count(glucose_change_mg_dl)
            from curated.fact_glucose_readings as readings
            group by all
            """
        ).fetchall()
    counts = {(site, hour): readings for site, hour, readings, _ in found}
    assert counts["berlin-autumn", 2] == 24
    assert counts["new-york", 1] == 24
    assert ("berlin", 2) not in counts
    assert counts["lord-howe", 1] == 18
    # The clock change is no gap: every reading but the first of a site has one before it.
    changes = {site: sum(row[3] for row in found if row[0] == site) for site in DAYS}
    assert changes == {site: int(hours * 12) + 1 for site, (*_, hours) in DAYS.items()}


BUILD = """
from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import load_settings
from nightscout_lakehouse.lib.sites import Site
settings = load_settings()
process_sites([Site("anna", "http://127.0.0.1:1", timezone="UTC")], settings, Lake.open(settings))
DbtProject(settings).build("duckdb", ["+dim_sensor_session"], data_tests=False)
"""


def test_the_clock_of_the_machine_counts_for_nothing(settings: Settings, lake: Lake) -> None:
    """A silence half an hour before nine days are over begins no session, though in Berlin those days were shorter."""
    start, end = datetime(2026, 3, 25, 10, tzinfo=UTC), datetime(2026, 4, 5, tzinfo=UTC)
    silence = datetime(2026, 4, 3, 8, tzinfo=UTC), datetime(2026, 4, 3, 9, 30, tzinfo=UTC)
    moments = [start + timedelta(minutes=30) * number for number in range((end - start) // timedelta(minutes=30))]
    texts = [
        json.dumps({"_id": f"{number:024x}", "type": "sgv", "sgv": 100, "date": int(moment.timestamp() * 1000)})
        for number, moment in enumerate(moments)
        if not silence[0] <= moment < silence[1]
    ]
    write_batch(lake, "anna", 1, documents_from_json(texts), datetime(2026, 11, 20, tzinfo=UTC))
    # In a process of its own: DuckDB looks at the machine's time zone once.
    environment = os.environ | {"TZ": "Europe/Berlin"}
    subprocess.run([sys.executable, "-c", BUILD], env=environment, check=True, timeout=200)
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        sessions = warehouse.execute("select session_start from curated.dim_sensor_session").fetchall()
        processed = warehouse.execute("select count(*) from lake.nightscout_entries where kind = 'sgv'").fetchall()
    assert processed == [(len(texts),)]
    assert sessions == [(start,)]
