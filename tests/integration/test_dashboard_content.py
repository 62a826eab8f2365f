"""What the dashboards say: figures as in the marts, both units, a wide screen and a phone, and quick queries."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import expect
from superset_server import SupersetServer, log_in, open_dashboard, take_screenshot, wait_until_drawn

from nightscout_lakehouse.lib.embedded_postgres import embedded_postgres, password_file, read_password
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.serving import READER

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Response

pytestmark = [pytest.mark.e2e, pytest.mark.postgres, pytest.mark.browser]

LONGEST_QUERY_MS = 50
PHONE = {"width": 390, "height": 844}
RAW_NAME = re.compile(r"\b[a-z0-9]+_(?:[a-z0-9]+_)*(?:pct|dl|text|date|timestamp|label|minutes|count|rank|glucose)\b")


@dataclass(frozen=True)
class Visit:
    """A browser that is logged in, with what its charts asked the database.

    Attributes:
        page: The open page.
        queries: The SQL of each chart, filled as it is used.
    """

    page: Page
    queries: list[str] = field(default_factory=list)

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


@pytest.fixture(scope="module")
def visit(superset: SupersetServer, browser: Browser) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    # The login page reports its events as it is left, not logged in yet; the answer's cookie must not come last.
    context.route("**/superset/log/**", lambda route: route.abort())
    found = Visit(context.new_page())

    def keep(response: Response) -> None:
        asked = response.request.post_data_json if "/api/v1/chart/data" in response.url else None
        if asked and response.ok and not asked["form_data"].get("viz_type", "").startswith("filter_"):
            # Where the page was left meanwhile, nobody has seen the chart.
            with contextlib.suppress(PlaywrightError):
                found.queries.extend(each["query"] for each in response.json()["result"])

    found.page.on("response", keep)
    log_in(found.page, superset)
    yield found
    context.close()


@pytest.fixture(scope="module")
def marts(superset: SupersetServer) -> Iterator[PostgresConnection]:
    with embedded_postgres(superset.home / "postgres") as owner:
        password = read_password(password_file(superset.home / "postgres", READER))
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


def test_the_figures_on_the_screen_are_those_of_the_marts(
    superset: SupersetServer, visit: Visit, marts: PostgresConnection
) -> None:
    visit.queries.clear()
    open_dashboard(visit.page, superset, "glucose-monitoring")
    take_screenshot(visit.page, "content-wide")
    # Nobody has chosen a person: it is one all the same, from the first query on.
    assert [sql for sql in visit.queries if "'anna'" not in sql or "'ben'" in sql] == []
    ((glucose, arrow, change, label),) = rows(
        marts,
        "select glucose_text, trend_arrow, change_text, lower(range_label) from mart_dashboard_current"
        " where site = 'anna' and unit = 'mg/dL'",
    )
    now = visit.words("Glucose now").split("\n")
    assert now[0] == f"{glucose} {arrow}".strip()
    assert now[1] == ", ".join(part for part in ("mg/dL", change, label) if part)
    assert re.search(r"\d+ min ago$", now[2])

    ((in_range, mean, cv, coverage),) = rows(
        marts,
        "select time_in_range_pct, mean_glucose, cv_pct, coverage_pct from mart_dashboard_summary"
        " where site = 'anna' and unit = 'mg/dL' and period = '7 days'",
    )
    assert f"{fixed(in_range, 0)}%" in visit.words("Time in range")
    tile = visit.words("Mean glucose").split("\n")
    assert (tile[0], tile[2]) == (fixed(mean, 0), f"CV {fixed(cv, 0)} %, data {fixed(coverage, 0)} %")
    ((gmi,),) = rows(
        marts,
        "select estimated_a1c_7d_avg from mart_glucose_overview where site = 'anna' order by reading_date desc limit 1",
    )
    assert f"{fixed(gmi, 1)}%" in visit.words("Estimated A1C (GMI)")

    days = rows(
        marts,
        "select to_char(reading_date, 'Dy DD Mon YYYY'), time_in_range_pct, time_below_range_pct, avg_glucose_mg_dl"
        " from mart_glucose_overview as days where site = 'anna' and reading_date >"
        " (select max(reading_date) - 7 from mart_glucose_overview where site = 'anna') order by reading_date desc",
    )
    shown = visit.table("Day by day")
    assert len(shown) == len(days) == 7
    assert [[row[0], row[1], row[2], row[4], row[5]] for row in shown] == [
        [day, fixed(time_in_range, 0), fixed(below, 1), fixed(day_mean, 0), "mg/dL"]
        for day, time_in_range, below, day_mean in days
    ]
    ranges = rows(
        marts,
        "select range_label, bounds_text, pct from mart_dashboard_ranges"
        " where site = 'anna' and unit = 'mg/dL' and period = '7 days' order by range_order",
    )
    assert [row[:3] for row in visit.table("Ranges and targets")] == [
        [name, bounds, fixed(pct, 1)] for name, bounds, pct in ranges
    ]
    ((episodes,),) = rows(
        marts,
        "select count(*) from mart_dashboard_episodes where site = 'anna' and unit = 'mg/dL' and period = '7 days'",
    )
    assert len(visit.table("Episodes of low and high glucose")) == episodes > 0
    # One person: nothing of the other is on the page.
    assert [row[0] for row in visit.table("Data and pipeline")] == ["anna"]
    text = visit.page.locator(".dashboard-grid").inner_text()
    assert "ben" not in text.split()
    assert RAW_NAME.findall(text) == []


def test_a_unit_and_a_period_change_every_chart(
    superset: SupersetServer, visit: Visit, marts: PostgresConnection
) -> None:
    visit.queries.clear()
    query = chosen(site="ben", unit="mmol/L", period="14 days")
    open_dashboard(visit.page, superset, "glucose-monitoring", query=query)
    take_screenshot(visit.page, "content-mmol")
    assert "mg/dL" not in visit.page.locator(".dashboard-grid").inner_text()
    ((glucose,),) = rows(
        marts, "select glucose_text from mart_dashboard_current where site = 'ben' and unit = 'mmol/L'"
    )
    assert visit.words("Glucose now").startswith(glucose)
    assert re.fullmatch(r"\d{1,2}\.\d", glucose)
    assert len(visit.table("Day by day")) == 14
    assert {row[5] for row in visit.table("Day by day")} == {"mmol/L"}
    # Charts that are painted say their figures to nobody; but this is what they were painted from.
    for sql in visit.queries:
        assert "'ben'" in sql, sql
        assert "'anna'" not in sql
        if re.search(r"mart_dashboard_(?!current)", sql) and "mart_dashboard_hours" not in sql:
            assert "'14 days'" in sql, sql
        if "mart_dashboard_" in sql:
            assert "'mmol/L'" in sql, sql


def test_no_chart_asks_for_long(visit: Visit, marts: PostgresConnection) -> None:
    assert len(set(visit.queries)) > 10
    for sql in set(visit.queries):
        # The database's own time; the least of five, since other tests run beside this one.
        times = [rows(marts, f"explain (analyze, format json) {sql}")[0][0][0]["Execution Time"] for _ in range(5)]
        assert min(times) < LONGEST_QUERY_MS, (times, sql)


def test_a_phone_shows_the_same_one_below_the_other(superset: SupersetServer, visit: Visit) -> None:
    visit.page.set_viewport_size(PHONE)
    open_dashboard(visit.page, superset, "glucose-monitoring")
    visit.page.locator(".chart-slice:visible").first.wait_for()
    wait_until_drawn(visit.page)
    take_screenshot(visit.page, "content-phone")
    boxes: list[dict[str, Any]] = visit.page.locator(".chart-slice:visible").evaluate_all(
        "all => all.map(each => ({name: each.dataset.testChartName, ...each.getBoundingClientRect().toJSON()}))"
    )
    assert len(boxes) >= 13
    assert boxes[0]["name"] == "Glucose now"
    for box in boxes:
        assert box["left"] >= 0, box
        assert box["right"] <= PHONE["width"], box
        assert box["width"] > 300, box
    for above, below in pairwise(boxes):
        assert above["bottom"] <= below["top"], (above, below)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_clinic_sees_everybody_and_gets_to_one(
    superset: SupersetServer, visit: Visit, marts: PostgresConnection
) -> None:
    visit.page.set_viewport_size({"width": 1440, "height": 900})
    open_dashboard(visit.page, superset, "clinic-overview")
    take_screenshot(visit.page, "content-clinic")
    people = rows(
        marts,
        "select attention_order::text, site, attention, reasons, glucose_text, time_in_range_pct, gri"
        " from mart_site_attention where unit = 'mg/dL' order by attention_order",
    )
    shown = visit.table("People by who needs attention")
    assert [[*row[:5], row[7], row[11]] for row in shown] == [
        [*each[:5], fixed(each[5], 0), fixed(each[6], 0)] for each in people
    ]
    assert RAW_NAME.findall(visit.page.locator(".dashboard-grid").inner_text()) == []
    visit.page.locator("td a", has_text="ben").click()
    visit.page.wait_for_url(re.compile("glucose-monitoring"))
    visit.page.wait_for_selector('[data-test-chart-name="Glucose now"]', timeout=60_000)
    wait_until_drawn(visit.page)
    expect(visit.rows("Data and pipeline").locator("td:first-child")).to_have_text(["ben"], timeout=60_000)
    assert [row[0] for row in visit.table("Data and pipeline")] == ["ben"]
