"""The page of the lineage in a real browser: readable with many tables, and a click shows where a column goes."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lineage_events as made
import pytest
from openlineage.client.event_v2 import RunEvent, RunState
from playwright.sync_api import Browser, Page, Route

from nightscout_lakehouse.lib.lineage.event_log import EventLog
from nightscout_lakehouse.lib.lineage.graph import build_graph
from nightscout_lakehouse.lib.lineage.page import write_page

pytestmark = pytest.mark.browser

OVERLAPPING = """() => {
  const boxes = [...document.querySelectorAll(".card")].map(each => each.getBoundingClientRect());
  return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)).length;
}"""
SHOWN = """kind => [...document.querySelectorAll(`.column.${kind}`)].map(row =>
  row.parentNode.querySelector("b").textContent + "." + row.firstChild.textContent).sort()"""


@dataclass
class Opened:
    """The page, and what it asked for or complained of."""

    page: Page
    asked: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def many_tables() -> list[RunEvent]:
    """The small pipeline, and sixty tables with long names beside it, each made of up to three others."""
    events = made.pipeline_run(0)
    columns = {f"column_with_a_rather_long_name_{number}": "double precision" for number in range(30)}
    tables = [(made.WAREHOUSE, f"warehouse.curated.fact_glucose_with_a_long_name_{number:02}") for number in range(60)]
    for number, table in enumerate(tables):
        sources = [tables[each] for each in {number // 2, number // 3, number - 7} if 0 <= each < number]
        inputs = [made.source(each) for each in sources or [made.PARQUET]]
        lineage = {column: [(each, column, "DIRECT", "IDENTITY") for each in sources] for column in columns}
        outputs = [made.target(table, columns, number * 1000, lineage)]
        events.append(made.event(RunState.COMPLETE, f"make_{number}", 0, number + 10, inputs=inputs, outputs=outputs))
    return events


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The addresses of the page of the small pipeline and of that with many tables."""
    addresses = {}
    for name, events in (("small", made.pipeline_run(0, is_unique=False)), ("many", many_tables())):
        folder = tmp_path_factory.mktemp(name)
        made.write(events, folder / "events.ndjson")
        addresses[name] = write_page(build_graph(EventLog(folder).events()), folder, made.BEGIN).as_uri()
    return addresses


def opened(browser: Browser, address: str, width: int = 1440, height: int = 900, scheme: Any = "light") -> Opened:
    page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
    result = Opened(page)

    def look(route: Route) -> None:
        result.asked.append(route.request.url)
        route.continue_() if route.request.url.startswith("file://") else route.abort()

    page.route("**/*", look)
    page.on("console", lambda message: result.faults.append(message.text))
    page.on("pageerror", lambda error: result.faults.append(str(error)))
    page.goto(address)
    return result


def screenshot(page: Page, name: str) -> None:
    if target := os.environ.get("LAKEHOUSE_TEST_SCREENSHOTS"):
        Path(target).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(target, f"{name}.png"))


def test_a_click_on_a_column_shows_its_lineage_both_ways(browser: Browser, pages: dict[str, str]) -> None:
    shown = opened(browser, pages["small"])
    page = shown.page
    page.locator(".card", has_text="fact_glucose_readings").locator("button").click()
    page.locator(".column", has_text="glucose_mg_dl").click()
    assert page.evaluate(SHOWN, "up") == ["api/v1/entries.sgv", "nightscout_entries.glucose_mg_dl"]
    assert page.evaluate(SHOWN, "down") == [
        "dim_glucose_date.time_in_range_pct",
        "dim_glucose_date.time_in_range_pct",
        "mart_glucose_overview.time_in_range_pct",
    ]
    panel = page.locator("aside")
    assert panel.locator("h2").inner_text() == "glucose_mg_dl"
    assert "duckdb:dim_glucose_date.time_in_range_pct aggregated" in " ".join(panel.inner_text().split())
    # From link to link, to the end.
    panel.get_by_text("duckdb:dim_glucose_date.time_in_range_pct").click()
    panel.get_by_text("postgres:dim_glucose_date.time_in_range_pct").click()
    panel.get_by_text("mart_glucose_overview.time_in_range_pct").click()
    assert page.evaluate(SHOWN, "down") == []
    assert len(page.evaluate(SHOWN, "up")) == 5
    assert page.url.endswith("#mart_glucose_overview.time_in_range_pct")
    page.keyboard.press("Escape")
    assert not panel.is_visible()
    assert page.evaluate(SHOWN, "up") == []
    # The card with the failed test says so.
    page.locator(".card", has=page.locator(".dot")).locator(".head").click()
    assert "1 of 2 passed" in panel.inner_text()
    assert "unique of site" in panel.inner_text()
    assert shown.faults == []
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sixty_tables_stay_readable(browser: Browser, pages: dict[str, str], scheme: Any) -> None:
    shown = opened(browser, pages["many"], scheme=scheme)
    page = shown.page
    screenshot(page, f"lineage-many-{scheme}")
    assert page.locator(".card").count() == 66
    assert page.evaluate(OVERLAPPING) == 0
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('.head b')].map(each =>"
        " parseFloat(getComputedStyle(each).fontSize))) * state.zoom"
    )
    assert smallest > 8
    page.evaluate("data.tables.forEach((_, t) => state.open.add(t)); draw()")
    assert page.evaluate(OVERLAPPING) == 0
    page.evaluate("state.open.clear(); draw()")
    page.keyboard.press("/")
    page.keyboard.type("long_name_59 name_7")
    page.keyboard.press("Enter")
    chosen = page.locator(".card.self")
    assert chosen.locator("b").inner_text() == "fact_glucose_with_a_long_name_59"
    box = chosen.bounding_box()
    assert box is not None
    assert 0 < box["x"] < 1440 - box["width"]
    everything = page.locator(".card").count()
    page.locator("#only").click()
    assert page.locator(".card.off").count() == 0
    assert 3 < page.locator(".card").count() < everything / 2
    assert page.evaluate(OVERLAPPING) == 0
    screenshot(page, f"lineage-only-{scheme}")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
    assert shown.asked == [pages["many"]]
    assert shown.faults == []
    page.context.close()


def test_on_a_phone_the_picture_keeps_room(browser: Browser, pages: dict[str, str]) -> None:
    shown = opened(browser, pages["small"] + "#mart_glucose_overview.time_in_range_pct", 390, 844)
    page = shown.page
    screenshot(page, "lineage-phone")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("view.clientHeight") > 250
    assert page.locator("aside h2").inner_text() == "time_in_range_pct"
    assert shown.faults == []
    page.context.close()
