"""The spillover function: one request in, its answer out, whatever the model makes of it."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import msgspec
import pytest
import torch
from moto import mock_aws

from functions.spillover import app
from functions.spillover.app import Runners, handler, parse, run, warm_up
from markserve import wiring
from markserve.adapters.memory import MemoryBlobStore, MemoryModelRunner, MemoryModelStore
from markserve.core.types import Tier
from markserve.errors import ConfigurationError, InferenceFailed
from markserve.messages import Answer, AnswerError, InferenceRequest, ModelRecord, decode, encode
from markserve.payloads import INLINE_INPUT_BYTES, offload_inputs
from markserve.ports import ModelRunner
from markserve.triggers import ModelWarmUp
from tests.builders import MODEL, NOW_S, a_model_record, a_request, a_tensor

EVENTS = Path(__file__).parents[2] / "events"


class Environment:
    """One environment whose clock advances 100 ms per load and 10 ms per run."""

    def __init__(self, **failures: Exception) -> None:
        self.now_s = NOW_S + 0.05
        self.slept: list[float] = []
        self.loaded: list[tuple[str, str]] = []
        self.blobs = MemoryBlobStore()
        self.models = MemoryModelStore(a_model_record(version="1"), a_model_record(version="2"))
        self._failures = failures
        self.runners = Runners(self.models, self._load)

    def _load(self, record: ModelRecord) -> ModelRunner:
        self.now_s += 0.1
        self.loaded.append((record.model, record.version))
        return MemoryModelRunner(self._compute, failures=self._failures)

    def _compute(self, request: InferenceRequest) -> Answer:
        self.now_s += 0.01
        return Answer(request_id=request.request_id, tier=Tier.LAMBDA, outputs=request.inputs)

    def run(self, request: InferenceRequest) -> Answer:
        return run(request, runners=self.runners, blobs=self.blobs, now_s=lambda: self.now_s)

    def warm_up(self, event: dict[str, Any]) -> dict[str, Any]:
        command = parse(event)
        assert isinstance(command, ModelWarmUp)
        return warm_up(command, runners=self.runners, now_s=lambda: self.now_s, sleep=self.slept.append)


def test_answer_says_how_it_came_about() -> None:
    answer = Environment().run(a_request(request_id="r-1"))

    assert answer == Answer(
        request_id="r-1",
        tier=Tier.LAMBDA,
        outputs=a_request().inputs,
        batch_size=1,
        queued_s=pytest.approx(0.05),
        batch_wait_s=pytest.approx(0.1),
        compute_s=pytest.approx(0.01),
        finished_at_s=pytest.approx(NOW_S + 0.16),
        cold_start=True,
        model_version="1",
    )


def test_model_is_loaded_once_per_environment_and_version() -> None:
    environment = Environment()

    answers = [environment.run(a_request(model_version=version)) for version in ("1", "1", "2", "1")]

    assert environment.loaded == [(MODEL, "1"), (MODEL, "2")]
    assert [answer.cold_start for answer in answers] == [True, False, True, False]


def test_inputs_and_outputs_travel_by_reference_when_they_are_large() -> None:
    environment = Environment()
    values = (1.0,) * INLINE_INPUT_BYTES
    request = offload_inputs(a_request(request_id="r-1", inputs=(a_tensor(values=values),)), environment.blobs)

    answer = environment.run(request)

    assert (request.inputs, answer.outputs, answer.outputs_ref) == ((), (), "payloads/r-1/outputs-lambda-none")


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (a_request(request_id="bad"), AnswerError(status=500, message="the model raised ValueError: no")),
        (a_request(model="none"), AnswerError(status=404, message="model: no version '1' of model 'none'")),
        (a_request(model_version="9"), AnswerError(status=404, message="model: no version '9' of model 'digits'")),
    ],
)
def test_failure_of_one_request_is_its_answer(request_: InferenceRequest, error: AnswerError) -> None:
    answer = Environment(bad=InferenceFailed("the model raised ValueError: no")).run(request_)

    assert (answer.request_id, answer.error, answer.outputs) == (request_.request_id, error, ())


def test_unexpected_failure_is_told_without_its_details() -> None:
    answer = Environment(bad=RuntimeError("secret")).run(a_request(request_id="bad"))

    assert answer.error == AnswerError(status=500, message="inference failed")


def test_failure_to_load_is_raised_so_that_the_front_decides() -> None:
    def fail(record: ModelRecord) -> ModelRunner:
        raise ConfigurationError(f"{record.artefact_key}: another digest")

    with pytest.raises(ConfigurationError):
        run(a_request(), runners=Runners(MemoryModelStore(a_model_record()), fail), blobs=MemoryBlobStore(), now_s=lambda: NOW_S)


def test_warm_up_loads_the_live_version_and_holds_the_environment_for_what_is_left() -> None:
    environment = Environment()

    assert environment.warm_up({"warmup": True, "model": MODEL, "hold_s": 1.0}) == {"warm": True, "cold_start": True}
    assert environment.loaded == [(MODEL, "2")]
    assert environment.slept == [pytest.approx(0.9)]
    assert environment.run(a_request(model_version="2")).cold_start is False


def test_warm_up_of_a_deleted_model_warms_nothing() -> None:
    answer = Environment().warm_up({"warmup": True, "model": "gone"})

    assert answer == {"warm": False, "reason": "model: no model 'gone'"}


def test_handler_answers_the_recorded_invocation_with_a_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubling(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1)[:, :10] * 2

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(Doubling(), torch.zeros(1, 1, 8, 8)), buffer)
    artefact = buffer.getvalue()
    record = a_model_record()
    image = msgspec.structs.replace(record.inputs[0], shape=(-1, 1, 8, 8))
    logits = msgspec.structs.replace(record.outputs[0], name="logits")
    record = msgspec.structs.replace(record, inputs=(image,), outputs=(logits,), artefact_sha256=hashlib.sha256(artefact).hexdigest())
    for name, value in {"STACK_NAME": "markserve", "MODELS_TABLE": "models", "ARTEFACTS_BUCKET": "artefacts"}.items():
        monkeypatch.setenv(f"MARKSERVE_{name}", value)
    event = json.loads((EVENTS / "spillover_invoke.json").read_text())
    context = SimpleNamespace(
        function_name="markserve-spillover", memory_limit_in_mb=2048, invoked_function_arn="arn:aws:lambda:::function", aws_request_id="r"
    )

    with mock_aws():
        boto3.client("dynamodb").create_table(
            TableName="models",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
            BillingMode="PAY_PER_REQUEST",
        )
        boto3.client("s3").create_bucket(Bucket="artefacts")
        forget_ports()
        wiring.models().put(record)
        wiring.blobs().put(record.artefact_key, artefact)
        answer = decode(json.dumps(handler(event, context)), Answer)  # type: ignore[arg-type]
        warmed = handler(json.loads((EVENTS / "spillover_warmup.json").read_text()) | {"hold_s": 0.0}, context)  # type: ignore[arg-type]
        forget_ports()

    sent = decode(encode(event), InferenceRequest)
    assert answer.error is None
    assert memoryview(answer.outputs[0].data).cast("f").tolist() == [
        2 * value for value in memoryview(sent.inputs[0].data).cast("f").tolist()[:10]
    ]
    assert warmed == {"warm": True, "cold_start": False}


def forget_ports() -> None:
    for builder in (*vars(wiring).values(), *vars(app).values()):
        if hasattr(builder, "cache_clear"):
            builder.cache_clear()
