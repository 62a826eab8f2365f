"""Record what Superset's chart editor fills in by itself, into `superset/editor_defaults.json`.

Saving a chart in the editor writes every control's value, chosen or not. An export leaves out what this file knows as
the editor's default, so that only what somebody chose shows in a diff. Run it again after an update of Superset, while
`make dashboard` runs: SUPERSET_ADMIN_PASSWORD=… .venv/bin/python scripts/record_editor_defaults.py
"""

import json
import os
import shutil
from typing import Any

from playwright.sync_api import Page, Request, sync_playwright

from nightscout_lakehouse.lib.dashboard.environment import SUPERSET_DIR
from nightscout_lakehouse.lib.settings import load_settings

VIZ_TYPES = (
    *("big_number", "big_number_total", "pie", "table", "pivot_table_v2", "heatmap_v2", "histogram_v2", "box_plot"),
    *("echarts_timeseries_line", "echarts_timeseries_bar", "echarts_timeseries_smooth", "echarts_timeseries_step"),
    *("echarts_timeseries_scatter", "echarts_area", "mixed_timeseries", "gauge_chart", "treemap_v2", "bubble_v2"),
)
# What names the dataset or its columns is no default of the editor.
OF_THE_DATASET = {
    *("datasource", "viz_type", "slice_id", "url_params", "adhoc_filters", "adhoc_filters_b", "x_axis", "metrics"),
    *("metric", "groupby", "granularity_sqla", "all_columns", "time_grain_sqla", "annotation_layers", "column"),
    *("columns", "temporal_columns_lookup"),
}


def main() -> None:
    """Open the editor once for each kind of chart and keep what it fills in."""
    url = f"http://127.0.0.1:{load_settings().superset_port}"
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{url}/login/")
        page.locator("#username").fill("admin")
        page.locator("#password").fill(os.environ["SUPERSET_ADMIN_PASSWORD"])
        page.locator("button[type=submit]").click()
        page.wait_for_url(lambda address: "/login" not in address)
        answer = page.request.get(f"{url}/api/v1/dataset/").json()["result"]
        found = {viz_type: defaults(page, url, viz_type, answer[0]["id"]) for viz_type in VIZ_TYPES}
        browser.close()
    path = SUPERSET_DIR / "editor_defaults.json"
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{sum(map(len, found.values()))} defaults of {len(found)} kinds of charts in {path}")


def defaults(page: Page, url: str, viz_type: str, dataset: int) -> dict[str, Any]:
    """What the editor would save of a new chart of this kind."""

    def is_kept(request: Request) -> bool:
        return (
            request.method == "POST"
            and "/api/v1/explore/form_data" in request.url
            and viz_type in (request.post_data or "")
        )

    with page.expect_request(is_kept, timeout=60_000) as kept:
        page.goto(f"{url}/explore/?viz_type={viz_type}&datasource_type=table&datasource_id={dataset}")
    form = json.loads(json.loads(kept.value.post_data or "{}")["form_data"])
    return {key: value for key, value in form.items() if key not in OF_THE_DATASET and not key.startswith("matrixify_")}


if __name__ == "__main__":
    main()
