"""`markserve serve` with a model whose manifest declares padding: a real process, requests of unequal length at once."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from markserve.errors import InvalidRequest
from server.manifest import read_model
from tests.server.rig import Running, save, serving

INPUTS: list[dict[str, Any]] = [
    {"name": "tokens", "datatype": "INT64", "shape": [-1, -1], "pad": {"value": 9, "buckets": [4, 16]}},
    {"name": "mask", "datatype": "INT64", "shape": [-1, -1], "mask_of": "tokens"},
]
OUTPUTS: list[dict[str, Any]] = [
    {"name": "doubled", "datatype": "INT64", "shape": [-1, -1], "follows": {"input": "tokens", "axis": 1}},
    {"name": "sum", "datatype": "INT64", "shape": [-1]},
    {"name": "pass", "datatype": "INT64", "shape": [-1, 2]},
]


class Summing(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Sums what the mask shows, and says which shape its pass had. Slow enough for requests to meet."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((700, 700), 1 / 700))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        state = torch.ones(700, 700)
        for _ in range(4):
            state = state @ self.weight
        one = state[0, 0].round().long()
        shape = torch.tensor([tokens.shape[0], tokens.shape[1]])
        return 2 * tokens * one, (tokens * mask).sum(1), shape.expand(tokens.shape[0], 2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = save(Summing(), tmp_path_factory.mktemp("models") / "summing.pt", inputs=INPUTS, outputs=OUTPUTS, max_batch_size=16)
    with serving(path, options=["--rt-max", "20"]) as running:
        yield running


def ask(server: Running, tokens: list[int], **extra: Any) -> tuple[int, Any]:
    inputs = [{"name": "tokens", "datatype": "INT64", "shape": [1, len(tokens)], "data": tokens}]
    inputs += [{"name": name, "datatype": "INT64", "shape": [1, len(data)], "data": data} for name, data in extra.items()]
    status, answer, _ = server.ask("POST", "/v2/models/summing/infer", {"inputs": inputs})
    return status, {output["name"]: output["data"] for output in answer["outputs"]} if status == 200 else answer


def test_request_is_padded_to_its_bucket_and_gets_its_own_length_back(server: Running) -> None:
    assert ask(server, [1, 2, 3]) == (200, {"doubled": [2, 4, 6], "sum": [6], "pass": [1, 4]})
    assert ask(server, [1] * 5) == (200, {"doubled": [2] * 5, "sum": [5], "pass": [1, 16]})


def test_mask_of_the_client_is_kept(server: Running) -> None:
    assert ask(server, [1, 2, 3], mask=[1, 0, 1]) == (200, {"doubled": [2, 4, 6], "sum": [4], "pass": [1, 4]})


def test_request_longer_than_the_last_bucket_is_refused(server: Running) -> None:
    assert ask(server, [1] * 17) == (400, {"error": "input 'tokens': dimension 1 is 17, the model takes at most 16"})


def test_requests_of_unequal_length_share_a_pass_and_none_sees_the_others(server: Running) -> None:
    shared: list[tuple[int, ...]] = []
    wrong: list[Any] = []

    def one(length: int) -> None:
        status, answer = ask(server, list(range(length)))
        expected = {"doubled": [2 * value for value in range(length)], "sum": [sum(range(length))]}
        if status != 200 or {name: answer[name] for name in expected} != expected:
            wrong.append((length, status, answer))
        else:
            shared.append(tuple(answer["pass"]))

    for _ in range(20):  # until some of them met; that they answer right is checked every time
        threads = [threading.Thread(target=one, args=(length,)) for length in (1, 2, 3, 5, 7, 11, 16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if any(rows > 1 for rows, _ in shared):
            break

    assert wrong == []
    assert any(rows > 1 for rows, _ in shared)
    assert {width for _, width in shared} <= {4, 16}


def test_binary_outputs_are_cut_too(server: Running) -> None:
    head = (
        b'{"inputs":[{"name":"tokens","datatype":"INT64","shape":[2,1],"parameters":{"binary_data_size":16}}],'
        b'"outputs":[{"name":"doubled","parameters":{"binary_data":true}}]}'
    )
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, body, found = server.ask("POST", "/v2/models/summing/infer", head + struct.pack("<2q", 5, 6), **headers)

    assert status == 200
    assert struct.unpack("<2q", body[int(found["inference-header-content-length"]) :]) == (10, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad": {"value": 0, "buckets": [16, 8]}}, "buckets .* must be positive and ascending"),
        ({"pad": {"value": 0}}, "missing required field `buckets`"),
        ({"pad": {"values": 0, "buckets": [8]}}, "unknown field `values`"),
        ({"padding": {"value": 0, "buckets": [8]}}, "a tensor has no `padding`, only name, datatype, shape, pad"),
    ],
)
def test_manifest_that_means_nothing_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save(nn.Identity(), tmp_path / "m.pt", inputs=[{**INPUTS[0], **changes}])

    with pytest.raises(InvalidRequest, match=message):
        read_model(path)
