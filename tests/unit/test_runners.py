"""The other runtimes behind the runner port: torch.export without pickles, ONNX Runtime."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from markserve.adapters.onnx_runner import CPU, CUDA, TENSORRT, choose_providers
from markserve.adapters.torch_export import devices, moved
from markserve.errors import ConfigurationError, InferenceFailed
from markserve.messages import Answer, ModelFormat, ModelRecord, Stack, Tensor, TensorSpec
from markserve.runners import load_runner
from tests.builders import a_model_record, a_request

FLOATS = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))


class Positions(nn.Module):  # type: ignore[misc]
    """Creates a tensor itself, and holds a constant that is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = torch.arange(4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x) + torch.arange(4, device=x.device) + torch.zeros_like(x).to(x.device) * self.scale
        return result


class Linear(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(8.0).reshape(2, 4))
            self.layer.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x)
        return result


def exported(module: nn.Module | None = None) -> bytes:
    dynamic_shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    program = torch.export.export(module or Linear(), (torch.ones(2, 4),), dynamic_shapes=dynamic_shapes, strict=True)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def onnx_model() -> bytes:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [0.0, 4, 1, 5, 2, 6, 3, 7])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def a_record(artefact: bytes, form: ModelFormat, **overrides: Any) -> ModelRecord:
    values = {
        "format": form,
        "inputs": (FLOATS,),
        "outputs": (TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
        "artefact_sha256": hashlib.sha256(artefact).hexdigest(),
        **overrides,
    }
    return a_model_record(**values)


FORMATS = [pytest.param("torch_export", exported, id="torch_export"), pytest.param("onnx", onnx_model, id="onnx")]


@pytest.mark.parametrize(("form", "make"), FORMATS)
def test_requests_of_several_rows_share_a_pass_and_get_their_own_rows(form: ModelFormat, make: Any) -> None:
    artefact = make()
    runner = load_runner(a_record(artefact, form), artefact)
    rows = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]]
    requests = [
        a_request(request_id=str(count), inputs=(Tensor(name="x", datatype="FP32", shape=(len(part), 4), data=pack(part)),))
        for count, part in enumerate((rows[:2], rows[2:]))
    ]

    first, second = runner.run(requests)

    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert struct.unpack("<4f", first.outputs[0].data) == (0, 4, 1, 5)
    assert struct.unpack("<2f", second.outputs[0].data) == (3, 7)
    assert (first.batch_size, second.batch_size) == (3, 3)


@pytest.mark.parametrize(("form", "make"), FORMATS)
def test_artefact_with_another_digest_is_refused_before_its_runtime_sees_it(form: ModelFormat, make: Any) -> None:
    artefact = make()

    with pytest.raises(ConfigurationError, match="was registered with"):
        load_runner(a_record(artefact, form), artefact + b" ")


@pytest.mark.parametrize("form", ["torch_export", "onnx"])
def test_bytes_that_are_no_model_are_a_configuration_error(form: ModelFormat) -> None:
    with pytest.raises(ConfigurationError, match="is not a"):
        load_runner(a_record(b"no model", form), b"no model")


@pytest.mark.parametrize(("form", "make"), FORMATS)
def test_undeclared_inputs_are_those_the_artefact_states(form: ModelFormat, make: Any) -> None:
    artefact = make()

    assert load_runner(a_record(artefact, form, inputs=()), artefact).record.inputs == (FLOATS,)


@pytest.mark.parametrize(("form", "make"), FORMATS)
def test_input_of_the_wrong_width_fails_as_inference(form: ModelFormat, make: Any) -> None:
    artefact = make()
    runner = load_runner(a_record(artefact, form), artefact)

    with pytest.raises(InferenceFailed):
        runner.compute([Stack("FP32", (1, 3), bytearray(pack([[1, 2, 3]])))])


def test_threads_of_an_onnx_session_can_be_changed() -> None:
    artefact = onnx_model()
    runner = load_runner(a_record(artefact, "onnx"), artefact)

    runner.use_threads(2)

    (output,) = runner.compute([Stack("FP32", (1, 4), bytearray(pack([[1, 0, 0, 0]])))])
    assert struct.unpack("<2f", output.data) == (0, 4)


def test_exported_archive_whose_weights_are_pickled_is_refused() -> None:
    artefact = rewritten(exported(), lambda name, content: marked_as_pickled(content) if name.endswith("weights_config.json") else content)

    with pytest.raises(ConfigurationError, match="would have to be unpickled"):
        load_runner(a_record(artefact, "torch_export"), artefact)


def test_exported_archive_s_example_inputs_are_never_read() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("unpickled",))

    buffer = io.BytesIO()
    torch.save((Trap(),), buffer)
    artefact = rewritten(exported(), lambda name, content: buffer.getvalue() if "sample_inputs" in name else content)

    (output,) = load_runner(a_record(artefact, "torch_export"), artefact).compute([Stack("FP32", (1, 4), bytearray(pack([[1, 1, 1, 1]])))])

    assert struct.unpack("<2f", output.data) == (6, 22)


def test_exported_program_leaves_nothing_on_the_device_it_was_exported_on() -> None:
    program = torch.export.load(io.BytesIO(exported(Positions())))
    assert devices(program) == {"cpu"}

    elsewhere = moved(program, "meta")

    assert devices(elsewhere) == {"meta"}
    module = elsewhere.module()
    assert {str(tensor.device) for tensor in (*module.parameters(), *module.buffers())} == {"meta"}
    output = module(torch.empty(3, 4, device="meta"))
    assert (str(output.device), tuple(output.shape)) == ("meta", (3, 4))


def test_weights_alone_do_not_move_what_the_graph_creates() -> None:
    """Why programs are moved as a whole: should PyTorch come to do it, `moved` can go."""
    program = torch.export.load(io.BytesIO(exported(Positions())))

    program.module().to("meta")

    assert "cpu" in devices(program)


def test_exported_program_that_is_where_it_should_be_is_left_alone() -> None:
    artefact = exported(Positions())
    record = a_record(artefact, "torch_export", outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 4)),))

    (output,) = load_runner(record, artefact).compute([Stack("FP32", (1, 4), bytearray(pack([[0, 0, 0, 0]])))])

    assert output.shape == (1, 4)


@pytest.mark.parametrize(
    ("available", "device", "chosen"),
    [
        ((TENSORRT, CUDA, CPU), "cuda", [CUDA, TENSORRT, CPU]),
        ((CPU, CUDA), "cuda", [CUDA, CPU]),
        ((TENSORRT, CPU), "cuda", [TENSORRT, CPU]),
        (("AzureExecutionProvider", CPU), "cuda", [CPU]),
        ((TENSORRT, CUDA, CPU), "cpu", [CPU]),
        (("AzureExecutionProvider", CPU), "cpu", [CPU]),
    ],
)
def test_onnx_provider_is_the_gpu_s_that_needs_no_compiling_and_the_cpu_last(available: Any, device: str, chosen: list[str]) -> None:
    assert choose_providers(available, device) == chosen


def pack(rows: Any) -> bytes:
    values = [value for row in rows for value in row]
    return struct.pack(f"<{len(values)}f", *values)


def rewritten(artefact: bytes, change: Any) -> bytes:
    copy = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(artefact)) as archive, zipfile.ZipFile(copy, "w") as changed:
        for name in archive.namelist():
            changed.writestr(name, change(name, archive.read(name)))
    return copy.getvalue()


def marked_as_pickled(content: bytes) -> bytes:
    config = json.loads(content)
    for meta in config["config"].values():
        meta["use_pickle"] = True
    return json.dumps(config).encode()
