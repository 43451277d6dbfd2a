from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from markserve.core.types import Instance
from markserve.errors import InvalidRequest
from markserve.messages import (
    SCHEMA_VERSION,
    Answer,
    DecisionRecord,
    ForecastRecord,
    InferenceRequest,
    InstanceDrained,
    InstanceReady,
    Message,
    MetricsBatch,
    ModelRecord,
    PlanRecord,
    SloAtRisk,
    decode,
    encode,
)
from tests.builders import (
    NOW_S,
    a_decision,
    a_drain,
    a_failed_answer,
    a_forecast,
    a_forecast_record,
    a_launch,
    a_metrics_batch,
    a_model_record,
    a_plan_record,
    a_request,
    a_terminate,
    a_warm_up,
    an_answer,
    an_instance,
)

ACTIONS = (a_launch(), a_drain(), a_terminate(failed=True), a_warm_up())

MESSAGES: list[Message] = [
    a_request(),
    a_request(deadline_at_s=None, spill_at_s=None, inputs=(), inputs_ref="payloads/1", output_names=("scores",), trace_id="t"),
    an_answer(),
    a_failed_answer(),
    a_model_record(),
    a_metrics_batch(),
    a_metrics_batch(arrivals=(), outcomes=(), tick_at_s=NOW_S),
    a_forecast_record(scores={"persistence": 1.5}),
    a_plan_record(actions=ACTIONS),
    a_decision(detail={"count": 2, "price": 0.1, "spot": True, "zone": None, "text": "x"}),
    SloAtRisk(model="digits", at_s=NOW_S, attainment=0.9, objective=0.98, requests=100, reason="below"),
    InstanceReady(model="digits", instance_id="i-1", at_s=NOW_S),
    InstanceDrained(model="digits", instance_id="i-1", at_s=NOW_S, reason="scaled in"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_survives_the_wire(message: Message) -> None:
    assert decode(encode(message), type(message)) == message
    assert json.loads(encode(message))["schema_version"] == SCHEMA_VERSION


def test_messages_of_every_type_are_tested_on_the_wire() -> None:
    crossing = {InferenceRequest, Answer, ModelRecord, MetricsBatch, ForecastRecord, PlanRecord, DecisionRecord, SloAtRisk}

    assert {type(message) for message in MESSAGES} == crossing | {InstanceReady, InstanceDrained}


def test_value_objects_of_the_core_survive_the_wire() -> None:
    instance = an_instance(end_reason="scaled in", missed_cycles=2)

    assert msgspec.json.decode(encode(instance), type=Instance) == instance


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not a valid InferenceRequest"),
        (b"\xff\xfe", "not a valid InferenceRequest"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field `request_id`"),
        ("{not json", "not a valid InferenceRequest"),
    ],
)
def test_decode_refuses_what_is_not_the_message(payload: bytes | str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        decode(payload, InferenceRequest)

    assert reason in str(raised.value)
    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("arrival_at_s", "yesterday", "$.arrival_at_s"),
        ("inputs", [{"name": "x", "datatype": "FP32", "shape": [1], "data": "%%%"}], "$.inputs[0].data"),
        ("inputs", [{"name": "x", "datatype": "FP32", "shape": ["a"], "data": ""}], "$.inputs[0].shape[0]"),
        ("deadline_at_s", True, "$.deadline_at_s"),
    ],
)
def test_decode_names_the_field_that_is_wrong(field: str, value: object, where: str) -> None:
    document: dict[str, Any] = {**json.loads(encode(a_request())), field: value}

    with pytest.raises(InvalidRequest) as raised:
        decode(json.dumps(document), InferenceRequest)

    assert where in str(raised.value)


def test_decode_refuses_another_schema_version() -> None:
    newer = encode(a_request(schema_version=SCHEMA_VERSION + 1))

    with pytest.raises(InvalidRequest, match=f"schema_version {SCHEMA_VERSION + 1}; this build reads {SCHEMA_VERSION}"):
        decode(newer, InferenceRequest)


def test_decode_ignores_fields_that_it_does_not_know() -> None:
    document = {**json.loads(encode(a_request())), "added_later": 1}

    assert decode(json.dumps(document), InferenceRequest) == a_request()


def test_decode_refuses_an_action_that_it_does_not_know() -> None:
    document = json.loads(encode(a_plan_record(actions=(a_drain(),))))
    document["actions"][0]["action"] = "hibernate_instance"

    with pytest.raises(InvalidRequest, match="hibernate_instance"):
        decode(json.dumps(document), PlanRecord)


def test_actions_are_told_apart_by_their_tag() -> None:
    document = json.loads(encode(a_plan_record(actions=ACTIONS)))

    assert [action["action"] for action in document["actions"]] == [
        "launch_instances",
        "drain_instance",
        "terminate_instance",
        "warm_spillover",
    ]


def test_forecast_record_converts_to_the_core_and_back() -> None:
    forecast = a_forecast({0.5: (1.0, 2.0), 0.9: (3.0, 4.0)})

    record = ForecastRecord.from_forecast(forecast, {"persistence": 0.5})

    assert record.rates_rps == {"0.5": (1.0, 2.0), "0.9": (3.0, 4.0)}
    assert record.scores == {"persistence": 0.5}
    assert record.to_forecast() == forecast
