"""The people of a CSV with the columns `subject,local_time,glucose_mg_dl`, each as a Nightscout server of their own."""

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import duckdb

from nightscout_lakehouse.demo import DemoOptions, DemoServer, DemoStore

# The file gives wall-clock times without a zone. One without clock changes maps each of them to one moment.
ZONE: Final = "Etc/GMT+8"
TOKEN: Final = "of-the-benchmarks-0123456789abcdef"
TOKEN_VARIABLE: Final = "BENCHMARK_TOKEN"


def read_readings(file: Path) -> duckdb.DuckDBPyConnection:
    """A database whose table `readings` is the file."""
    source = duckdb.connect()
    source.execute("create table readings as from read_csv(?)", [str(file)])
    return source


def serve_people(
    source: duckdb.DuckDBPyConnection, servers: ExitStack, *, today: datetime | None = None
) -> dict[str, str]:
    """Start a server for each person, behind `TOKEN`.

    Args:
        source: With the table `readings`.
        servers: Ends the servers.
        today: If given, everybody's readings move by whole days, so that hours of the day stay, until the newest one
            lies within the 24 hours before.

    Returns:
        The servers' addresses by site; a site is called as its subject, in small letters.
    """
    rows = source.execute("select subject, local_time, glucose_mg_dl from readings order by all").fetchall()
    zone, by_site = ZoneInfo(ZONE), dict[str, list[tuple[datetime, int]]]()
    for subject, local_time, glucose_mg_dl in rows:
        moment = local_time.replace(tzinfo=zone).astimezone(UTC)
        by_site.setdefault(subject.lower(), []).append((moment, glucose_mg_dl))
    options = DemoOptions(default_roles="denied", tokens={TOKEN: "readable"})
    urls = {}
    for site, readings in by_site.items():
        moved = timedelta(days=(today - readings[-1][0]).days if today else 0)
        entries = [
            _entry(number, moment + moved, glucose_mg_dl)
            for number, (moment, glucose_mg_dl) in enumerate(readings, start=1)
        ]
        urls[site] = servers.enter_context(DemoServer(DemoStore(entries), options)).url
    return urls


def sites_toml(urls: dict[str, str]) -> str:
    """The sites file for these servers; the token is to be in `TOKEN_VARIABLE`."""
    return "\n".join(
        f'[[sites]]\nname = "{name}"\nurl = "{url}"\ntoken_env = "{TOKEN_VARIABLE}"\ntimezone = "{ZONE}"\n'
        for name, url in urls.items()
    )


def _entry(number: int, moment: datetime, glucose_mg_dl: int) -> dict[str, Any]:
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return {
        "_id": f"{int(moment.timestamp()):08x}{number:016x}",
        "type": "sgv",
        "sgv": glucose_mg_dl,
        "date": int(moment.timestamp() * 1000),
        "dateString": text,
        "sysTime": text,
        "utcOffset": 0,
        "device": "Dexcom G4",
    }
