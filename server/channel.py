"""What the front and a model's process say to each other, and its framing over a Unix socket.

A frame is two lengths, a msgpack message and raw tensor bytes: tensors are joined once, by whoever sends them, and
never encoded. One batch is one frame each way, so the channel costs a few microseconds per request.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence

import msgspec

from markserve.messages import ModelRecord, ProfilePointRecord

_LENGTHS = struct.Struct("<IQ")
SOCKET_BUFFER_BYTES = 4 * 1024 * 1024


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Front to model: load this, measure it, say when it can serve."""

    record: ModelRecord
    path: str
    latency_budget_s: float
    profile_s: float
    """How long measuring may take."""
    threads: int
    """CPU threads for the model; 0 finds out by measuring."""
    max_batch_size: int
    """Largest batch to consider; 0 goes as far as the budget does."""


class StackHead(msgspec.Struct, frozen=True, array_like=True):
    """A tensor of several requests' rows; its bytes follow the message."""

    datatype: str
    shape: tuple[int, ...]
    data_bytes: int


class Group(msgspec.Struct, frozen=True, array_like=True):
    """Requests whose inputs stack: rows of each, and the stacked inputs in the model's order."""

    rows: tuple[int, ...]
    inputs: tuple[StackHead, ...]


class Run(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Front to model: compute these."""

    groups: tuple[Group, ...]


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Model to front: what it does before it can serve."""

    doing: str


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Model to front: measured and warm."""

    record: ModelRecord
    points: tuple[ProfilePointRecord, ...]
    threads: int
    max_batch_size: int
    reason: str


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Model to front: it cannot be served."""

    message: str


class GroupFailure(msgspec.Struct, frozen=True, array_like=True):
    """Why a request of a group has no outputs."""

    index: int
    status: int
    message: str


class GroupResult(msgspec.Struct, frozen=True, array_like=True):
    """Outputs of a group's requests in order, those that failed left out."""

    outputs: tuple[StackHead, ...]
    failures: tuple[GroupFailure, ...] = ()


class Ran(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Model to front: computed."""

    groups: tuple[GroupResult, ...]
    compute_s: float


ToModel = Load | Run
FromModel = Progress | Ready | Refused | Ran
_encode = msgspec.msgpack.Encoder().encode
_decode_to_model = msgspec.msgpack.Decoder(ToModel).decode
_decode_from_model = msgspec.msgpack.Decoder(FromModel).decode


def pack(message: ToModel | FromModel, buffers: Sequence[bytes | memoryview] = ()) -> list[bytes | memoryview]:
    """Return the pieces of a frame, in order."""
    head = _encode(message)
    return [_LENGTHS.pack(len(head), sum(map(len, buffers))), head, *buffers]


class FrameReader:
    """Front's side: takes bytes as they come and gives back whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterable[tuple[FromModel, memoryview]]:
        """Take in bytes; yield each message that is complete, with its tensor bytes."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _LENGTHS.size:
            head_bytes, data_bytes = _LENGTHS.unpack_from(buffer)
            start = _LENGTHS.size + head_bytes
            if len(buffer) < start + data_bytes:
                return
            view = memoryview(buffer)
            message = _decode_from_model(view[_LENGTHS.size : start])
            tensors = view[start : start + data_bytes]
            rest = bytes(view[start + data_bytes :])
            self._buffer = buffer = bytearray(rest)  # the old buffer lives on in `tensors`
            yield message, tensors


def send(channel: socket.socket, message: FromModel, buffers: Sequence[bytes | memoryview] = ()) -> None:
    """Model's side: send one frame."""
    channel.sendall(b"".join(pack(message, buffers)))


def receive(channel: socket.socket) -> tuple[ToModel, memoryview] | None:
    """Model's side: wait for one frame; None once the front has gone."""
    lengths = _receive_exactly(channel, _LENGTHS.size)
    if lengths is None:
        return None
    head_bytes, data_bytes = _LENGTHS.unpack(lengths)
    head = _receive_exactly(channel, head_bytes)
    data = _receive_exactly(channel, data_bytes)
    if head is None or data is None:
        return None
    return _decode_to_model(head), memoryview(data)


def _receive_exactly(channel: socket.socket, count: int) -> bytearray | None:
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        received = channel.recv_into(view)
        if not received:
            return None
        view = view[received:]
    return buffer
