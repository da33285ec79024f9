"""Debian's Chromium without a window, for tests of pages."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

_CHROMIUM, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1280,900",
)  # fmt: skip
needs_browser = pytest.mark.skipif(
    not (_CHROMIUM and _DRIVER), reason="needs Debian's packages chromium and chromium-driver"
)


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own, which keeps what pages log."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(_CHROMIUM)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        preload = os.environ.pop("LD_PRELOAD", None)
        driver = webdriver.Chrome(options, Service(str(_DRIVER)))
        if preload is not None:
            os.environ["LD_PRELOAD"] = preload
        try:
            yield driver
        finally:
            driver.quit()


def resize(driver: webdriver.Chrome, width: int) -> None:
    """Sets the width of the page; below 600 as on a phone."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def prefer_colours(driver: webdriver.Chrome, scheme: str) -> None:
    """Prefers "light" or "dark" pages, as a user does in the settings of the system."""
    colours = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [colours]})
