"""Nineteen real people through the whole pipeline, compared with a plain query over the file they came in.

The file is not part of this repository: 34,890 readings of 19 people (Hall H, Perelman D, Breschi A, et al. (2018)
Glucotypes reveal new patterns of glucose dysregulation. PLoS Biology 16(7): e2005143, CC BY 4.0), with the columns
`subject,local_time,glucose_mg_dl`. Any file with these columns will do.

Each person becomes a Nightscout server of their own, behind a token. `lakehouse run` reads them over HTTP, twice; then
every local day's count, mean and ranges have to equal what DuckDB counts in the file itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
from people_of_a_file import TOKEN, TOKEN_VARIABLE, read_readings, serve_people, sites_toml

DAYS = """
select
    lower(subject) as site,
    cast(local_time as date)::varchar as reading_date,
    count(*) as reading_count,
    avg(glucose_mg_dl) as avg_glucose_mg_dl,
    count(*) filter (glucose_mg_dl < 54) as very_low,
    count(*) filter (glucose_mg_dl >= 54 and glucose_mg_dl < 70) as low,
    count(*) filter (glucose_mg_dl >= 70 and glucose_mg_dl <= 180) as in_range,
    count(*) filter (glucose_mg_dl > 180 and glucose_mg_dl <= 250) as high,
    count(*) filter (glucose_mg_dl > 250) as very_high,
    min(local_time)::varchar as first_reading,
    max(local_time)::varchar as last_reading
from readings
group by all
"""

FACT_DAYS = """
select
    site,
    reading_date::varchar as reading_date,
    count(*) as reading_count,
    avg(glucose_mg_dl) as avg_glucose_mg_dl,
    count(*) filter (glucose_range = 'very_low') as very_low,
    count(*) filter (glucose_range = 'low') as low,
    count(*) filter (glucose_range = 'in_range') as in_range,
    count(*) filter (glucose_range = 'high') as high,
    count(*) filter (glucose_range = 'very_high') as very_high,
    min(reading_local_timestamp)::varchar as first_reading,
    max(reading_local_timestamp)::varchar as last_reading
from curated.fact_glucose_readings
group by all
"""

MART_DAYS = """
select
    site,
    reading_date::text as reading_date,
    reading_count,
    avg_glucose_mg_dl,
    round(time_very_low_pct * reading_count / 100)::int as very_low,
    round(time_low_pct * reading_count / 100)::int as low,
    round(time_in_range_pct * reading_count / 100)::int as in_range,
    round(time_high_pct * reading_count / 100)::int as high,
    round(time_very_high_pct * reading_count / 100)::int as very_high
from mart_glucose_overview
"""


def main() -> int:
    """Run the comparison; 0 if nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="CSV with the columns subject,local_time,glucose_mg_dl (.gz too)")
    file = parser.parse_args().file
    if not file.is_file():
        parser.error(f"{file} is not there")
    source = read_readings(file)
    with tempfile.TemporaryDirectory(prefix="hall2018-") as folder, ExitStack() as servers:
        # Where this runs as root, Postgres runs as another user, who has to pass here.
        Path(folder).chmod(0o711)
        lakehouse = Lakehouse(Path(folder), serve_people(source, servers))
        first = lakehouse.run()
        differences = _compare(source, lakehouse)
        second = lakehouse.run()
        differences += _compare(source, lakehouse)
    total = source.execute("select count(*), count(distinct subject) from readings").fetchall()[0]
    print(f"\n{total[0]:,} readings of {total[1]} people; first run {first:.1f} s, second {second:.1f} s")
    print("\n".join(differences) or "Nothing differs.")
    return 1 if differences else 0


class Lakehouse:
    """A lakehouse in a folder of its own, used by its command line only.

    Args:
        folder: An empty folder.
        urls: The servers, by site.
    """

    def __init__(self, folder: Path, urls: dict[str, str]) -> None:
        sites = folder / "sites.toml"
        sites.write_text(sites_toml(urls), encoding="utf-8")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSCOUT_")}
        self._environment |= {
            "LAKEHOUSE_HOME": str(folder / "lakehouse"),
            "LAKEHOUSE_SITES_FILE": str(sites),
            TOKEN_VARIABLE: TOKEN,
        }

    def run(self) -> float:
        """Run the pipeline once; returns its seconds."""
        started = time.monotonic()
        self._command("run", stdout=None)
        return time.monotonic() - started

    def rows(self, query: str, *options: str) -> list[dict[str, Any]]:
        """Ask the warehouse, or with `--marts` Postgres."""
        answer: list[dict[str, Any]] = json.loads(self._command("sql", query, *options, "--format", "json"))
        return answer

    def _command(self, *arguments: str, stdout: int | None = subprocess.PIPE) -> str:
        command = [sys.executable, "-m", "nightscout_lakehouse.cli", *arguments]
        done = subprocess.run(command, env=self._environment, check=True, text=True, stdout=stdout)
        return done.stdout or ""


def _compare(source: duckdb.DuckDBPyConnection, lakehouse: Lakehouse) -> list[str]:
    cursor = source.execute(DAYS)
    names = [column[0] for column in cursor.description or []]
    expected = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    differences = _differences("fact_glucose_readings", expected, lakehouse.rows(FACT_DAYS))
    # The mart shows the last 90 days up to each person's newest one.
    newest = {site: max(day["reading_date"] for day in expected if day["site"] == site) for site in _sites(expected)}
    shown = [
        day
        for day in expected
        if date.fromisoformat(newest[day["site"]]) - date.fromisoformat(day["reading_date"]) < timedelta(days=90)
    ]
    differences += _differences("mart_glucose_overview", shown, lakehouse.rows(MART_DAYS, "--marts"))
    return differences


def _sites(days: list[dict[str, Any]]) -> set[str]:
    return {day["site"] for day in days}


def _differences(table: str, expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[str]:
    def keyed(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(row["site"], row["reading_date"]): row for row in rows}

    wanted, got = keyed(expected), keyed(found)
    lines = [f"{table}: {key} is missing" for key in wanted.keys() - got.keys()]
    lines += [f"{table}: {key} is not in the file" for key in got.keys() - wanted.keys()]
    for key in wanted.keys() & got.keys():
        for name, value in got[key].items():
            is_equal = value == wanted[key][name]
            if isinstance(value, float):
                is_equal = abs(value - wanted[key][name]) <= 1e-9 * abs(value)
            if not is_equal:
                lines.append(f"{table}: {key} {name}: {value}, in the file {wanted[key][name]}")
    print(f"{table}: {len(got):,} local days compared, {len(lines)} differences")
    return sorted(lines)


if __name__ == "__main__":
    raise SystemExit(main())
