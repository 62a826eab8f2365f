"""Both dashboards on the readings of nineteen real people, which are not part of this repository.

LAKEHOUSE_TEST_HALL2018_CSV names the file (see `benchmarks/README.md`); without it these tests are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dashboard_visit import (
    PHONE,
    RAW_NAME,
    WIDE,
    Visit,
    check_clinic,
    check_figures,
    chosen,
    clinic_rows,
    episode_count,
    follow_link,
    logged_in,
    marts_of,
    rows,
)
from people_of_a_file import TOKEN, TOKEN_VARIABLE, read_readings, serve_people, sites_toml
from superset_server import (
    IS_INSTALLED,
    SupersetServer,
    empty_charts,
    open_dashboard,
    superset_server,
    take_screenshot,
    wait_until_drawn,
)

from nightscout_lakehouse.lib.postgres_connection import PostgresConnection

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMED = os.environ.get("LAKEHOUSE_TEST_HALL2018_CSV")
# Each test has a folder of its own to work in.
FILE = Path(NAMED).absolute() if NAMED else None

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.postgres,
    pytest.mark.browser,
    pytest.mark.skipif(not FILE, reason="LAKEHOUSE_TEST_HALL2018_CSV does not name a file with real people's readings"),
    pytest.mark.skipif(not IS_INSTALLED, reason="Superset is not installed; `make dashboard-setup` installs it"),
]

NO_EPISODE = {"Episodes of low and high glucose": "No episode of low or high glucose in the readings chosen above."}


@pytest.fixture(scope="module")
def people() -> Iterator[SupersetServer]:
    """Everybody's newest reading within the last day; only one stays in the time of the file, years ago."""
    assert FILE is not None
    source = read_readings(FILE)
    with ExitStack() as servers:
        urls = serve_people(source, servers, today=datetime.now(UTC))
        silent = min(urls)
        urls[silent] = serve_people(source, servers)[silent]
        with superset_server(sites_toml(urls), {TOKEN_VARIABLE: TOKEN}) as running:
            yield running


@pytest.fixture(scope="module")
def marts(people: SupersetServer) -> Iterator[PostgresConnection]:
    with marts_of(people) as found:
        yield found


@pytest.fixture(scope="module")
def visit(people: SupersetServer, browser: Browser) -> Iterator[Visit]:
    with logged_in(people, browser) as found:
        yield found


def test_the_clinic_sees_all_in_the_order_of_the_mart(
    people: SupersetServer, visit: Visit, marts: PostgresConnection
) -> None:
    before = clinic_rows(marts)
    open_dashboard(visit.page, people, "clinic-overview")
    take_screenshot(visit.page, "people-clinic")
    check_clinic(visit, before, clinic_rows(marts))
    assert len(before) == 19
    assert RAW_NAME.findall(visit.page.locator(".dashboard-grid").inner_text()) == []
    counts = rows(
        marts,
        "select attention, count(*)::text from mart_site_attention where unit = 'mg/dL'"
        " group by attention, attention_rank order by attention_rank",
    )
    assert visit.table("How many are in which state") == [list(row) for row in counts]
    assert len(visit.table("Data and pipeline")) == 19


@pytest.mark.parametrize(
    "who",
    {
        "most in range": "time_in_range_pct desc",
        "most highs": "time_above_range_pct desc",
        "most lows": "time_below_range_pct desc",
        "least data": "coverage_pct",
        "years without a reading": "age_minutes desc",
    }.items(),
    ids=lambda who: who[0],
)
def test_a_persons_page_says_what_the_marts_say(
    who: tuple[str, str], people: SupersetServer, visit: Visit, marts: PostgresConnection
) -> None:
    name, order = who
    ((site,),) = rows(
        marts, f"select site from mart_site_attention where unit = 'mg/dL' order by {order}, site limit 1"
    )
    open_dashboard(visit.page, people, "clinic-overview")
    follow_link(visit, site)
    assert empty_charts(visit.page) == ({} if episode_count(marts, site) else NO_EPISODE)
    take_screenshot(visit.page, f"people-{name}")
    check_figures(visit, marts, site)
    empty = {} if rows(marts, f"select 1 from mart_dashboard_episodes where site = '{site}'") else NO_EPISODE
    open_dashboard(visit.page, people, "glucose-monitoring", query=chosen(site=site, period="90 days"), empty=empty)
    take_screenshot(visit.page, f"people-{name}-90-days")
    ((days,),) = rows(marts, f"select count(*) from mart_glucose_overview where site = '{site}'")
    assert len(visit.table("Day by day")) == days


def test_a_phone_shows_them_too(people: SupersetServer, visit: Visit) -> None:
    visit.page.set_viewport_size(PHONE)
    for slug in ("clinic-overview", "glucose-monitoring"):
        open_dashboard(visit.page, people, slug)
        visit.page.locator(".chart-slice:visible").first.wait_for()
        wait_until_drawn(visit.page)
        take_screenshot(visit.page, f"people-phone-{slug}")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    visit.page.set_viewport_size(WIDE)
