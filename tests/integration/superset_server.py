"""Superset as `lakehouse dashboard serve` brings it up, and ways to look at it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import httpx
import psutil
import yaml
from free_ports import free_port
from playwright.sync_api import Page
from typer.testing import CliRunner

from nightscout_lakehouse.cli import app
from nightscout_lakehouse.demo import DemoServer, DemoStore, Person
from nightscout_lakehouse.lib.dashboard.environment import BUNDLE_DIR, SUPERSET_DIR
from nightscout_lakehouse.lib.settings import Settings

IS_INSTALLED = (SUPERSET_DIR / ".venv" / "bin" / "gunicorn").is_file()

# Anna is the person of the bundled demo server, with fewer days; Zoe's server has never had a reading.
PEOPLE = {"anna": Person(seed=1), "ben": Person(seed=4), "zoe": None}
DAYS = 35
ADMIN = ("admin", "admin-of-the-tests-0123")
ADMIN_PASSWORD = ADMIN[1]
# Somebody with the role for people who only look.
VIEWER = ("viewer", "viewer-of-the-tests-0123")
START_SECONDS = 400
STILL_MS = 1500
# On a busy machine; nothing waits longer than it has to.
LONGEST_WAIT_MS = 240_000
# Where the tracking pixel in Superset's pages would be loaded from, if the browser were let.
PIXEL_HOST = "apachesuperset.gateway.scarf.sh"


@dataclass(frozen=True)
class SupersetServer:
    """A running Superset.

    Attributes:
        url: Its address.
        home: LAKEHOUSE_HOME.
        environment: Of the commands on this lakehouse.
        process: `lakehouse dashboard serve`.
        output: File with what that has printed.
    """

    url: str
    home: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    output: Path

    def lakehouse(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command on this lakehouse."""
        return run_lakehouse(self.environment, *arguments)

    def client(self, user: str = "admin", password: str = ADMIN_PASSWORD) -> httpx.Client:
        """A logged-in client of Superset's API."""
        client = httpx.Client(base_url=self.url, trust_env=False, timeout=180)
        login = {"username": user, "password": password, "provider": "db"}
        answer = client.post("/api/v1/security/login", json=login)
        assert answer.status_code == 200, answer.text
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        client.headers["Referer"] = self.url
        client.headers["X-CSRFToken"] = client.get("/api/v1/security/csrf_token/").json()["result"]
        return client


def add_viewer(admin: httpx.Client) -> None:
    """Make `VIEWER`, unless another file has."""
    name, password = VIEWER
    if name in [each["username"] for each in admin.get("/api/v1/security/users/").json()["result"]]:
        return
    roles = admin.get("/api/v1/security/roles/", params={"q": "(page_size:100)"}).json()["result"]
    (role,) = [each["id"] for each in roles if each["name"] == "Glucose viewer"]
    person = {"username": name, "password": password, "first_name": "V", "last_name": "V", "email": "v@localhost"}
    answer = admin.post("/api/v1/security/users/", json=person | {"active": True, "roles": [role]})
    assert answer.status_code == 201, answer.text


def run_lakehouse(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nightscout_lakehouse.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)


@contextmanager
def made_up_people() -> Iterator[str]:
    """The sites file of `PEOPLE`, whose servers run meanwhile."""
    with ExitStack() as stack:
        sites = []
        for name, person in PEOPLE.items():
            store = DemoStore.of(person, days=DAYS) if person else DemoStore()
            sites.append(f'[[sites]]\nname = "{name}"\nurl = "{stack.enter_context(DemoServer(store)).url}"\n')
        yield "\n".join(sites)


@contextmanager
def superset_server(sites: str, tokens: Mapping[str, str] | None = None) -> Iterator[SupersetServer]:
    """A lakehouse whose pipeline has run once, with Superset on it.

    Args:
        sites: What is in its sites file.
        tokens: The environment variables that this names.
    """
    with ExitStack() as stack:
        # Postgres may run as another user, who has to pass through.
        parent = Path(tempfile.mkdtemp(prefix="lakehouse-test-"))
        stack.callback(shutil.rmtree, parent)
        parent.chmod(0o711)
        (parent / "sites.toml").write_text(sites)
        ours = {str(field.validation_alias) for field in Settings.model_fields.values()}
        environment = {name: value for name, value in os.environ.items() if name not in ours | {"DAGSTER_HOME"}}
        environment |= {
            **(tokens or {}),
            "LAKEHOUSE_HOME": str(parent / "a lakehouse"),
            "LAKEHOUSE_SITES_FILE": str(parent / "sites.toml"),
            "SUPERSET_ADMIN_PASSWORD": ADMIN_PASSWORD,
            "SUPERSET_PORT": str(free_port()),
        }
        # Here, where other tests have imported all that it needs.
        with patch.dict(os.environ, environment, clear=True):
            run = CliRunner().invoke(app, ["run"])
        assert run.exit_code == 0, run.output
        output = parent / "serve.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "nightscout_lakehouse.cli", "dashboard", "serve"],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                # Where the tests run in the background of a shell, Ctrl-C would be ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        stack.callback(stop, process, output)
        wait_for("Dashboards: ", process, output)
        url = f"http://127.0.0.1:{environment['SUPERSET_PORT']}"
        yield SupersetServer(url, parent / "a lakehouse", environment, process, output)


def wait_for(text: str, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while text not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.05)


def stop(process: subprocess.Popen[bytes], output: Path) -> None:
    """Press Ctrl-C: all that was started ends with it."""
    if process.poll() is not None:
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=120) == 0, output.read_text()
        assert "Stopped." in output.read_text()
        assert "Traceback" not in output.read_text()
        assert started != []
    finally:
        process.kill()
        left = psutil.wait_procs(started, timeout=10)[1]
        for each in left:
            each.kill()
    assert left == []


def log_in(page: Page, server: SupersetServer, user: str = "admin", password: str = ADMIN_PASSWORD) -> None:
    """Log in as a person does."""
    page.set_default_timeout(LONGEST_WAIT_MS)
    page.goto(f"{server.url}/login/")
    page.locator("#username").fill(user)
    page.locator("#password").fill(password)
    page.locator("button[type=submit]").click()
    page.wait_for_url(lambda url: "/login" not in url)


def open_dashboard(
    page: Page, server: SupersetServer, slug: str, *, query: str = "", empty: Mapping[str, str] | None = None
) -> None:
    """Open a dashboard and wait until every chart has drawn; fails on a chart with an error or without data.

    Args:
        page: Of a context that is logged in.
        server: Where.
        slug: Of the dashboard.
        query: What follows the `?` of the address, such as filters.
        empty: The charts that have nothing to show, by title, and the sentence that each says then.
    """
    page.goto(f"{server.url}/superset/dashboard/{slug}/{'?' if query else ''}{query}")
    # The first one may be for the other kind of screen, and not visible.
    page.wait_for_selector('[data-test="chart-grid-component"]', state="attached")
    wait_until_drawn(page)
    assert chart_problems(page) == []
    assert empty_charts(page) == (empty or {})


def wait_until_drawn(page: Page) -> None:
    """Wait until every chart of the page says or paints something, and nothing loads or moves any more.

    That must hold for a while: charts draw anew when a filter gets its first value, and ECharts moves for a second.
    """
    page.wait_for_function(
        """still => {
            const charts = [...document.querySelectorAll('[data-test="chart-grid-component"]')];
            const isDrawn = chart => {
                if (chart.querySelector('[role="alert"]')) return true;
                const slice = chart.querySelector('[data-test="slice-container"]');
                return slice && (slice.querySelector('canvas, svg, td') || slice.innerText.trim() !== '');
            };
            const isLoading = document.querySelector('[data-test="loading-indicator"], .loading');
            if (charts.length === 0 || isLoading || !charts.every(isDrawn)) window.drawnSince = undefined;
            else window.drawnSince ??= performance.now();
            return performance.now() - window.drawnSince > still;
        }""",
        arg=STILL_MS,
        # Left to itself Playwright asks with each frame, a sixth of what the browser does then.
        polling=100,
        timeout=LONGEST_WAIT_MS,
    )


def chart_problems(page: Page) -> list[str]:
    """The charts that show an error, with what they say."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll('[data-test="chart-grid-component"]')].flatMap(chart => {
            const bad = chart.querySelector('[role="alert"], .ant-alert-error');
            const words = chart.innerText.match(/Data error|Unexpected error/);
            if (!bad && !words) return [];
            return [chart.dataset.testChartName + ': ' + chart.querySelector('.dashboard-chart').innerText.trim()];
        })"""
    )
    return found


def empty_charts(page: Page) -> dict[str, str]:
    """The charts that have nothing to show, by title, each with the sentence that it says instead."""
    found: dict[str, str] = page.evaluate(
        """() => Object.fromEntries(
            [...document.querySelectorAll('[data-test="chart-grid-component"]')].flatMap(chart => {
                const place = chart.querySelector('.dashboard-chart :has(> .ant-empty-description)');
                // The sentence stands in the dashboard's CSS, and Superset's own words are not to be seen.
                const own = place && [...place.children].filter(child => getComputedStyle(child).display !== 'none');
                const sentence = place && getComputedStyle(place, '::after').content.replace(/^"|"$/g, '');
                const words = chart.innerText.match(/No results|No data/);
                if (place) return [[chart.dataset.testChartName, own.map(each => each.innerText + ' ') + sentence]];
                return words ? [[chart.dataset.testChartName, words[0]]] : [];
            })
        )"""
    )
    return found


def chart_names(page: Page) -> list[str]:
    """The titles of the charts on the page, from top to bottom."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll('[data-test="chart-grid-component"]')].map(
            chart => chart.dataset.testChartName
        )"""
    )
    return found


def charts_of(name: str) -> set[str]:
    """The uuids of the charts that the file of a dashboard names."""
    position = yaml.safe_load((BUNDLE_DIR / name).read_text())["position"]
    return {node["meta"]["uuid"] for node in position.values() if isinstance(node, dict) and node["type"] == "CHART"}


def take_screenshot(page: Page, name: str) -> None:
    """A picture of the whole page, into the folder LAKEHOUSE_TEST_SCREENSHOTS where that is set."""
    if target := os.environ.get("LAKEHOUSE_TEST_SCREENSHOTS"):
        Path(target).mkdir(parents=True, exist_ok=True)
        size = page.viewport_size
        assert size is not None
        # A picture larger than the window may be taken before what is outside of it is painted.
        page.set_viewport_size({"width": size["width"], "height": page.evaluate("document.body.scrollHeight")})
        wait_until_drawn(page)
        page.screenshot(path=Path(target, f"{name}.png"), full_page=True)
        page.set_viewport_size(size)
