"""Padding changes no answer of a model that masks it, whatever requests share a pass."""

from __future__ import annotations

import hashlib
import io
import warnings
from functools import lru_cache

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from examples.models.text_encoder.make import TextEncoder
from markserve.adapters.torch_runner import TorchScriptRunner
from markserve.messages import Answer, Follows, ModelRecord, Padding, Stack, Tensor, TensorSpec
from markserve.padding import completed
from tests.builders import a_model_record, a_request

BUCKETS = (8, 16, 32, 96)


class Contextual(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """What a position says depends on all that the mask shows: every value minus the mean of its sequence."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = (x * mask.unsqueeze(2)).sum(1) / length.unsqueeze(1)
        return (x - mean.unsqueeze(1)).transpose(1, 2).contiguous(), mean


def runner(module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> TorchScriptRunner:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.jit.save(torch.jit.script(module.eval()), buffer)
    artefact = buffer.getvalue()
    return TorchScriptRunner.load(
        a_model_record(inputs=inputs, outputs=outputs, artefact_sha256=hashlib.sha256(artefact).hexdigest()), artefact
    )


@lru_cache(maxsize=1)
def text_encoder() -> TorchScriptRunner:
    torch.manual_seed(1)
    text = TensorSpec(name="text", datatype="UINT8", shape=(-1, -1), pad=Padding(buckets=BUCKETS))
    outputs = tuple(TensorSpec(name=name, datatype="FP32", shape=(-1, width)) for name, width in (("embedding", 48), ("intent", 3)))
    return runner(TextEncoder(), (text,), outputs)


@lru_cache(maxsize=1)
def contextual() -> TorchScriptRunner:
    inputs = (
        TensorSpec(name="x", datatype="FP32", shape=(-1, -1, 3), pad=Padding(value=100.0, buckets=BUCKETS)),
        TensorSpec(name="mask", datatype="FP32", shape=(-1, -1), mask_of="x"),
        TensorSpec(name="length", datatype="INT64", shape=(-1,), length_of="x"),
    )
    outputs = (
        TensorSpec(name="centred", datatype="FP32", shape=(-1, 3, -1), follows=Follows(input="x", axis=2)),
        TensorSpec(name="mean", datatype="FP32", shape=(-1, 3)),
    )
    return runner(Contextual(), inputs, outputs)


def assert_padding_changes_nothing(served: TorchScriptRunner, requests: list[dict[str, np.ndarray]], datatype: str) -> None:
    """Compare what the runner answers, all in one batch, with the model computed on each request's own shape."""
    record: ModelRecord = served.record
    batch = []
    for arrays in requests:
        found = {name: Tensor(name=name, datatype=datatype, shape=array.shape, data=array.tobytes()) for name, array in arrays.items()}
        batch.append(a_request(inputs=completed(found, record)))

    results = served.run(batch)

    for request, result in zip(batch, results, strict=True):
        assert isinstance(result, Answer), result
        assert result.batch_size == sum(other.inputs[0].shape[0] for other in batch)
        alone = served.compute([Stack(tensor.datatype, tensor.shape, bytearray(tensor.data)) for tensor in request.inputs])
        for got, wanted in zip(result.outputs, alone, strict=True):
            assert got.shape == wanted.shape
            np.testing.assert_allclose(np.frombuffer(got.data, "<f4"), np.frombuffer(wanted.data, "<f4"), rtol=2e-4, atol=2e-5)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text(min_size=1, max_size=24), min_size=1, max_size=6))
def test_text_encoder_answers_the_same_padded_and_in_company(texts: list[str]) -> None:
    requests = [{"text": np.frombuffer(text.encode()[:96], np.uint8)[None, :]} for text in texts]

    assert_padding_changes_nothing(text_encoder(), requests, "UINT8")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 96)), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_output_that_follows_its_input_answers_the_same_padded_and_in_company(shapes: list[tuple[int, int]], seed: int) -> None:
    chance = np.random.default_rng(seed)
    requests = [{"x": chance.normal(size=(rows, length, 3)).astype("<f4")} for rows, length in shapes]

    assert_padding_changes_nothing(contextual(), requests, "FP32")
