"""A real Chromium for tests of pages, driven through selenium, which downloads nothing.

    browser = open_browser()
    browser.get(file.as_uri())

Debian's packages are `chromium` and `chromium-driver`. If they are missing, the tests are skipped
with the reason or, with CI=true, fail.
"""

from __future__ import annotations

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def open_browser():
    """A headless browser whose console and network are logged."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        return _missing("selenium is not installed")
    if browser is None or driver is None:
        return _missing("no chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    opened = webdriver.Chrome(options=options, service=service)
    set_screen(opened, 1400, 900)
    return opened


def set_screen(browser, width, height, *, dark=False):
    """The size of the window in CSS pixels, and the colours that the reader prefers."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [colours]})


def _missing(reason):
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}: CI needs them")
    pytest.skip(reason)
