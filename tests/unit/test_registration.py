"""What registering a model leaves behind, and what it refuses before leaving anything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from markserve.adapters.memory import MemoryBlobStore, MemoryModelRunner, MemoryModelStore
from markserve.core.types import Tier
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.messages import Answer, InferenceRequest, ModelRecord, Padding, Tensor, TensorSpec
from markserve.ports import ModelRunner
from markserve.registration import ModelSpec, register_model
from tests.builders import NOW_S, a_model_record, profile_records

ARTEFACT = b"a model"
DIGEST = hashlib.sha256(ARTEFACT).hexdigest()


class Registrar:
    """The ports of a registration, and a model that returns `width` zeros per row."""

    def __init__(self, *records: ModelRecord, width: int = 10, failure: Exception | None = None) -> None:
        self.models = MemoryModelStore(*records)
        self.blobs = MemoryBlobStore()
        self.created: list[str] = []
        self.parameters: dict[tuple[str | None, str], str] = {}
        self._width = width
        self._failure = failure

    def create(self, model: str) -> str:
        self.created.append(model)
        return f"http://localhost/queue/markserve-work-{model}"

    def put(self, name: str, text: str, *, model: str | None = None) -> None:
        self.parameters[(model, name)] = text

    def register(self, **overrides: Any) -> ModelRecord:
        spec = ModelSpec(
            **{
                "model": "digits",
                "artefact": ARTEFACT,
                "inputs": (TensorSpec(name="image", datatype="FP32", shape=(-1, 64)),),
                "outputs": (TensorSpec(name="scores", datatype="FP32", shape=(-1, 10)),),
                **overrides,
            }
        )
        return register_model(spec, models=self.models, blobs=self.blobs, queues=self, parameters=self, load=self._load, now_s=NOW_S)

    def _load(self, record: ModelRecord, artefact: bytes) -> ModelRunner:
        assert hashlib.sha256(artefact).hexdigest() == record.artefact_sha256
        return MemoryModelRunner(self._compute, failures={"sample-2": self._failure} if self._failure else None)

    def _compute(self, request: InferenceRequest) -> Answer:
        rows = request.inputs[0].shape[0]
        scores = Tensor(name="scores", datatype="FP32", shape=(rows, self._width), data=bytes(4 * rows * self._width))
        return Answer(request_id=request.request_id, tier=Tier.WORKER, outputs=(scores,))


def test_registered_model_is_live_with_its_artefact_queue_and_objective() -> None:
    registrar = Registrar()

    record = registrar.register(rt_max_s=1.5, max_batch_size=32)

    assert registrar.models.get("digits") == record
    assert (record.version, record.artefact_sha256, record.max_batch_size, record.created_at_s) == ("1", DIGEST, 32, NOW_S)
    assert record.artefact_key == f"models/digits/1/{DIGEST}.pt"
    assert record.queue_url == "http://localhost/queue/markserve-work-digits"
    assert registrar.blobs.get(record.artefact_key) == ARTEFACT
    assert registrar.parameters == {("digits", "rt-max-s"): "1.5"}


def test_objective_stays_the_stacks_when_none_is_stated() -> None:
    registrar = Registrar()

    registrar.register()

    assert registrar.parameters == {}


def test_new_artefact_becomes_the_next_version_and_inherits_profiles() -> None:
    registrar = Registrar(a_model_record())

    record = registrar.register(artefact=b"a better model")

    assert record.version == "2"
    assert record.profiles["c5.large"] == profile_records()
    assert registrar.models.versions("digits") == ["1", "2"]


def test_registering_the_same_artefact_again_changes_no_version() -> None:
    registrar = Registrar()

    first, second = registrar.register(), registrar.register()

    assert first == second
    assert registrar.models.versions("digits") == ["1"]


def test_version_is_refused_when_it_exists_with_another_artefact() -> None:
    registrar = Registrar()
    registrar.register(version="prod")

    with pytest.raises(InvalidRequest, match="version: prod of model 'digits' is registered with another artefact"):
        registrar.register(version="prod", artefact=b"another")


@pytest.mark.parametrize("remove", [lambda models: models.delete_version("digits", "2"), lambda models: models.delete("digits")])
def test_name_of_a_removed_version_is_not_given_again(remove: Callable[[MemoryModelStore], None]) -> None:
    registrar = Registrar(a_model_record())
    registrar.register(artefact=b"a worse model", hold=True)
    remove(registrar.models)

    assert registrar.register(artefact=b"a better model").version == "3"
    with pytest.raises(InvalidRequest, match="version: 2 of model 'digits' was removed; choose a new one"):
        registrar.register(version="2", artefact=b"another")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": "no spaces"}, "model: 'no spaces' must be"),
        ({"version": "../1"}, r"version: '../1' must be"),
        ({"max_batch_size": 1}, "max_batch_size: must be at least 2"),
        ({"inputs": ()}, "inputs: a model needs at least one"),
        ({"inputs": (TensorSpec(name="x", datatype="FP8", shape=(-1, 1)),)}, "input 'x': datatype FP8 is not one of"),
        ({"inputs": (TensorSpec(name="x", datatype="FP32", shape=(8, 8)),)}, r"input 'x': shape \[8, 8\] must begin with -1"),
        ({"outputs": (TensorSpec(name="y", datatype="FP32", shape=(-1, 0)),)}, "output 'y': shape .* positive"),
        ({"outputs": (TensorSpec(name="y", datatype="FP32", shape=(-1,)),) * 2}, "outputs: names must differ"),
        (
            {"inputs": (TensorSpec(name="x", datatype="FP32", shape=(-1, 4), pad=Padding(buckets=(4,))),)},
            "input 'x': padding needs one free dimension",
        ),
        ({"rt_max_s": 60.0}, "rt-max-s: 60 is above the highest allowed value 29"),
    ],
)
def test_nothing_is_written_when_the_statement_is_unusable(overrides: dict[str, Any], message: str) -> None:
    registrar = Registrar()

    with pytest.raises(InvalidRequest, match=message):
        registrar.register(**overrides)

    assert registrar.models.list() == []
    assert registrar.created == []


def test_model_is_refused_when_it_fails_on_zeros() -> None:
    registrar = Registrar(failure=InferenceFailed("the model raised RuntimeError: boom"))

    with pytest.raises(InvalidRequest, match=r"artefact: the model fails on 2 rows of zeros: .*boom"):
        registrar.register()


def test_model_is_tried_out_at_every_bucket() -> None:
    tried: list[tuple[int, ...]] = []

    def compute(request: InferenceRequest) -> Answer:
        tried.append(request.inputs[0].shape)
        if request.inputs[0].shape[1] == 8:
            raise InferenceFailed("only up to 4")
        return Answer(request_id="", tier=Tier.WORKER, outputs=(Tensor(name="scores", datatype="FP32", shape=(2, 10), data=bytes(80)),))

    registrar = Registrar()
    registrar._compute = compute  # type: ignore[method-assign]
    tokens = TensorSpec(name="tokens", datatype="INT64", shape=(-1, -1), pad=Padding(buckets=(2, 4, 8)))

    with pytest.raises(InferenceFailed, match="only up to 4"):
        registrar.register(inputs=(tokens,))

    assert tried == [(2, 2), (2, 4), (2, 8)]
    assert registrar.models.list() == []


def test_model_is_refused_when_it_returns_something_else_than_declared() -> None:
    registrar = Registrar(width=7)

    with pytest.raises(InvalidRequest, match=r"output 'scores': is declared FP32 \[-1, 10\], the model returns FP32 \[2, 7\]"):
        registrar.register()

    assert registrar.models.list() == []


def test_profiles_of_the_record_survive_registering_it_again() -> None:
    registrar = Registrar()
    record = registrar.register()
    registrar.models.put(msgspec.structs.replace(record, profiles={"c5.large": profile_records()}))

    assert registrar.register().profiles == {"c5.large": profile_records()}
