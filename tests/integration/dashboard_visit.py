"""A visit to the dashboards in Chromium: what the charts say, what they asked, and what the marts say to it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import expect
from superset_server import (
    ADMIN,
    LONGEST_WAIT_MS,
    PIXEL_HOST,
    SupersetServer,
    chart_names,
    log_in,
    wait_until_drawn,
)

from nightscout_lakehouse.lib.embedded_postgres import embedded_postgres, password_file, read_password
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.serving import READER

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Response, ViewportSize

WIDE: ViewportSize = {"width": 1440, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
EVENTS = "**/superset/log/**"
RAW_NAME = re.compile(r"\b[a-z0-9]+_(?:[a-z0-9]+_)*(?:pct|dl|text|date|timestamp|label|minutes|count|rank|glucose)\b")


@dataclass(frozen=True)
class Visit:
    """A browser that is logged in, with what its charts asked the database; the lists are filled as it is used.

    Attributes:
        page: The open page.
        queries: The SQL of each chart.
        reached: Addresses that are not this machine's and that the page really reached.
        faults: What the page complained of.
    """

    page: Page
    queries: list[str] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def rows(self, title: str) -> Locator:
        """The rows of a table."""
        return self.page.locator(f'[data-test-chart-name="{title}"]:visible tbody tr')

    def table(self, title: str) -> list[list[str]]:
        """The cells of a table, by row, as they are shown."""
        rows: list[list[str]] = self.rows(title).evaluate_all(
            "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )
        return rows

    def words(self, title: str) -> str:
        """All that a chart says in letters."""
        return self.page.locator(f'[data-test-chart-name="{title}"]:visible .dashboard-chart').inner_text()


@contextlib.contextmanager
def logged_in(
    server: SupersetServer, browser: Browser, user: tuple[str, str] = ADMIN, screen: ViewportSize = WIDE
) -> Iterator[Visit]:
    """A browser that is logged in as somebody."""
    context = browser.new_context(viewport=screen)
    # The login page reports its events as it is left, not logged in yet; the answer's cookie must not come last.
    context.route(EVENTS, lambda route: route.fulfill(status=200))
    found = Visit(context.new_page())

    def keep(response: Response) -> None:
        if not response.url.startswith(("http://127.0.0.1", "data:", "blob:")):
            found.reached.append(response.url)
        asked = response.request.post_data_json if "/api/v1/chart/data" in response.url else None
        if asked and response.ok and not asked["form_data"].get("viz_type", "").startswith("filter_"):
            # Where the page was left meanwhile, nobody has seen the chart.
            with contextlib.suppress(PlaywrightError):
                found.queries.extend(each["query"] for each in response.json()["result"])

    found.page.on("response", keep)
    found.page.on("console", lambda message: found.faults.append(message.text) if message.type == "error" else None)
    found.page.on("pageerror", lambda error: found.faults.append(str(error)))
    log_in(found.page, server, *user)
    context.unroute(EVENTS)
    yield found
    context.close()


def check_page(visit: Visit, charts: int) -> None:
    """So many charts are on the page, it complained of nothing, nothing left the machine, and its cookie is safe."""
    assert len(set(chart_names(visit.page))) == charts
    assert visit.reached == []
    blocked = [fault for fault in visit.faults if PIXEL_HOST in fault and "Content Security Policy" in fault]
    # It is there, and it is blocked: without it this would prove nothing.
    assert blocked
    assert [fault for fault in visit.faults if fault not in blocked] == []
    (session,) = [cookie for cookie in visit.page.context.cookies() if cookie["name"] == "session"]
    assert (session["httpOnly"], session["sameSite"]) == (True, "Strict")


@contextlib.contextmanager
def marts_of(server: SupersetServer) -> Iterator[PostgresConnection]:
    """The marts as a dashboard may read them."""
    with embedded_postgres(server.home / "postgres") as owner:
        password = read_password(password_file(server.home / "postgres", READER))
        assert password is not None
        yield replace(owner, user=READER, password=password)


def rows(connection: PostgresConnection, statement: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(connection.connect()) as opened, opened.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def fixed(value: float, digits: int) -> str:
    """A number as a browser writes it: of two equally near ones the larger."""
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def chosen(site: str = "", unit: str = "", period: str = "") -> str:
    """The part of an address that sets filters."""
    filters = []
    for name, column, value in (("site", "site", site), ("unit", "unit", unit), ("period", "period", period)):
        if value:
            filters.append(
                f"NATIVE_FILTER-{name}:(extraFormData:(filters:!((col:{column},op:IN,val:!('{value}')))),"
                f"filterState:(value:!('{value}')),id:NATIVE_FILTER-{name},ownState:())"
            )
    return f"native_filters=({','.join(filters)})"


def check_figures(visit: Visit, marts: PostgresConnection, site: str) -> None:
    """The figures of a person's open page, of 7 days and in mg/dL, are those of the marts."""
    ((glucose, arrow, change, label),) = rows(
        marts,
        "select glucose_text, trend_arrow, change_text, lower(range_label) from mart_dashboard_current"
        f" where site = '{site}' and unit = 'mg/dL'",
    )
    now = visit.words("Glucose now").split("\n")
    assert now[0] == f"{glucose} {arrow}".strip()
    assert now[1] == ", ".join(part for part in ("mg/dL", change, label) if part)
    assert re.search(r", \d+ (min|h|days|months|years) ago$", now[2])

    ((in_range, mean, cv, coverage, covered),) = rows(
        marts,
        "select time_in_range_pct, mean_glucose, cv_pct, coverage_pct, days_covered from mart_dashboard_summary"
        f" where site = '{site}' and unit = 'mg/dL' and period = '7 days'",
    )
    assert f"{fixed(in_range, 0)}%" in visit.words("Time in range")
    tile = visit.words("Mean glucose").split("\n")
    assert (tile[0], tile[2]) == (
        fixed(mean, 0),
        f"CV {fixed(cv, 0)} %, data {fixed(coverage, 0)} % of {covered} day{'s' if covered > 1 else ''}",
    )
    ((gmi,),) = rows(
        marts,
        f"select estimated_a1c_7d_avg from mart_glucose_overview where site = '{site}'"
        " order by reading_date desc limit 1",
    )
    assert f"{fixed(gmi, 1)}%" in visit.words("Estimated A1C (GMI)")

    days = rows(
        marts,
        "select to_char(reading_date, 'Dy DD Mon YYYY'), time_in_range_pct, time_below_range_pct, avg_glucose_mg_dl"
        f" from mart_glucose_overview as days where site = '{site}' and reading_date >"
        f" (select max(reading_date) - 7 from mart_glucose_overview where site = '{site}') order by reading_date desc",
    )
    shown = visit.table("Day by day")
    assert len(shown) == len(days) > 0
    assert [[row[0], row[1], row[2], row[4], row[5]] for row in shown] == [
        [day, fixed(time_in_range, 0), fixed(below, 1), fixed(day_mean, 0), "mg/dL"]
        for day, time_in_range, below, day_mean in days
    ]
    ranges = rows(
        marts,
        "select range_label, bounds_text, pct from mart_dashboard_ranges"
        f" where site = '{site}' and unit = 'mg/dL' and period = '7 days' order by range_order",
    )
    assert [row[:3] for row in visit.table("Ranges and targets")] == [
        [name, bounds, fixed(pct, 1)] for name, bounds, pct in ranges
    ]
    assert len(visit.table("Episodes of low and high glucose")) == episode_count(marts, site)
    # One person: nothing of the others is on the page.
    assert [row[0] for row in visit.table("Data and pipeline")] == [site]
    assert RAW_NAME.findall(visit.page.locator(".dashboard-grid").inner_text()) == []


def episode_count(marts: PostgresConnection, site: str) -> int:
    """A person's episodes in the last 7 days."""
    ((count,),) = rows(
        marts,
        f"select count(*) from mart_dashboard_episodes where site = '{site}' and unit = 'mg/dL' and period = '7 days'",
    )
    return int(count)


def clinic_rows(marts: PostgresConnection) -> list[list[str]]:
    """What the clinic's table is to show now: place, words, and the figures in range, below range and GRI."""
    people = rows(
        marts,
        "select attention_order::text, site, attention, reasons, glucose_text, coalesce(age_text, 'never'),"
        " time_in_range_pct, time_below_range_pct, gri from mart_site_attention where unit = 'mg/dL'"
        " order by mart_site_attention.attention_order",
    )

    def shown(value: float | None, digits: int) -> str:
        return "N/A" if value is None else fixed(value, digits)

    return [[*words, shown(in_range, 0), shown(below, 1), shown(gri, 0)] for *words, in_range, below, gri in people]


def check_clinic(visit: Visit, before: list[list[str]], after: list[list[str]]) -> None:
    """The clinic's table is the mart's, in its order; ages are those before or after the page was opened."""
    shown = [[*row[:5], row[6], row[7], row[8], row[11]] for row in visit.table("People by who needs attention")]
    expected = [row if row in (old, new) else new for row, old, new in zip(shown, before, after, strict=True)]
    assert shown == expected


def follow_link(visit: Visit, site: str) -> None:
    """Get from the clinic's page to a person's."""
    visit.page.get_by_role("link", name=site, exact=True).click()
    visit.page.wait_for_url(re.compile("glucose-monitoring"))
    visit.page.wait_for_selector('[data-test-chart-name="Glucose now"]')
    wait_until_drawn(visit.page)
    expect(visit.rows("Data and pipeline").locator("td:first-child")).to_have_text([site], timeout=LONGEST_WAIT_MS)
