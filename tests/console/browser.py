"""Headless Chromium, where there is one, by Debian's chromium and chromium-driver."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = Path(__file__).resolve().parents[2] / "node_modules/axe-core/axe.min.js"
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver (apt-get install chromium chromium-driver)"
)
needs_axe = pytest.mark.skipif(not AXE.exists(), reason="no axe-core (npm install --no-save axe-core)")
WAIT_S = 15.0


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def tab(driver: Any, width: int = 1280, height: int = 900, *, dark: bool = False) -> Iterator[Any]:
    """Open a tab of this size, with a session storage of its own; it is closed afterwards."""
    before = driver.current_window_handle
    driver.switch_to.new_window("tab")
    for log in ("browser", "performance"):
        driver.get_log(log)
    # The window of a headless browser has a least width; the emulated screen has none.
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen(width, height))
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        yield driver
    finally:
        driver.close()
        driver.switch_to.window(before)


def screen(width: int, height: int) -> dict[str, Any]:
    """Metrics of a screen; a narrow one is a telephone's."""
    return {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}


def until(driver: Any, condition: str, *, within_s: float = WAIT_S) -> Any:
    """Wait until a JavaScript expression is true, and return it; fails with what the page says."""
    give_up_at_s = time.monotonic() + within_s
    while time.monotonic() < give_up_at_s:
        if found := driver.execute_script(f"return {condition}"):
            return found
        time.sleep(0.05)
    said = driver.execute_script("return document.body.innerText")
    raise AssertionError(f"not within {within_s:g} s: {condition}\n{said[:2000]}\n{driver.get_log('browser')}")


def text_of(driver: Any, element: str) -> str:
    return str(driver.execute_script("return document.getElementById(arguments[0]).innerText", element))


def opened(driver: Any, base_url: str) -> None:
    """Open the console and wait for its first data."""
    driver.get(f"{base_url}/console")
    until(
        driver,
        "document.getElementById('updated').textContent.startsWith('as of') && document.querySelectorAll('#parameters form').length > 5",
    )


def complaints(driver: Any) -> list[str]:
    """Everything that the browser complains about: errors, and what the content security policy refused."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
