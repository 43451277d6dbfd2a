"""events/ holds one event per trigger, and each is what the code that it triggers expects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from markserve.messages import (
    Action,
    ForecastDrifted,
    InferenceRequest,
    InstanceDrained,
    InstanceReady,
    MeasurementStep,
    Message,
    MetricsBatch,
    SloAtRisk,
    decode,
    encode,
)

EVENTS = Path(__file__).resolve().parents[2] / "events"
TRIGGERS = {
    "api_infer",
    "api_infer_binary",
    "api_sagemaker_invocation",
    "api_async_infer",
    "authorizer_request",
    "console_overview",
    "ingest_sqs",
    "forecast_request",
    "forecast_train",
    "forecast_drifted",
    "plan_request",
    "lifecycle_launch",
    "lifecycle_drain",
    "lifecycle_warm",
    "lifecycle_measurement_start",
    "lifecycle_measurement_store",
    "lifecycle_spot_interruption",
    "lifecycle_rebalance",
    "lifecycle_state_change",
    "lifecycle_instance_ready",
    "lifecycle_instance_drained",
    "spillover_invoke",
    "spillover_warmup",
    "slo_at_risk",
    "control_cycle_input",
}


def event(name: str) -> Any:
    return json.loads((EVENTS / f"{name}.json").read_text())


def test_there_is_an_event_for_every_trigger() -> None:
    assert {path.stem for path in EVENTS.glob("*.json")} >= TRIGGERS


@pytest.mark.parametrize("name", ["lifecycle_launch", "lifecycle_drain", "lifecycle_warm"])
def test_actions_are_what_a_plan_holds(name: str) -> None:
    action = msgspec.convert(event(name), Action)

    assert json.loads(encode(action)) == event(name)


@pytest.mark.parametrize("name", ["lifecycle_measurement_start", "lifecycle_measurement_store"])
def test_steps_are_what_the_state_machine_sends(name: str) -> None:
    assert json.loads(encode(msgspec.convert(event(name), MeasurementStep))) == event(name)


@pytest.mark.parametrize(
    ("name", "message_type"),
    [
        ("lifecycle_instance_ready", InstanceReady),
        ("lifecycle_instance_drained", InstanceDrained),
        ("slo_at_risk", SloAtRisk),
        ("forecast_drifted", ForecastDrifted),
    ],
)
def test_bus_events_carry_the_message_their_detail_type_names(name: str, message_type: type[Message]) -> None:
    envelope = event(name)

    assert (envelope["source"], envelope["detail-type"]) == ("markserve", message_type.__name__)
    assert json.loads(encode(decode(json.dumps(envelope["detail"]), message_type))) == envelope["detail"]


def test_queue_records_carry_metrics_batches() -> None:
    batches = [decode(record["body"], MetricsBatch) for record in event("ingest_sqs")["Records"]]

    assert [(len(batch.arrivals), batch.tick_at_s is not None) for batch in batches] == [(1, False), (0, True)]


def test_spilled_request_is_an_inference_request_with_raw_tensor_bytes() -> None:
    request = decode(json.dumps(event("spillover_invoke")), InferenceRequest)

    assert [(tensor.shape, len(tensor.data)) for tensor in request.inputs] == [((1, 1, 8, 8), 256)]


@pytest.mark.parametrize("name", sorted(name for name in TRIGGERS if name.startswith("api_")))
def test_api_events_have_the_shape_of_http_api_payload_2(name: str) -> None:
    proxied = event(name)

    assert proxied["version"] == "2.0"
    assert proxied["isBase64Encoded"] == (proxied["headers"]["content-type"] == "application/octet-stream")
    assert proxied["requestContext"]["http"]["path"] == proxied["rawPath"]
    assert proxied["requestContext"]["timeEpoch"] > 1_000_000_000_000
