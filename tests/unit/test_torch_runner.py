"""TorchScript models behind the runner port: batches, digests, and failures that stay with their request."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from markserve.adapters.torch_runner import DTYPES, TorchScriptRunner
from markserve.core.types import Tier
from markserve.errors import ConfigurationError, InferenceFailed, InvalidRequest
from markserve.messages import Answer, InferenceRequest, ModelRecord, Tensor, TensorSpec
from tests.builders import a_model_record, a_request


class Doubler(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Doubles its rows; raises on a negative first element; counts nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x < 0).any()):
            raise ValueError("negative input")
        return x * 2


class SumAndRows(nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + y, x.sum(1)


class RowCount(nn.Module):  # type: ignore[misc]
    """Returns the size of the forward pass it took part in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((x.size(0), 1), float(x.size(0)))


class Identity(nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Collapsing(nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


def load(module: nn.Module, **overrides: Any) -> TorchScriptRunner:
    artefact = script(module)
    values = {
        "inputs": (TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),),
        "outputs": (TensorSpec(name="y", datatype="FP32", shape=(-1, -1)),),
        "artefact_sha256": hashlib.sha256(artefact).hexdigest(),
        **overrides,
    }
    return TorchScriptRunner.load(a_model_record(**values), artefact, threads=1, device="cpu")


def script(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()


def floats(name: str, rows: list[list[float]]) -> Tensor:
    flat = [value for row in rows for value in row]
    return Tensor(name=name, datatype="FP32", shape=(len(rows), len(rows[0])), data=struct.pack(f"<{len(flat)}f", *flat))


def request(request_id: str, *tensors: Tensor, **overrides: Any) -> InferenceRequest:
    return a_request(request_id=request_id, inputs=tensors, **overrides)


def values(result: Answer | Exception, index: int = 0) -> list[float]:
    assert isinstance(result, Answer), result
    data = result.outputs[index].data
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def test_rows_of_several_requests_share_a_pass_and_come_back_to_their_own() -> None:
    runner = load(Doubler())

    one, two = runner.run([request("one", floats("x", [[1, 2]])), request("two", floats("x", [[3, 4], [5, 6]]))])

    assert (values(one), values(two)) == ([2, 4], [6, 8, 10, 12])
    assert isinstance(two, Answer)
    assert (two.outputs[0].shape, two.outputs[0].name, two.batch_size, two.tier) == ((2, 2), "y", 3, Tier.WORKER)


def test_requests_of_other_shapes_run_in_passes_of_their_own() -> None:
    runner = load(RowCount())

    results = runner.run([request("a", floats("x", [[1]])), request("b", floats("x", [[1, 2]])), request("c", floats("x", [[3], [4]]))])

    assert [values(result) for result in results] == [[3.0], [1.0], [3.0, 3.0]]


def test_only_the_bad_request_fails_when_the_pass_raises() -> None:
    runner = load(Doubler())

    good, bad, fine = runner.run([request(str(n), floats("x", [[n]])) for n in (1, -1, 2)])

    assert (values(good), values(fine)) == ([2], [4])
    assert isinstance(bad, InferenceFailed)
    assert "negative input" in str(bad)
    assert "\n" not in str(bad)


def test_nan_passes_through() -> None:
    (result,) = load(Doubler()).run([request("r", floats("x", [[math.nan, 1.0]]))])

    first, second = values(result)
    assert math.isnan(first)
    assert second == 2.0


def test_inputs_go_by_name_and_outputs_can_be_chosen() -> None:
    runner = load(
        SumAndRows(),
        inputs=tuple(TensorSpec(name=name, datatype="FP32", shape=(-1, 2)) for name in ("x", "y")),
        outputs=(TensorSpec(name="sum", datatype="FP32", shape=(-1, 2)), TensorSpec(name="total", datatype="FP32", shape=(-1,))),
    )
    x, y = floats("x", [[1, 2]]), floats("y", [[10, 20]])

    both, total, unknown = runner.run(
        [request("both", y, x), request("total", x, y, output_names=("total",)), request("unknown", x, y, output_names=("z",))]
    )

    assert (values(both, 0), values(both, 1)) == ([11, 22], [3])
    assert isinstance(total, Answer)
    assert [tensor.name for tensor in total.outputs] == ["total"]
    assert isinstance(unknown, InvalidRequest)


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_every_numeric_datatype_goes_in_and_comes_out_as_the_same_bytes(datatype: str) -> None:
    width = DTYPES[datatype].itemsize
    data = bytes([0, 1]) if datatype == "BOOL" else bytes(range(1, 2 * width + 1))
    tensor = Tensor(name="x", datatype=datatype, shape=(1, 2), data=data)

    (result,) = load(Identity()).run([request("r", tensor)])

    assert isinstance(result, Answer), result
    assert (result.outputs[0].datatype, result.outputs[0].data) == (datatype, data)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor(name="x", datatype="FP32", shape=(1, 2), data=bytes(7)), "input 'x': holds 7 bytes, FP32 of shape .* needs 8"),
        (Tensor(name="x", datatype="BYTES", shape=(1, 1), data=bytes(4)), "input 'x': datatype BYTES"),
        (Tensor(name="z", datatype="FP32", shape=(1, 1), data=bytes(4)), "input 'x': is missing"),
        (Tensor(name="x", datatype="FP32", shape=(), data=bytes(4)), "input 'x': "),
    ],
)
def test_unusable_tensor_is_its_requests_own_error(tensor: Tensor, message: str) -> None:
    bad, good = load(Identity()).run([request("bad", tensor), request("good", floats("x", [[1.0]]))])

    assert isinstance(bad, InvalidRequest)
    with pytest.raises(InvalidRequest, match=message):
        raise bad
    assert values(good) == [1.0]


def test_request_fails_when_the_output_has_not_the_inputs_rows() -> None:
    (result,) = load(Collapsing()).run([request("r", floats("x", [[1.0]]))])

    assert isinstance(result, InferenceFailed)
    assert "expected a tensor of 1 rows" in str(result)


def test_artefact_is_refused_when_its_digest_is_another() -> None:
    with pytest.raises(ConfigurationError, match=r"sha256 is .*, digits version 1 was registered with 00000"):
        TorchScriptRunner.load(a_model_record(), script(Identity()))


def test_artefact_is_refused_when_it_is_not_torchscript() -> None:
    artefact = b"cos\nsystem\n(S'echo pickled'\ntR."
    record: ModelRecord = a_model_record(artefact_sha256=hashlib.sha256(artefact).hexdigest())

    with pytest.raises(ConfigurationError, match="is not a TorchScript archive"):
        TorchScriptRunner.load(record, artefact)


class Ramp(nn.Module):  # type: ignore[misc]
    """Creates a tensor on its input's device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(x.size(1), device=x.device)


def traced(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module.eval(), torch.ones(2, 3)), buffer)
    return buffer.getvalue()


def load_on(device: str, artefact: bytes) -> TorchScriptRunner:
    record = a_model_record(artefact_sha256=hashlib.sha256(artefact).hexdigest())
    return TorchScriptRunner.load(record, artefact, device=device)


def test_module_that_was_traced_for_another_device_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        ConfigurationError, match=r"was traced for cpu and names that device .* cannot run on meta; save it with torch\.export"
    ):
        load_on("meta", traced(Ramp()))


def test_module_that_was_traced_for_this_device_is_loaded() -> None:
    load_on("cpu", traced(Ramp()))


@pytest.mark.parametrize("artefact", [script(Ramp()), traced(nn.Linear(3, 3))], ids=["scripted", "traced, no device named"])
def test_module_that_names_no_device_is_loaded_on_any(artefact: bytes) -> None:
    load_on("meta", artefact)
