"""How each kind of server wants to be asked, and where its answer lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from benchmarks.serving.generator import Question
from benchmarks.serving.workload import TOKENS, Workload

Decode = Callable[[bytes], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A JSON dialect over HTTP."""

    path: str
    encode: Callable[[Sequence[int]], object]
    """Token identifiers to the request's JSON value."""
    decode: Decode

    def questions(self, workload: Workload, port: int) -> list[Question]:
        """Encode every input once, with the output that it must produce."""
        return self.encoded(zip(workload.inputs, workload.expected, strict=True), port)

    def encoded(self, pairs: Iterable[tuple[tuple[int, ...], tuple[float, ...]]], port: int) -> list[Question]:
        """Encode pairs of an input and its output."""
        return [Question(_post(self.path, self.encode(tokens), port), expected) for tokens, expected in pairs]


def plain(path: str) -> Protocol:
    """`{"tokens": [...]}` to `{"scores": [...]}`, for servers that prescribe no format."""
    return Protocol(path=path, encode=lambda tokens: {"tokens": tokens}, decode=_plain_scores)


def rows(path: str) -> Protocol:
    """`{"rows": [[...]]}` to `[[...]]`: BentoML batches arguments that are batches already."""
    return Protocol(path=path, encode=lambda tokens: {"rows": [tokens]}, decode=_row_scores)


def open_inference(path: str, input_name: str) -> Protocol:
    """Open Inference Protocol v2, JSON tensors."""

    def encode(tokens: Sequence[int]) -> object:
        return {"inputs": [{"name": input_name, "shape": [1, TOKENS], "datatype": "INT64", "data": list(tokens)}]}

    return Protocol(path=path, encode=encode, decode=_tensor_scores)


def _post(path: str, value: object, port: int) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _plain_scores(body: bytes) -> Sequence[float]:
    scores: Sequence[float] = msgspec.json.decode(body)["scores"]
    return scores


def _row_scores(body: bytes) -> Sequence[float]:
    scores: Sequence[float] = msgspec.json.decode(body)[0]
    return scores


def _tensor_scores(body: bytes) -> Sequence[float]:
    data = msgspec.json.decode(body)["outputs"][0]["data"]
    scores: Sequence[float] = data[0] if data and isinstance(data[0], list) else data
    return scores
