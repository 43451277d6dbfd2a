"""The console in headless Chromium, served by the running system through its API, under load."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from local.system import LocalSystem
from markserve import wiring
from tests.console.browser import chromium, complaints, needs_chromium, opened, screen, tab, text_of, until
from tests.system.live import Reply, call, eventually, infer_all

pytestmark = pytest.mark.system

PICTURES = os.environ.get("MARKSERVE_CONSOLE_PICTURES", "")
"""Folder that the pictures of docs/console.md are written to, on request."""

SCREENS = ((1280, False), (1280, True), (390, False), (390, True)) if PICTURES else ((1280, True), (390, False))
"""tests/console looks at all four, with data of its own."""


def loaded(system: LocalSystem) -> Any:
    """Send requests until the console's own data shows them all."""
    images = [system.model.images[i : i + 1] for i in range(40)]
    replies = infer_all(system, images * 2)
    assert {reply.status for reply in replies} <= {200, 429, 503}

    def seen() -> Any:
        infer_all(system, images[:8])  # an environment reports with its next request
        found = call(f"{system.deployment.api_url}/v2/console/overview?minutes=5").body
        return found if found["service"]["requests"] >= len(replies) and found["load"]["forecast"] and found["load"]["plans"] else None

    return eventually("the console shows the load", seen)


def test_endpoints_tell_of_the_load_the_fleet_and_the_plan(system: LocalSystem) -> None:
    found = loaded(system)

    assert found["model"] == system.record.model
    assert sum(found["service"]["by_tier"].values()) == found["service"]["requests"]
    assert any(member["state"] == "serving" and member["capacity_rps"] > 0 for member in found["fleet"])
    assert {way["name"] for way in found["cost"]["ways"]} == {"markserve", "lambda", "sagemaker"}
    assert all(way["total_usd_per_hour"] > 0 for way in found["cost"]["ways"])
    decisions = call(f"{system.deployment.api_url}/v2/console/decisions").body
    assert decisions["plan"]["reason"]
    assert call(f"{system.deployment.api_url}/v2/console/overview?model=none").status == 404


def test_parameter_set_through_the_api_is_what_the_stack_goes_by(system: LocalSystem) -> None:
    def put(value: str) -> Reply:
        url = f"{system.deployment.api_url}/v2/console/parameters/headroom"
        return call(url, json.dumps({"value": value}).encode(), method="PUT")

    since_s = time.time()
    changed = put("1.25")
    assert (changed.status, changed.body["new"]) == (200, 1.25)
    eventually("it is in force", lambda: wiring.parameters().get().headroom == 1.25, within_s=30.0)
    assert put("98").status == 400
    log = wiring.control().decisions(since_s=since_s - 1, until_s=time.time() + 1)
    assert any(d.event == "parameter_set" and d.subject == "headroom" and d.detail["new"] == 1.25 for d in log)
    assert put("1.0").status == 200


@pytest.mark.long
@needs_chromium
def test_page_draws_the_running_system(system: LocalSystem) -> None:
    loaded(system)
    if PICTURES:
        keep_loaded(system, for_s=100.0)
    for width, dark in SCREENS:
        with chromium() as started, tab(started, width, dark=dark) as driver:
            opened(driver, system.deployment.api_url)
            driver.execute_script("const m = document.getElementById('minutes'); m.value = '5'; m.dispatchEvent(new Event('change'))")
            until(driver, "document.getElementById('cost-said').textContent.includes('averaged over the last')")

            assert "requests within 2.00 s" in text_of(driver, "slo-said")
            assert "Forecast by" in text_of(driver, "load-said")
            assert "serving" in text_of(driver, "fleet-table")
            assert driver.execute_script("return document.querySelectorAll('svg[role=img]').length") == 5
            assert driver.execute_script("return document.documentElement.scrollWidth") == width
            assert complaints(driver) == []
            if PICTURES:
                take_picture(driver, Path(PICTURES) / f"console-{width}-{'dark' if dark else 'light'}.png", width)


def keep_loaded(system: LocalSystem, *, for_s: float) -> None:
    """A few requests a second, so that a picture has something to show."""
    until_s = time.monotonic() + for_s
    while time.monotonic() < until_s:
        infer_all(system, [system.model.images[:1]] * 4)
        time.sleep(0.4)


def take_picture(driver: Any, path: Path, width: int) -> None:
    height = min(driver.execute_script("return document.documentElement.scrollHeight"), 2200)
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen(width, height))
    time.sleep(0.5)
    driver.save_screenshot(str(path))
