"""The console's page in headless Chromium, on a system in memory: what it says, in states that are hard to reach with a real one."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from functions.console.app import pages
from tests.builders import a_model_record
from tests.console.browser import AXE, chromium, complaints, needs_axe, needs_chromium, opened, tab, text_of, until
from tests.console.scene import WINDOW_S, Scene, a_busy_scene, served

pytestmark = needs_chromium

RUN_AXE = """
    const done = arguments[0];
    axe.run().then((result) => done([result.passes.length, result.violations.map((v) => [v.id, v.nodes.map((n) => n.html)])]));
"""
PANELS = ("load-title", "slo-title", "latency-title", "tier-title", "cost-title", "fleet-title", "why-title", "parameters-title")


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


def busy_now() -> Scene:
    return a_busy_scene(math.floor(time.time() / WINDOW_S) * WINDOW_S)


def test_every_panel_says_what_the_endpoints_answered_and_the_browser_complains_of_nothing(page: Any) -> None:
    scene = busy_now()
    with served(scene) as url, tab(page) as driver:
        opened(driver, url)
        service = json.loads(scene.answer(scene.event("GET", "/v2/console/overview"))["body"])["service"]

        assert f"of {service['requests']} requests within 200 ms" in text_of(driver, "slo-said")
        assert "Forecast by seasonal (least cost over the last 40 steps)" in text_of(driver, "load-said")
        assert f"Workers {service['by_tier']['worker']}" in text_of(driver, "tier-said")
        assert "RT_max is 200 ms" in text_of(driver, "latency-said")
        assert "SageMaker endpoint" in text_of(driver, "cost-table")
        assert "spot interruption" in text_of(driver, "fleet-table")
        assert "demand at the 0.93 quantile" in text_of(driver, "plan-said")
        assert "burning 6.2 times too fast" in text_of(driver, "log-table")
        assert driver.execute_script("return document.querySelectorAll('svg[role=img][aria-label]').length") == 5
        # Each chart has its numbers as a table.
        for chart in ("load", "slo", "latency", "tier", "cost"):
            assert driver.execute_script(f"return document.querySelectorAll('#{chart}-table tbody tr').length") >= 3
        assert complaints(driver) == []


def test_page_asks_nobody_but_the_system_it_came_from(page: Any) -> None:
    with served(busy_now()) as url, tab(page) as driver:
        opened(driver, url)
        messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

        assert len(asked) >= 9
        assert [one for one in asked if not one.startswith((url, "data:"))] == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_page_fits_its_window(page: Any, width: int, dark: bool) -> None:
    with served(busy_now()) as url, tab(page, width, dark=dark) as driver:
        opened(driver, url)

        assert driver.execute_script("return document.documentElement.scrollWidth") == width
        ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(14, 18, 23)") is dark
        for title in PANELS:
            assert driver.execute_script("return document.getElementById(arguments[0]).getBoundingClientRect().width", title) > 50


@needs_axe
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_axe_finds_no_barrier(page: Any, width: int, dark: bool) -> None:
    with served(busy_now()) as url, tab(page, width, dark=dark) as driver:
        opened(driver, url)
        driver.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        # By the debugger, which the page's own policy does not bind.
        driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text()})
        passed, found = driver.execute_async_script(RUN_AXE)

        assert passed > 20
        assert found == []


def keys(driver: Any, text: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(text).perform()


def test_parameter_is_set_by_keyboard_alone_and_a_bad_value_is_refused_with_the_servers_reason(page: Any) -> None:
    from selenium.webdriver import Keys

    scene = busy_now()
    with served(scene) as url, tab(page) as driver:
        opened(driver, url)
        for _ in range(200):
            keys(driver, Keys.TAB)
            if driver.execute_script("return document.activeElement.id") == "p-rt-max-s":
                break
        outline = driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        keys(driver, Keys.END + Keys.BACKSPACE * 3 + "98" + Keys.ENTER)
        until(driver, "document.getElementById('parameter-said').textContent")
        assert text_of(driver, "parameter-said") == "Not set: rt-max-s: 98 is above the highest allowed value 29"
        assert scene.parameters.get().rt_max_s == 0.2

        keys(driver, Keys.END + Keys.BACKSPACE * 2 + "0.5" + Keys.ENTER)
        until(driver, "document.getElementById('parameter-said').textContent.startsWith('rt-max-s was')")
        assert text_of(driver, "parameter-said") == "rt-max-s was 0.2, is 0.5; set by anonymous."
        assert scene.parameters.get().rt_max_s == 0.5
        until(driver, "document.getElementById('log-table').textContent.includes('anonymous set rt-max-s from 0.2 to 0.5')")
        assert driver.execute_script("return document.activeElement.id") == "p-rt-max-s"


def test_parameter_that_somebody_else_changed_meanwhile_is_not_overwritten(page: Any) -> None:
    scene = busy_now()
    with served(scene) as url, tab(page) as driver:
        opened(driver, url)
        scene.parameters.tunables = type(scene.parameters.tunables)(headroom=2.0)
        driver.find_element("id", "p-headroom").send_keys(".5\n")
        until(driver, "document.getElementById('parameter-said').textContent")

        assert "headroom is 2.0 by now, not 1" in text_of(driver, "parameter-said")
        assert scene.parameters.get().headroom == 2.0


def test_without_a_model_the_page_says_what_to_do_and_fills_when_one_comes(page: Any) -> None:
    scene = Scene(now_s=time.time())
    with served(scene) as url, tab(page) as driver:
        opened(driver, url)
        assert "markserve models register" in text_of(driver, "empty")
        scene.models.put(a_model_record())
        until(driver, "!document.getElementById('load-chart').closest('section').hidden")

        assert "Nothing arrived" in text_of(driver, "load-chart")
        assert "No instances" in text_of(driver, "fleet-table")
        assert "Nothing was planned yet" in text_of(driver, "plan-said")
        assert "Out of date in the system itself: no report of arrivals" in text_of(driver, "stale")
        assert complaints(driver) == []


def test_outage_is_said_what_was_known_stays_and_the_page_recovers_by_itself(page: Any) -> None:
    scene = busy_now()
    with served(scene) as url, tab(page) as driver:
        opened(driver, url)
        scene.outage = True
        until(driver, "!document.getElementById('error').hidden")
        assert "No new data: a service this depends on does not answer" in text_of(driver, "error")
        assert "requests within 200 ms" in text_of(driver, "slo-said")
        scene.outage = False
        until(driver, "document.getElementById('error').hidden")


def test_stack_with_keys_asks_for_one_refuses_a_wrong_one_and_keeps_a_good_one_for_the_tab(page: Any) -> None:
    scene = busy_now()
    inner = scene.answer

    def gateway(event: dict[str, Any]) -> dict[str, Any]:
        """Answer as API Gateway does with ApiAuth=api-key."""
        if not event["rawPath"].startswith("/v2/"):
            return inner(event)
        key = {name.lower(): value for name, value in event["headers"].items()}.get("x-api-key")
        if key == "right":
            return inner(
                {**event, "requestContext": {**event["requestContext"], "authorizer": {"lambda": {"principalId": "o", "operator": "true"}}}}
            )
        status, said = (403, '{"message":"Forbidden"}') if key else (401, '{"message":"Unauthorized"}')
        return {"statusCode": status, "headers": {"content-type": "application/json"}, "body": said, "isBase64Encoded": False}

    scene.answer = gateway  # type: ignore[method-assign]  # the gateway stands before the function
    with served(scene) as url, tab(page) as driver:
        driver.get(f"{url}/console")
        until(driver, "!document.getElementById('signin').hidden")
        assert "wants an API key" in text_of(driver, "signin-why")
        assert driver.execute_script("return document.getElementById('panels').hidden")
        driver.find_element("id", "key").send_keys("guessed\n")
        until(driver, "document.getElementById('signin-why').textContent.includes('Not allowed')")
        driver.find_element("id", "key").send_keys("right\n")
        until(driver, "document.getElementById('signin').hidden && document.querySelectorAll('#parameters form').length > 5")
        driver.refresh()
        until(driver, "document.getElementById('slo-said').textContent.includes('requests within')")
        assert driver.execute_script("return [localStorage.getItem('markserve-key'), sessionStorage.getItem('markserve-key')]") == [
            None,
            "right",
        ]


def test_stack_that_wants_signatures_says_how_to_get_in(page: Any) -> None:
    scene = busy_now()
    inner = scene.answer
    refused = {
        "statusCode": 403,
        "headers": {"content-type": "application/json"},
        "body": '{"message":"Forbidden"}',
        "isBase64Encoded": False,
    }
    scene.answer = lambda event: refused if event["rawPath"].startswith("/v2/") else inner(event)  # type: ignore[method-assign]  # a gateway
    with served(scene) as url, tab(page) as driver:
        driver.get(f"{url}/console")
        until(driver, "!document.getElementById('signin').hidden")

        assert "run `markserve console --open`" in text_of(driver, "signin-why")


def test_key_in_the_address_is_taken_and_removed_from_it(page: Any) -> None:
    with served(busy_now()) as url, tab(page) as driver:
        driver.get(f"{url}/console#key=from-the-command-line")
        until(driver, "document.getElementById('slo-said').textContent.includes('requests within')")

        assert driver.execute_script("return sessionStorage.getItem('markserve-key')") == "from-the-command-line"
        assert driver.current_url == f"{url}/console"


def test_refresh_stops_while_paused_or_hidden_and_goes_on_after(page: Any) -> None:
    scene = busy_now()
    with served(scene) as url, tab(page) as driver:
        opened(driver, url)
        driver.find_element("id", "pause").click()
        asked = len(scene.facts)
        time.sleep(6)
        assert len(scene.facts) == asked
        assert text_of(driver, "updated").startswith("paused, as of")
        driver.find_element("id", "pause").click()
        until(driver, "document.getElementById('updated').textContent.startsWith('as of')")
        assert len(scene.facts) > asked

        driver.execute_script("Object.defineProperty(document, 'hidden', { configurable: true, get: () => true })")
        time.sleep(1)
        asked = len(scene.facts)
        time.sleep(6)
        assert len(scene.facts) == asked
        driver.execute_script("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        time.sleep(1)
        assert len(scene.facts) > asked


def test_theme_button_overrides_what_the_system_prefers_and_is_remembered(page: Any) -> None:
    with served(busy_now()) as url, tab(page, dark=True) as driver:
        opened(driver, url)
        driver.find_element("id", "theme").click()
        assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(243, 245, 248)"
        driver.refresh()
        assert driver.execute_script("return document.documentElement.dataset.theme") == "light"


def test_data_never_becomes_markup(page: Any) -> None:
    scene = busy_now()
    scene.models.put(a_model_record(model="<img src=x onerror=alert(1)>"))
    with served(scene) as url, tab(page) as driver:
        opened(driver, url)

        assert driver.execute_script("return document.querySelectorAll('img').length") == 0
        assert "<img src=x" in driver.execute_script("return document.getElementById('model').textContent")


def test_page_is_small_enough_to_need_no_build() -> None:
    assert sum(len(page.body) for page in pages().values()) < 70_000
