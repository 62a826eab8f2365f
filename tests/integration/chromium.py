"""The browser that looks at our pages: real Chromium, without a window."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The first is the same engine without a browser's own interface, and starts in a third of the CPU time.
PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
MISSING = "there is no Chromium; `apt-get install chromium-headless-shell` brings it"
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    # Superset's pages make so much garbage that to collect it took a fifth of the browser's CPU time.
    "--js-flags=--min-semi-space-size=64 --max-semi-space-size=128",
)


@contextmanager
def launched() -> "Iterator[Browser]":
    """A running browser; Playwright cannot run twice in a process at the same time."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()
