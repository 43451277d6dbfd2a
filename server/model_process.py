"""One model's process: load, measure, then compute what the front sends until the front goes away.

A process of its own, so that computing never holds the front's interpreter, a garbage collection here never delays a
socket there, and a model that dies takes nothing else with it.
"""

from __future__ import annotations

import gc
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence

import msgspec

from markserve.core.types import Tier
from markserve.errors import ConfigurationError, InferenceFailed, InvalidRequest, MarkserveError
from markserve.messages import ModelRecord, Stack, TensorSpec
from markserve.profiling import sample_request
from markserve.runners import load_runner
from markserve.stacking import compute_group, run_requests
from server import channel, measuring, scheduling
from server.channel import GroupFailure, GroupResult, Load, Progress, Ran, Ready, Refused, Run, StackHead

FREE_DIMENSION = 8
"""Size given to a free dimension when the model is tried out."""


def main(fd: int) -> None:
    """Serve the front at the other end of a socket."""
    # The front decides when to end; a signal to the whole group must not cut off what is held.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    scheduling.interactive()
    with socket.socket(fileno=fd) as front:
        front.setblocking(True)
        received = channel.receive(front)
        if received is None or not isinstance(received[0], Load):
            return
        try:
            compute, ready = _prepare(received[0], lambda doing: channel.send(front, Progress(doing=doing)))
        except MarkserveError as error:
            channel.send(front, Refused(message=str(error)))
            return
        gc.collect()
        gc.freeze()  # what loading left behind is never garbage: walking it would stop the model for a sixth of a second
        channel.send(front, ready)
        _serve(front, compute)


def _prepare(load: Load, say: Callable[[str], None]) -> tuple[Callable[[Sequence[Stack]], Sequence[Stack]], Ready]:
    with open(load.path, "rb") as file:
        artefact = file.read()
    say(f"loading {load.path}")
    runner = load_runner(load.record, artefact)
    record = runner.record
    _check_inputs(record)
    if not record.outputs:
        record = msgspec.structs.replace(record, outputs=_learn_outputs(runner.compute, record))
        runner = load_runner(record, artefact)
    _try_out(runner.compute, record)
    measured = measuring.measure(load, record, runner, say)
    return runner.compute, Ready(
        record=record, points=measured.points, threads=measured.threads, max_batch_size=measured.max_batch_size, reason=measured.reason
    )


def _check_inputs(record: ModelRecord) -> None:
    for spec in record.inputs:
        if not spec.shape or spec.shape[0] != -1:
            raise ConfigurationError(
                f"{record.artefact_key}: input '{spec.name}' has shape {list(spec.shape)}; export it with a free first dimension, the batch"
            )


def _try_out(compute: Callable[[Sequence[Stack]], Sequence[Stack]], record: ModelRecord) -> None:
    for bucket in range(max([len(spec.pad.buckets) for spec in record.inputs if spec.pad], default=1)):
        request = sample_request(record, rows=2, bucket=bucket)
        (result,) = run_requests(compute, [request], record, tier=Tier.WORKER)
        if isinstance(result, Exception):
            sizes = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in request.inputs)
            raise ConfigurationError(f"{record.model} fails on two rows of zeros: {result}; it was given {sizes}")


def _learn_outputs(compute: Callable[[Sequence[Stack]], Sequence[Stack]], record: ModelRecord) -> tuple[TensorSpec, ...]:
    """Run two differing shapes; what differs between the outputs is free."""
    shapes = []
    for rows, free in ((2, FREE_DIMENSION), (3, FREE_DIMENSION + 1)):
        try:
            shapes.append([(stack.datatype, stack.shape) for stack in compute(_zeros(record, rows, free))])
        except (InferenceFailed, InvalidRequest) as error:
            raise ConfigurationError(f"{record.model} fails on {rows} rows of zeros: {error}") from error
    return tuple(
        TensorSpec(name=f"output_{index}", datatype=datatype, shape=tuple(a if a == b else -1 for a, b in zip(first, second, strict=True)))
        for index, ((datatype, first), (_, second)) in enumerate(zip(*shapes, strict=True))
    )


def _zeros(record: ModelRecord, rows: int, free: int) -> list[Stack]:
    """Make inputs of zeros, free dimensions being `free`, padded ones the first bucket for `FREE_DIMENSION` and else the last."""
    sized = tuple(
        spec
        if spec.padded_axis is not None
        else TensorSpec(
            name=spec.name,
            datatype=spec.datatype,
            shape=tuple(free if size == -1 and axis else size for axis, size in enumerate(spec.shape)),
            length_of=spec.length_of,
        )
        for spec in record.inputs
    )
    bucket = 0 if free == FREE_DIMENSION else -1
    request = sample_request(msgspec.structs.replace(record, inputs=sized), rows=rows, bucket=bucket)
    return [Stack(tensor.datatype, tensor.shape, bytearray(tensor.data)) for tensor in request.inputs]


def _serve(front: socket.socket, compute: Callable[[Sequence[Stack]], Sequence[Stack]]) -> None:
    while (received := channel.receive(front)) is not None:
        message, data = received
        if not isinstance(message, Run):
            continue
        started_s = time.monotonic()
        buffers: list[bytes | memoryview] = []
        results: list[GroupResult] = []
        offset = 0
        for group in message.groups:
            inputs = []
            for head in group.inputs:
                inputs.append(Stack(head.datatype, head.shape, data[offset : offset + head.data_bytes]))
                offset += head.data_bytes
            outputs, failures = compute_group(compute, group.rows, inputs)
            buffers += [memoryview(stack.data) for stack in outputs]
            results.append(
                GroupResult(
                    outputs=tuple(StackHead(stack.datatype, stack.shape, len(stack.data)) for stack in outputs),
                    failures=tuple(
                        GroupFailure(index, error.status if isinstance(error, InvalidRequest) else 500, str(error))
                        for index, error in failures.items()
                    ),
                )
            )
        channel.send(front, Ran(groups=tuple(results), compute_s=time.monotonic() - started_s), buffers)


if __name__ == "__main__":
    main(int(sys.argv[1]))
