"""The console's endpoints on ports in memory: its figures, what it changes, and whom it refuses."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from functions.console import app
from functions.ingest.app import LEAD_STEPS, SHORT_STEPS, SLIDING_STEPS
from local.deployer import REPOSITORY, load_template
from markserve import console_cost, console_service, wiring
from markserve.core.cost import spill_cost_per_request_usd
from markserve.core.tunables import Tunables
from markserve.core.types import InstanceState
from markserve.protocol.http import OPERATE_SCOPE, request_from_event
from tests.builders import MODEL, NOW_S, a_forecast_record, a_model_record, a_plan_record, an_instance, worker_stats
from tests.console.scene import Scene, a_busy_scene


def get(scene: Scene, path: str, **query: str) -> Any:
    answer = scene.answer(scene.event("GET", path, **query))
    assert answer["statusCode"] == 200, answer["body"]
    return json.loads(answer["body"])


def overview(scene: Scene, **query: str) -> Any:
    return get(scene, "/v2/console/overview", **query)


def put(scene: Scene, name: str, **body: Any) -> tuple[int, Any]:
    answer = scene.answer(scene.event("PUT", f"/v2/console/parameters/{name}", body=json.dumps(body).encode()))
    return answer["statusCode"], json.loads(answer["body"])


# --- figures --------------------------------------------------------------------------------------------------------


def test_rates_are_counts_over_windows_and_unknown_windows_are_not_zero() -> None:
    scene = Scene(a_model_record())
    scene.count(NOW_S - 295, worker=20)
    scene.count(NOW_S - 290)
    scene.count(NOW_S - 20, worker=5, ticks=False)

    rates = {p["at_s"] - NOW_S: p["rate_rps"] for p in overview(scene, minutes="5")["load"]["arrivals"]}

    assert (rates[-295], rates[-290], rates[-20]) == (4.0, 0.0, 1.0)
    assert rates[-100] is None
    assert len(rates) == 60


def test_band_shows_what_was_forecast_before_each_step_and_the_latest_forecast_ahead() -> None:
    scene = Scene(a_model_record())
    for origin_s, factor in ((NOW_S - 120, 1.0), (NOW_S - 60, 2.0)):
        rates = {"0.5": (factor, factor * 10), "0.9": (factor * 3, factor * 30)}
        scene.control.put_forecast(a_forecast_record(origin_at_s=origin_s, rates_rps=rates))

    load = overview(scene, minutes="5")["load"]

    assert [(b["at_s"] - NOW_S, b["until_s"] - NOW_S, b["low_rps"], b["high_rps"]) for b in load["band"]] == [
        (-120, -60, 1, 3),
        (-60, 0, 2, 6),
        (0, 60, 20, 60),
    ]
    assert load["forecast"]["quantiles"] == ["0.5", "0.5", "0.9"]


def test_capacity_is_of_workers_from_serving_to_draining() -> None:
    left = an_instance(
        instance_id="i-left",
        state=InstanceState.TERMINATED,
        serving_at_s=NOW_S - 250,
        drain_at_s=NOW_S - 100,
        terminated_at_s=NOW_S - 80,
        stats=worker_stats(service_rate_rps=30.0),
    )
    scene = Scene(a_model_record(), instances=(left, an_instance(serving_at_s=NOW_S - 200, stats=worker_stats(service_rate_rps=50.0))))

    points = overview(scene, minutes="5")["load"]["capacity"]

    assert [(round(p["at_s"] - NOW_S), p["capacity_rps"]) for p in points] == [(-305, 0), (-250, 30), (-200, 80), (-100, 50), (-5, 50)]


def test_attainment_and_tiers_count_every_request_and_burn_is_of_what_the_objective_allows() -> None:
    scene = Scene(a_model_record(), rt_max_s=0.2, sl_min=0.9)
    scene.count(NOW_S - 20, worker=70, late=10, spilled=15, rejected=5)

    service = overview(scene, minutes="5")["service"]

    assert service["attainment"] == pytest.approx(0.85)
    assert service["by_tier"] == {"worker": 80, "lambda": 15, "rejected": 5}
    assert service["burn_rate_short"] == pytest.approx(0.15 / 0.1)
    assert service["at_risk"]
    assert sum(bar["count"] for bar in service["latency"]) == 95
    assert service["p50_s"] == pytest.approx(0.06, rel=0.05)
    assert service["p99_s"] == pytest.approx(0.3, rel=0.05)


def test_burn_rates_are_over_the_windows_that_the_controller_judges_by() -> None:
    mine = (console_service.SLIDING_STEPS, console_service.SHORT_STEPS, console_service.LEAD_STEPS)

    assert mine == (SLIDING_STEPS, SHORT_STEPS, LEAD_STEPS)


def test_costs_are_the_sum_of_their_parts_and_stated_for_other_ways_on_the_same_load() -> None:
    scene = Scene(a_model_record(), instances=(an_instance(requested_at_s=NOW_S - 1000),), rt_max_s=0.2)
    for index in range(60):
        scene.count(NOW_S - 305 + 5 * index, worker=90, spilled=10)

    cost = overview(scene, minutes="5")["cost"]
    ways = {way["name"]: way for way in cost["ways"]}

    requests = 60 * 100
    spill_usd = spill_cost_per_request_usd(spill_latency_s=0.036, memory_mb=1769)
    assert cost["workers_usd_per_hour"] == pytest.approx(0.085)
    assert cost["lambda_usd_per_hour"] == pytest.approx(600 * spill_usd * 12)
    parts = cost["workers_usd_per_hour"] + cost["lambda_usd_per_hour"] + cost["plumbing_usd_per_hour"]
    assert ways["markserve"]["total_usd_per_hour"] == pytest.approx(parts)
    assert cost["plumbing_usd_per_hour"] == pytest.approx(sum(cost["plumbing_by_kind_usd_per_hour"].values()))
    assert cost["plumbing_by_kind_usd_per_hour"]["http_api"] == pytest.approx(requests * 1e-6 * 12)
    assert ways["markserve"]["usd_per_million"] == pytest.approx(parts / 12 / requests * 1e6)
    assert ways["lambda"]["total_usd_per_hour"] == pytest.approx(requests * (spill_usd + 1e-6) * 12)
    # 1,200 a minute; one instance does 60 / 11.25 ms = 5,333, and half of that is the target: one is enough, at 1.2 x $0.085.
    assert ways["sagemaker"]["total_usd_per_hour"] == pytest.approx(0.102)
    assert list(ways) == ["markserve", "lambda", "sagemaker"]


def test_costs_are_not_averaged_over_a_time_before_the_first_known_window() -> None:
    scene = Scene(a_model_record(), instances=(an_instance(requested_at_s=NOW_S - 100, serving_at_s=NOW_S - 95),))
    scene.count(NOW_S - 95, worker=60, ticks=False)
    scene.count(NOW_S - 20, worker=60, ticks=False)

    cost = overview(scene, minutes="15")["cost"]

    assert NOW_S - 5 - cost["since_s"] == 120.0
    assert cost["workers_usd_per_hour"] == pytest.approx(0.085 * 95 / 120)
    assert {way["name"]: way["compute_usd_per_hour"] for way in cost["ways"]}["sagemaker"] == pytest.approx(0.102)


def test_way_that_cannot_be_estimated_is_named_with_the_reason() -> None:
    scene = Scene(a_model_record(profiles={}))

    cost = overview(scene)["cost"]

    assert [way["name"] for way in cost["ways"]] == ["markserve"]
    assert "no profile of one request on Lambda" in cost["missing"][0]
    assert "no measured instance type" in cost["missing"][1]


def test_front_is_priced_by_the_memory_that_the_template_gives_it() -> None:
    template = load_template(REPOSITORY / "template.yaml")

    assert template["Globals"]["Function"]["MemorySize"] == console_cost.FRONT_MEMORY_MB
    assert "MemorySize" not in template["Resources"]["ApiFunction"]["Properties"]


def test_fleet_says_state_since_when_and_why() -> None:
    members = {m["instance_id"]: m for m in overview(a_busy_scene())["fleet"]}

    assert members["i-0lost"]["state"] == "terminated"
    assert members["i-0lost"]["end_reason"] == "spot interruption"
    assert members["i-0kept"]["since_s"] == NOW_S - 520
    assert members["i-0kept"]["mean_batch_size"] == pytest.approx(9120 / 2100)


def test_stale_parts_are_named() -> None:
    scene = Scene(a_model_record())
    scene.control.put_plan(a_plan_record(created_at_s=NOW_S - 500))

    stale = overview(scene)["freshness"]["stale"]

    assert stale == ["no report of arrivals for 180 s", "no forecast for 180 s", "the last plan is 500 s old"]
    assert overview(a_busy_scene())["freshness"]["stale"] == []


def test_without_models_the_parts_are_null() -> None:
    found = overview(Scene())

    assert (found["model"], found["models"], found["load"], found["cost"]) == (None, [], None, None)


def test_decisions_hold_the_plan_its_rejected_alternatives_and_the_log_newest_first() -> None:
    found = get(a_busy_scene(), "/v2/console/decisions", minutes="15")

    assert [a["offering"] for a in found["plan"]["alternatives"]] == ["c5.xlarge/spot/us-east-1a", "c5.large/spot/us-east-1b"]
    assert [d["event"] for d in found["decisions"]] == ["instance_launched", "slo_at_risk", "instance_interrupted", "instance_serving"]


# --- parameters -----------------------------------------------------------------------------------------------------


def test_parameters_come_with_bounds_defaults_and_meaning() -> None:
    scene = Scene(a_model_record(), rt_max_s=0.5)
    scene.parameters.by_model[MODEL] = Tunables(rt_max_s=0.7)

    of_stack = {p["name"]: p for p in get(scene, "/v2/console/parameters")["parameters"]}
    of_model = {p["name"]: p for p in get(scene, "/v2/console/parameters", model=MODEL)["parameters"]}

    assert {name: of_stack["rt-max-s"][name] for name in ("value", "default", "lowest", "highest", "kind")} == {
        "value": 0.5,
        "default": 0.2,
        "lowest": 0.01,
        "highest": 29.0,
        "kind": "number",
    }
    assert of_stack["spot-enabled"]["kind"] == "boolean"
    assert (of_model["rt-max-s"]["value"], of_model["rt-max-s"]["overridden"]) == (0.7, True)


def test_change_is_written_and_logged_with_who_what_from_and_to() -> None:
    scene = Scene(a_model_record())

    status, changed = put(scene, "rt-max-s", value="0.5", expected=0.2)

    assert status == 200
    assert (changed["old"], changed["new"], changed["by"]) == (0.2, 0.5, "anonymous")
    assert scene.parameters.get().rt_max_s == 0.5
    (line,) = scene.control.decisions(since_s=0, until_s=NOW_S + 1)
    assert (line.event, line.subject, line.detail) == ("parameter_set", "rt-max-s", {"by": "anonymous", "old": 0.2, "new": 0.5})
    assert scene.facts[-1] == {
        "audit": "parameter_set",
        "parameter": "rt-max-s",
        "model": None,
        "by": "anonymous",
        "old": 0.2,
        "new": 0.5,
    }


def test_change_of_one_model_leaves_the_stack_alone() -> None:
    scene = Scene(a_model_record())

    assert put(scene, "spot-enabled", value=False, model=MODEL)[0] == 200
    assert (scene.parameters.get(MODEL).spot_enabled, scene.parameters.get().spot_enabled) == (False, True)


@pytest.mark.parametrize(
    ("name", "body", "status", "said"),
    [
        ("sl-min", {"value": "98"}, 400, "sl-min: 98 is above the highest allowed value 0.9999"),
        ("max-instances", {"value": "many"}, 400, "max-instances: 'many' is not a whole number"),
        ("spot-enabled", {"value": "maybe"}, 400, "spot-enabled: 'maybe' must be true or false"),
        ("rt-max-s", {"value": "9" * 100}, 400, "a value has at most 64 characters"),
        ("no-such", {"value": "1"}, 400, "there is no parameter 'no-such'"),
        ("rt-max-s", {"value": "0.5", "model": "none"}, 404, "none"),
        ("rt-max-s", {"value": "0.5", "expected": "0.3"}, 409, "rt-max-s is 0.2 by now, not 0.3"),
        ("rt-max-s", {}, 400, "missing required field `value`"),
        ("rt-max-s", {"value": "0.5", "other": 1}, 400, "unknown field `other`"),
    ],
)
def test_bad_change_is_refused_with_the_reason_and_changes_nothing(name: str, body: dict[str, Any], status: int, said: str) -> None:
    scene = Scene(a_model_record())

    answered, error = put(scene, name, **body)

    assert (answered, said in error["error"]) == (status, True), error
    assert scene.parameters.get() == Tunables()
    assert scene.control.decisions(since_s=0, until_s=NOW_S + 1) == []


# --- who may, and the page ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorizer", "status"),
    [
        ({"jwt": {"claims": {"sub": "ann", "scope": f"openid {OPERATE_SCOPE}"}}}, 200),
        ({"jwt": {"claims": {"sub": "bob", "scope": "openid"}}}, 403),
        ({"lambda": {"principalId": "ops", "operator": "true"}}, 200),
        ({"lambda": {"principalId": "shop"}}, 403),
        ({"lambda": {"principalId": "ops", "operator": "true", "retryAfterS": "9", "reason": "quota used up"}}, 429),
        ({"iam": {"userArn": "arn:aws:iam::123456789012:user/ann"}}, 200),
        ({}, 200),
    ],
)
def test_data_is_for_operators_by_whatever_authorises(authorizer: dict[str, Any], status: int) -> None:
    scene = a_busy_scene()
    event = scene.event("GET", "/v2/console/overview")
    event["requestContext"]["authorizer"] = authorizer

    assert scene.answer(event)["statusCode"] == status


def test_page_of_another_site_changes_nothing() -> None:
    scene = Scene(a_model_record())
    body = json.dumps({"value": "0.5"}).encode()

    for site in ("cross-site", "same-site"):
        event = scene.event("PUT", "/v2/console/parameters/rt-max-s", body=body, headers={"sec-fetch-site": site})
        assert scene.answer(event)["statusCode"] == 400
    plain = scene.event("PUT", "/v2/console/parameters/rt-max-s", body=body, headers={"content-type": "text/plain"})
    assert scene.answer(plain)["statusCode"] == 400
    assert scene.parameters.get() == Tunables()


def test_page_and_its_files_are_served_with_a_strict_policy_and_without_asking_for_data() -> None:
    scene = Scene()
    scene.outage = True

    for path, kind in (("/console", "text/html"), ("/console/app.js", "text/javascript"), ("/console/style.css", "text/css")):
        answer = scene.answer(scene.event("GET", path))
        assert answer["statusCode"] == 200
        assert answer["headers"]["content-type"].startswith(kind)
        assert "default-src 'none'" in answer["headers"]["content-security-policy"]
        assert "unsafe" not in answer["headers"]["content-security-policy"]
        again = scene.answer(scene.event("GET", path, headers={"if-none-match": answer["headers"]["etag"]}))
        assert (again["statusCode"], again["body"]) == (304, "")
    assert scene.answer(scene.event("GET", "/console/"))["headers"]["location"] == "../console"
    icon = scene.answer(scene.event("GET", "/console/icon.svg"))
    assert base64.b64decode(icon["body"]).startswith(b"<svg")


@pytest.mark.parametrize("path", ["/console/app.py", "/console/../app.py", "/console/static/app.js", "/v2/console/none", "/v2/console"])
def test_nothing_else_is_served(path: str) -> None:
    assert Scene().answer(Scene().event("GET", path))["statusCode"] == 404


@pytest.mark.parametrize("minutes", ["0", "9999", "15; drop"])
def test_interval_is_one_of_those_offered(minutes: str) -> None:
    answer = Scene().answer(Scene().event("GET", "/v2/console/overview", minutes=minutes))

    assert (answer["statusCode"], "use 5, 15, 60" in answer["body"]) == (400, True)


def test_outage_of_a_store_is_a_503_that_says_when_to_come_again() -> None:
    scene = Scene(a_model_record())
    scene.outage = True
    answer = scene.answer(scene.event("GET", "/v2/console/overview"))

    assert (answer["statusCode"], answer["headers"]["retry-after"]) == (503, "2")
    assert "told to fail" not in answer["body"]


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def bug() -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(wiring, "console", bug)
    yield


def test_function_answers_a_bug_without_telling_of_it_and_an_event_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with failing(monkeypatch):
        broken = app.run(Scene().event("GET", "/v2/console/overview"))

    assert (broken["statusCode"], broken["body"]) == (500, '{"error":"internal error"}')
    assert app.run({"version": "1.0"})["statusCode"] == 400


def test_function_logs_who_changed_what(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(a_model_record())
    monkeypatch.setattr(wiring, "console", lambda: scene.console)
    lines: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(app.logger, "info", lambda message, extra: lines.append((message, extra)))
    event = scene.event("PUT", "/v2/console/parameters/headroom", body=b'{"value": 1.5}')
    event["requestContext"]["authorizer"] = {"iam": {"userArn": "arn:aws:iam::123456789012:user/ann"}}

    assert app.run(event)["statusCode"] == 200
    ((message, extra),) = lines
    assert message == "parameter_set"
    assert (extra["by"], extra["parameter"], extra["old"], extra["new"]) == ("iam:arn:aws:iam::123456789012:user/ann", "headroom", 1.0, 1.5)


def test_recorded_request_is_read_with_its_query_and_its_caller() -> None:
    request = request_from_event(json.loads((REPOSITORY / "events/console_overview.json").read_text()))

    assert (request.segments, request.query["model"], request.operator) == (("v2", "console", "overview"), MODEL, True)
    assert request.client == "lambda:operations"


def test_function_composes_its_console_from_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    wiring.settings.cache_clear()
    for name in ("models", "windows", "control", "instances"):
        monkeypatch.setenv(f"MARKSERVE_{name.upper()}_TABLE", f"markserve-{name}")
        getattr(wiring, name).cache_clear()
    monkeypatch.setenv("MARKSERVE_STACK_NAME", "markserve")
    wiring.console.cache_clear()

    assert wiring.console() is wiring.console()

    wiring.console.cache_clear()
    wiring.settings.cache_clear()
