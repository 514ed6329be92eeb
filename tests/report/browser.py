"""Headless Chromium as a reader would have it, with every request and every word of its console recorded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-device-scale-factor=1",
)
# What a page of one file may ask for.
LOCAL = ("file:", "blob:", "data:", "about:", "chrome:")


class Page:
    """A report that is open."""

    def __init__(self, driver: Any, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def open(self, path: Path) -> int:
        """Open it and wait until it says that it is drawn; how many milliseconds that took."""
        self.driver.get(path.absolute().as_uri())
        WebDriverWait(self.driver, 30, poll_frequency=0.05).until(
            lambda driver: driver.execute_script("return document.documentElement.dataset.drawn")
        )
        return int(self.js("return document.documentElement.dataset.drawn"))

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def settle(self) -> None:
        """Until what was asked for is on the screen."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60)));"
        )

    def requests(self) -> list[str]:
        """Every address that was asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            each["params"]["request"]["url"]
            for each in messages
            if each["method"] == "Network.requestWillBeSent"
        ]

    def console(self) -> list[str]:
        """Every warning and error of the console since the last call."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("WARNING", "SEVERE")
        ]

    def theme(self, theme: str) -> None:
        """What the reader's system asks for: light or dark."""
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        )
        self.settle()

    def size(self, width: int, height: int = 900) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.settle()


@contextmanager
def chromium(scratch: Path) -> Iterator[Page]:
    """A browser of its own, with a profile and a folder for downloads under `scratch`."""
    downloads = scratch / "downloads"
    downloads.mkdir(parents=True)
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={scratch / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    service = Service(str(DRIVER), env={**os.environ, "SE_OFFLINE": "true", "SE_AVOID_STATS": "true"})
    driver: Any = webdriver.Chrome(options=options, service=service)
    try:
        driver.set_script_timeout(20)
        driver.get("about:blank")
        # what the browser's own first page asked for
        driver.get_log("performance")
        yield Page(driver, downloads)
    finally:
        driver.quit()
