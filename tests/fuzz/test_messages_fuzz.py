"""Whatever arrives on a queue or as an event: nothing fails unhandled, what is bad is told and set aside, the rest is served."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import functions.authorizer.app as authorizer
import functions.forecast.app as forecast
import functions.ingest.app as ingest
import functions.lifecycle.app as lifecycle
import functions.plan.app as plan
import functions.spillover.app as spillover
from markserve.adapters.memory import MemoryBlobStore, MemoryModelRunner, MemoryModelStore
from markserve.adapters.memory_clients import MemoryClientStore
from markserve.errors import InvalidRequest, MarkserveError
from markserve.messages import Answer, InferenceRequest, MetricsBatch, decode, encode
from tests.builders import NOW_S, a_drain, a_launch, a_metrics_batch, a_model_record, a_request, a_terminate, a_warm_up, an_instance
from tests.functions import test_ingest, test_lifecycle, test_plan
from tests.fuzz.profiles import fuzz
from tests.worker.rig import Rig

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["", "\x00", "x" * 5000, -1, 2**70])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3), max_leaves=8
)
DEEP = "[" * 5000 + "]" * 5000


@st.composite
def spoilt(draw: st.DrawFn, *messages: Any) -> Any:
    """A valid message with fields of it replaced, dropped or added, at any depth."""
    message = json.loads(encode(draw(st.sampled_from(messages))))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = message
        while isinstance(place, dict) and place:
            name = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[name], dict) or draw(st.booleans()):
                break
            place = place[name]
        if isinstance(place, dict):
            name = draw(st.sampled_from(sorted(place)) | st.text(max_size=10)) if place else draw(st.text(max_size=10))
            if draw(st.booleans()) or name not in place:
                place[name] = draw(values)
            else:
                del place[name]
    return message


def bodies(*messages: Any) -> st.SearchStrategy[str]:
    """Text of messages: spoilt, cut off, not JSON, nested too deeply, of a version to come."""
    whole = spoilt(*messages).map(json.dumps)
    cut = st.tuples(whole, st.integers(0, 200)).map(lambda pair: pair[0][: pair[1]])
    newer = st.sampled_from(messages).map(lambda m: json.dumps({**json.loads(encode(m)), "schema_version": 99}))
    return st.one_of(whole, cut, newer, values.map(json.dumps), st.text(max_size=50), st.just(DEEP))


def is_readable(body: str, message_type: type[Any]) -> bool:
    try:
        decode(body, message_type)
    except InvalidRequest:
        return False
    return True


# --- queues -----------------------------------------------------------------------------------------------


@fuzz(60)
@given(st.lists(bodies(a_metrics_batch()), max_size=6))
@example([DEEP])
def test_ingest_sets_aside_exactly_what_it_cannot_read(bad: list[str]) -> None:
    stack = test_ingest.Stack()
    reports = [ingest.Report(message_id=f"m-{n}", body=body) for n, body in enumerate(bad)]
    good = ingest.Report(message_id="good", body=encode(a_metrics_batch(batch_id="the good one")).decode())

    result = stack.ingest(*reports, good)

    assert result.failed_ids == [r.message_id for r in reports if not is_readable(r.body, MetricsBatch)]
    assert result.applied + result.repeated + len(result.failed_ids) == len(reports) + 1
    assert stack.arrivals()[NOW_S] >= 10


@fuzz(60)
@given(st.lists(bodies(a_request()), max_size=4))
@example([DEEP])
def test_worker_buries_exactly_what_it_cannot_read_and_serves_the_rest(bad: list[str]) -> None:
    rig = Rig()
    for body in bad:
        rig.queue.send_raw(body.encode(errors="surrogatepass"))
    rig.send_async("good")

    for _ in range(12):
        rig.receive()
        while rig.run_one():
            pass
        rig.clock.pause(0.3)
    rig.engine.tidy()

    answer = rig.answer("good")
    assert answer is not None
    assert answer.error is None
    unreadable = sum(not is_readable(body, InferenceRequest) for body in bad)
    assert len(rig.queue.dead_letters) == unreadable
    assert all(letter.reason for letter in rig.queue.dead_letters)


# --- events -----------------------------------------------------------------------------------------------


def told(call: Any) -> None:
    """Run it; the only errors it may raise are those that say what is wrong."""
    message = "nothing"
    try:
        call()
    except MarkserveError as error:
        message = str(error)
    assert message


NOTIFICATIONS = [
    json.loads((test_lifecycle.EVENTS / f"{name}.json").read_text())
    for name in (
        "lifecycle_state_change",
        "lifecycle_spot_interruption",
        "lifecycle_rebalance",
        "lifecycle_instance_ready",
        "lifecycle_instance_drained",
    )
]


@fuzz(150)
@given(spoilt(a_launch(), a_drain(), a_terminate(), a_warm_up(), *NOTIFICATIONS) | values.filter(lambda v: isinstance(v, dict)))
def test_lifecycle_does_nothing_illegal_whatever_it_is_told(event: dict[str, Any]) -> None:
    world = test_lifecycle.World(an_instance(instance_id=test_lifecycle.RECORDED_ID), an_instance(instance_id="i-0001"))

    told(lambda: world.do(lifecycle.parse(event)))

    assert len([i for i in world.instances.list() if i.is_alive]) <= test_lifecycle.TUNABLES.max_instances


@fuzz(60)
@given(spoilt({"trigger": "schedule", "model": "digits", "schema_version": 1}) | values.filter(lambda v: isinstance(v, dict)))
def test_plan_refuses_by_name_what_it_does_not_know(event: dict[str, Any]) -> None:
    told(lambda: test_plan.World().plan(plan.parse(event)))


@fuzz(60)
@given(spoilt({"action": "forecast", "model": "digits"}) | values.filter(lambda v: isinstance(v, dict)))
def test_forecast_refuses_by_name_what_it_does_not_know(event: dict[str, Any]) -> None:
    told(lambda: forecast.parse(event))


@fuzz(60)
@given(bodies(a_request()))
def test_spillover_answers_or_says_what_is_wrong(body: str) -> None:
    runners = spillover.Runners(MemoryModelStore(a_model_record()), lambda _: MemoryModelRunner())

    def invoke() -> None:
        request = decode(body, InferenceRequest)
        answer = spillover.run(request, runners=runners, blobs=MemoryBlobStore(), now_s=lambda: NOW_S)
        assert isinstance(answer, Answer)
        assert answer.request_id == request.request_id

    told(invoke)


@fuzz(60)
@given(
    values.filter(lambda v: isinstance(v, dict))
    | st.fixed_dictionaries({"headers": st.none() | st.dictionaries(st.text(max_size=12) | st.just("X-Api-Key"), values, max_size=3)})
)
def test_authoriser_refuses_whoever_shows_no_key(event: dict[str, Any]) -> None:
    assert authorizer.run(event, clients=MemoryClientStore(), now_s=NOW_S) == {"isAuthorized": False}


def test_what_is_set_aside_is_logged(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.ERROR):
        test_ingest.Stack().ingest(ingest.Report(message_id="m-1", body=DEEP))

    assert "unreadable metrics" in caplog.text + capsys.readouterr().out
