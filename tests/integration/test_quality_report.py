"""The page of a validation in a real browser: all of it is there, nothing sticks out, nothing leaves the machine."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route
from pydantic import SecretStr
from test_faults import documents

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.quality.report import write_report
from nightscout_lakehouse.lib.quality.stages import StageResult, keep_result, validate_stage
from nightscout_lakehouse.lib.redaction import redactor
from nightscout_lakehouse.lib.settings import load_settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import open_warehouse

RUN_ID = "0123456789abcdef"
TOKEN = "reader-0123456789abcdef"

pytestmark = pytest.mark.browser


@dataclass(frozen=True)
class Report:
    path: Path
    results: list[StageResult]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    """A run in which the categories of a site came out wrong, and its newest documents are odd."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("report")))
        settings = load_settings()
        lake = Lake.open(settings)
        site = Site("anna", "http://127.0.0.1:1", timezone="UTC", token=SecretStr(TOKEN))
        made = documents(96 * 5)
        now = datetime.now(UTC) - timedelta(minutes=1)
        write_batch(lake, "anna", 1, documents_from_json([json.dumps(d) for d in made]), now)
        process_sites([site], settings, lake)
        DbtProject(settings).build("duckdb", ["tag:curated", "tag:int", "tag:stg"], data_tests=False)
        with open_warehouse(settings) as warehouse:
            warehouse.execute(
                "update intermediate.int_glucose_enriched set glucose_category = 'in_range',"
                " direction = '<script>alert(1)</script>' where glucose_mg_dl > 180"
            )
        # Far longer than any name that fits, in one word, and with what would be code.
        odd = [
            d
            | {
                "_id": f"{n + 5000:024x}",
                "sgv": round(d["sgv"] / 18, 1),
                "sensorTemperature" * 6: 1,
                "device": f"<b>{TOKEN}</b>",
            }
            for n, d in enumerate(made[-40:])
        ]
        write_batch(lake, "anna", 2, documents_from_json([json.dumps(d) for d in odd]), now)
        results = []
        for stage in ("raw", "enriched", "marts"):
            result = validate_stage(stage, settings, lake, [site])
            keep_result(settings, result, RUN_ID, redactor(settings, [site]))
            results.append(result)
        yield Report(write_report(settings, RUN_ID), results)


@pytest.mark.parametrize(("name", "width", "height"), [("wide", 1440, 900), ("narrow", 390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_everything_and_nothing_sticks_out(
    report: Report, browser: Browser, name: str, width: int, height: int, scheme: Any
) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    asked, faults = list[str](), list[str]()

    def look(route: Route) -> None:
        asked.append(route.request.url)
        route.continue_() if route.request.url.startswith("file://") else route.abort()

    page.route("**/*", look)
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(report.path.as_uri())
    for result in report.results:
        section = page.locator(f"section#{result.stage}")
        for outcome in result.outcomes:
            assert section.get_by_text(outcome.expectation.name.replace("_", " "), exact=True).is_visible()
            assert section.get_by_text(outcome.expectation.why, exact=True).is_visible()
        stopped = any(outcome.is_blocking for outcome in result.outcomes)
        assert section.get_by_text("stopped").is_visible() == stopped
    raw = page.locator("section#raw")
    # What failed is open, with its first rows; what holds is not.
    failed = [outcome for outcome in report.results[0].outcomes if not outcome.is_met]
    assert {outcome.expectation.name for outcome in failed} == {"values_are_in_mg_dl", "fields_are_known"}
    assert raw.locator("details[open]").count() == len(failed)
    assert raw.locator("table.samples").first.locator("td").first.is_visible()
    # And stands at the top, what stopped the run first.
    assert [item.split(":")[0] for item in page.locator("ul.todo li").all_inner_texts()] == [
        "values are in mg dl",
        "category follows from the value",
        "fields are known",
    ]
    if target := os.environ.get("LAKEHOUSE_TEST_SCREENSHOTS"):
        Path(target).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(target, f"quality-report-{name}-{scheme}.png"), full_page=True)
    assert sticking_out(page) == []
    # Everything opened still fits.
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert sticking_out(page) == []
    assert asked == [report.path.as_uri()]
    assert faults == []
    context.close()


def sticking_out(page: Page) -> list[str]:
    """Elements that reach beyond the window or their scrolling box, and a page that scrolls sideways."""
    found: list[str] = page.evaluate(
        """() => {
            const out = [];
            const width = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth > width) out.push('page ' + document.documentElement.scrollWidth);
            for (const each of document.querySelectorAll('body *')) {
                const box = each.getBoundingClientRect();
                if (box.width && box.right > width + 1 && !each.closest('.samples-box'))
                    out.push(each.tagName + ' ' + Math.round(box.right) + ' ' + each.textContent.trim().slice(0, 40));
            }
            return out;
        }"""
    )
    return found


def test_the_page_escapes_what_others_wrote(report: Report) -> None:
    content = report.path.read_text()
    assert "<script" not in content
    assert "<b>" not in content
    assert "http://" not in content.replace("http://www.w3.org", "")
    assert TOKEN not in content
