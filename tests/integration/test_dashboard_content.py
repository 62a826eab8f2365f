"""What the dashboards say: figures as in the marts, both units, a wide screen and a phone, and quick queries.

Anna is the demo person that `make run` shows without a server of one's own, with 35 days of her history.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from dashboard_visit import (
    PHONE,
    RAW_NAME,
    Visit,
    check_clinic,
    check_figures,
    check_page,
    chosen,
    clinic_rows,
    follow_link,
    logged_in,
    marts_of,
    rows,
)
from superset_server import (
    VIEWER,
    SupersetServer,
    add_viewer,
    chart_problems,
    charts_of,
    empty_charts,
    open_dashboard,
    take_screenshot,
    wait_until_drawn,
)

from nightscout_lakehouse.lib.dashboard.environment import BUNDLE_DIR
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.e2e, pytest.mark.postgres, pytest.mark.browser]

LONGEST_QUERY_MS = 50


@pytest.fixture(scope="module")
def visit(superset: SupersetServer, browser: Browser) -> Iterator[Visit]:
    with logged_in(superset, browser) as found:
        yield found


@pytest.fixture
def phone(superset: SupersetServer, browser: Browser) -> Iterator[Visit]:
    """Of somebody who only looks."""
    with closing(superset.client()) as admin:
        add_viewer(admin)
    with logged_in(superset, browser, VIEWER, PHONE) as found:
        yield found


@pytest.fixture(scope="module")
def marts(superset: SupersetServer) -> Iterator[PostgresConnection]:
    with marts_of(superset) as found:
        yield found


def test_the_figures_on_the_screen_are_those_of_the_marts(
    superset: SupersetServer, visit: Visit, marts: PostgresConnection
) -> None:
    visit.queries.clear()
    open_dashboard(visit.page, superset, "glucose-monitoring")
    take_screenshot(visit.page, "content-wide")
    # Nobody has chosen a person: it is one all the same, from the first query on.
    assert [sql for sql in visit.queries if "'anna'" not in sql or "'ben'" in sql] == []
    check_page(visit, len(charts_of("dashboards/glucose_monitoring.yaml")))
    check_figures(visit, marts, "anna")
    assert len(visit.table("Day by day")) == 7
    assert "ben" not in visit.page.locator(".dashboard-grid").inner_text().split()


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


def test_a_phone_shows_who_only_looks_the_same_one_below_the_other(phone: Visit, superset: SupersetServer) -> None:
    open_dashboard(phone.page, superset, "glucose-monitoring")
    check_page(phone, len(charts_of("dashboards/glucose_monitoring.yaml")))
    phone.page.locator(".chart-slice:visible").first.wait_for()
    wait_until_drawn(phone.page)
    take_screenshot(phone.page, "content-phone")
    boxes: list[dict[str, Any]] = phone.page.locator(".chart-slice:visible").evaluate_all(
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
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_clinic_sees_everybody_and_gets_to_one_without_readings(
    superset: SupersetServer, visit: Visit, marts: PostgresConnection
) -> None:
    before = clinic_rows(marts)
    open_dashboard(visit.page, superset, "clinic-overview")
    take_screenshot(visit.page, "content-clinic")
    check_clinic(visit, before, clinic_rows(marts))
    assert RAW_NAME.findall(visit.page.locator(".dashboard-grid").inner_text()) == []
    follow_link(visit, "zoe")
    wait_until_drawn(visit.page)
    take_screenshot(visit.page, "content-nothing")
    # Who has no readings gets a sentence in every chart.
    position = yaml.safe_load((BUNDLE_DIR / "dashboards" / "glucose_monitoring.yaml").read_text())["position"]
    nodes = [node for node in position.values() if isinstance(node, dict)]
    titles = {node["meta"]["sliceName"] for node in nodes if node["type"] == "CHART"}
    empty = dict.fromkeys(titles - {"Data and pipeline"}, "No readings for what is chosen above.")
    empty["Time in range"] = "No data"
    empty["Glucose by time of day (AGP)"] = "Too few readings for a profile: it needs 5 days."
    assert chart_problems(visit.page) == []
    assert empty_charts(visit.page) == empty
    (row,) = visit.table("Data and pipeline")
    assert row[:3] == ["zoe", "silent", "never"]
