"""Open-loop load: requests go out when the schedule says, however slowly answers come back.

Latency counts from the scheduled instant, so a generator or a server that falls behind shows up in the figures
instead of lowering the rate (no coordinated omission). One HTTP request per arrival; what is refused is tried again only
where the target says so, and its latency counts all of it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import numpy as np
import numpy.typing as npt
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from local.arrivals import Arrival

HEADER_LENGTH = "Inference-Header-Content-Length"
REFUSALS = (429, 503)
"""Statuses after which a client is to try again; see docs/reference/errors.md."""
RETRY_AFTER_S = 1.0
"""Where a refusal does not say when: one of the gateway's own."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One input with the label a right answer has, where one is known."""

    tensor: npt.NDArray[Any]
    """(1, ...): one row."""
    label: int | None = None


class RequestRecord(msgspec.Struct, kw_only=True):
    """What became of one request."""

    index: int
    request_id: str
    """The client's id, echoed by the server."""
    phase: str
    scheduled_at_s: float
    sent_at_s: float = 0.0
    finished_at_s: float = 0.0
    status: int = 0
    """HTTP status; 0 when no response came."""
    retries: int = 0
    """Times that it was refused and sent again."""
    server_request_id: str = ""
    tier: str = ""
    instance_id: str = ""
    batch_size: int = 0
    predicted: int | None = None
    truth: int | None = None
    error: str = ""
    timing_s: dict[str, float] = {}
    """The server's own account of the time, from Server-Timing."""

    @property
    def latency_s(self) -> float:
        """From the instant it should have been sent to the last byte of its answer."""
        return self.finished_at_s - self.scheduled_at_s

    @property
    def is_answered(self) -> bool:
        """Whether it got a well-formed result."""
        return self.status == 200 and not self.error


@dataclass(kw_only=True)
class LoadProgress:
    """The load so far; written by the generator, read by whoever shows it."""

    records: list[RequestRecord] = field(default_factory=list)
    """Sent requests, by schedule."""
    finished: int = 0
    phase: str = ""
    started_at_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LoadTarget:
    """Where the load goes and what it asks."""

    endpoint: str
    model: str
    input_name: str
    output_name: str
    samples: Sequence[Sample]
    headers: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 30.0
    """An HTTP API ends at 30 s."""
    retry_for_s: float = 0.0
    """How long from its scheduled instant a refused request is sent again, as clients do."""
    max_connections: int = 256


def require_loopback(endpoint: str) -> None:
    """Refuse a target outside this machine: load belongs on one's own systems, and costs money elsewhere.

    Raises
    ------
    ValueError
        If the endpoint's host is not a loopback address.
    """
    host = urlsplit(endpoint).hostname or ""
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except socket.gaierror as error:
        raise ValueError(f"{endpoint}: host {host!r} does not resolve ({error.strerror})") from None
    if not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        raise ValueError(f"{endpoint}: {host} is not on this machine; allow remote targets explicitly if it is yours")


async def replay(arrivals: Sequence[Arrival], target: LoadTarget, *, seed: int, progress: LoadProgress) -> list[RequestRecord]:
    """Send one request per arrival, on time, and return what became of each, by schedule."""
    rng = random.Random(seed)  # noqa: S311  # a workload, not a secret
    connector = aiohttp.TCPConnector(limit=target.max_connections)
    timeout = aiohttp.ClientTimeout(total=target.timeout_s)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=target.headers) as session:
        tasks: list[asyncio.Task[None]] = []
        progress.started_at_s = time.time()
        for index, arrival in enumerate(arrivals):
            scheduled_at_s = progress.started_at_s + arrival.at_s
            await asyncio.sleep(max(0.0, scheduled_at_s - time.time()))
            record = RequestRecord(
                index=index, request_id=f"{seed}-{index}", phase=arrival.phase, scheduled_at_s=scheduled_at_s, sent_at_s=time.time()
            )
            progress.phase = arrival.phase
            progress.records.append(record)
            tasks.append(asyncio.create_task(_ask(session, target, rng.choice(target.samples), record, progress)))
        await asyncio.gather(*tasks)
    return progress.records


async def _ask(session: aiohttp.ClientSession, target: LoadTarget, sample: Sample, record: RequestRecord, progress: LoadProgress) -> None:
    record.truth = sample.label
    body, header_length = _encode(target, sample.tensor, record.request_id)
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(header_length)}
    try:
        while True:
            async with session.post(f"{target.endpoint}/v2/models/{target.model}/infer", data=body, headers=headers) as response:
                payload = await response.read()
                record.finished_at_s = time.time()
                retry_after_s = float(response.headers.get("Retry-After", RETRY_AFTER_S))
                if response.status not in REFUSALS or record.latency_s + retry_after_s > target.retry_for_s:
                    _note_response(record, response, payload, target.output_name)
                    break
            await asyncio.sleep(retry_after_s)
            record.retries += 1
    except (aiohttp.ClientError, TimeoutError) as error:
        record.finished_at_s = time.time()
        record.error = f"{type(error).__name__}: {error}"
    progress.finished += 1


def _encode(target: LoadTarget, tensor: npt.NDArray[Any], request_id: str) -> tuple[bytes, int]:
    """Encode as the public Triton client does, with binary tensors both ways."""
    tensor_in = InferInput(target.input_name, list(tensor.shape), np_to_triton_dtype(tensor.dtype))
    tensor_in.set_data_from_numpy(tensor, binary_data=True)
    tensor_out = InferRequestedOutput(target.output_name, binary_data=True)
    body, header_length = InferenceServerClient.generate_request_body([tensor_in], outputs=[tensor_out], request_id=request_id)
    return body, header_length or len(body)


def _note_response(record: RequestRecord, response: aiohttp.ClientResponse, payload: bytes, output_name: str) -> None:
    record.status = response.status
    record.tier = response.headers.get("x-markserve-tier", "")
    record.instance_id = response.headers.get("x-markserve-instance", "")
    record.batch_size = int(response.headers.get("x-markserve-batch-size") or 0)
    record.server_request_id = response.headers.get("x-markserve-request-id", "")
    record.timing_s = parse_server_timing(response.headers.get("Server-Timing", ""))
    if response.status != 200:
        record.error = payload[:300].decode("utf-8", errors="replace")
        return
    try:
        scores = decode_output(payload, response.headers.get(HEADER_LENGTH), record.request_id, output_name)
        record.predicted = None if record.truth is None else predicted_label(scores)
    except (InferenceServerException, ValueError, KeyError) as error:
        record.error = f"unreadable answer: {error}"


def decode_output(payload: bytes, header_length: str | None, request_id: str, output_name: str) -> npt.NDArray[Any]:
    """Read one output of an answer.

    Raises
    ------
    ValueError
        If the answer is for another request, or lacks the output.
    """
    result = InferenceServerClient.parse_response_body(payload, header_length=int(header_length) if header_length else None)
    echoed = result.get_response().get("id", "")
    if echoed != request_id:
        raise ValueError(f"the answer is for request {echoed!r}, not {request_id!r}")
    output: npt.NDArray[Any] | None = result.as_numpy(output_name)
    if output is None:
        raise ValueError(f"there is no output {output_name!r}")
    return output


def predicted_label(scores: npt.NDArray[Any]) -> int:
    """Return the label with the highest score.

    Raises
    ------
    ValueError
        If this is not one row of finite scores.
    """
    if scores.ndim != 2 or scores.shape[0] != 1 or not np.isfinite(scores).all():
        raise ValueError(f"not one row of finite scores but {scores.dtype} {list(scores.shape)}")
    return int(scores[0].argmax())


def parse_server_timing(text: str) -> dict[str, float]:
    """Read a Server-Timing header into seconds by metric; a metric without a duration is left out.

    >>> parse_server_timing('queue;dur=12.5, compute;desc="batch of 4";dur=3')
    {'queue': 0.0125, 'compute': 0.003}
    """
    timing: dict[str, float] = {}
    for metric in text.split(","):
        name, *parameters = [part.strip() for part in metric.split(";")]
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "dur" and name:
                timing[name] = float(value) / 1000.0
    return timing
