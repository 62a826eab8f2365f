"""The source that the guide shows is run as it stands there, against a real server."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.sources.base import SourceError
from nightscout_lakehouse.lib.sources.landing import land
from nightscout_lakehouse.lib.warehouse import connect

TOKEN = "meter-0123456789"
PAGES: dict[str, dict[str, Any]] = {
    "/v1/measurements": {
        "measurements": [
            {"time": "2026-01-15T08:00:00+01:00", "mmol_l": "5.5"},
            {"time": "2026-01-15T12:00:00+01:00", "mmol_l": "high"},
        ],
        "next": "/v1/measurements?page=2",
    },
    "/v1/measurements?page=2": {
        "measurements": [
            {"time": "2026-01-15T18:00:00", "mmol_l": "6.0"},
            {"time": "2026-01-15T20:00:00+01:00", "mmol_l": "10.0"},
        ],
    },
}


class Meter(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_known = self.headers["Authorization"] == f"Bearer {TOKEN}" and self.path in PAGES
        self.send_response(200 if is_known else 401)
        self.end_headers()
        if is_known:
            self.wfile.write(json.dumps(PAGES[self.path]).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Meter) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def meter_cloud() -> Any:
    page = (REPOSITORY_ROOT / "docs" / "guide" / "08-other-sources.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class MeterCloud" in block)
    names: dict[str, Any] = {}
    exec(compile(code, "08-other-sources.md", "exec"), names)
    return names["MeterCloud"]


def test_it_lands_and_becomes_finger_sticks(url: str, meter_cloud: Any, settings: Settings, lake: Lake) -> None:
    report = land(meter_cloud(url, TOKEN), "anna", settings, lake)
    assert (report.documents, report.landed, report.unchanged) == (2, 2, 0)
    assert report.refused == {"unreadable_measurement": 1, "time_without_zone": 1}
    # Before and after the first landing has been processed.
    for _ in range(2):
        again = land(meter_cloud(url, TOKEN), "anna", settings, lake)
        assert (again.landed, again.unchanged) == (0, 2)
        process_sites([Site("anna", "", timezone="Europe/Berlin")], settings, lake)
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        found = warehouse.execute(
            "select kind, glucose_mg_dl, strftime(reading_timestamp, '%H:%M') from lake.nightscout_entries order by 3"
        ).fetchall()
    assert found == [("mbg", 99.0, "07:00"), ("mbg", 180.0, "19:00")]


def test_a_refusal_shows_no_token(url: str, meter_cloud: Any, settings: Settings, lake: Lake) -> None:
    with pytest.raises(SourceError, match="HTTPStatusError") as failure:
        land(meter_cloud(url, "wrong-token"), "anna", settings, lake)
    assert "wrong-token" not in str(failure.value)
