"""What it costs a worker to store a batch of answers: one conditional write each, or PartiQL statements 25 to a call.

The real adapter's client and threads against a server that answers every call after the same time, however much is in it, which favours
batches: what DynamoDB takes for 25 statements is not known here. Its bill is the same either way, since it counts items and not calls.

    python -m benchmarks.result_writes [--answers 32] [--outputs 4000] [--latency 0.006] [--rounds 40] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import boto3
from botocore.config import Config

from markserve.adapters.dynamodb_results import MAX_STATEMENTS, DynamoResultStore
from markserve.core.types import Tier
from markserve.messages import Answer, Tensor
from worker.threads import REPLIERS

TABLE = "results"
EXPIRES_AT_S = 4e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One way to store a batch."""

    way: str
    calls: int
    cpu_ms: float
    """Of this process, per batch; most of it under the interpreter's lock."""
    mean_ms: float
    """From the end of the batch to an answer that is stored."""
    last_ms: float


def main(argv: Sequence[str]) -> int:
    """Print what each way takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.result_writes", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--outputs", type=int, default=4000, help="bytes of an answer's tensors")
    parser.add_argument("--latency", type=float, default=0.006, help="seconds per call; a conditional write takes 5 to 10 ms")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    theirs, ours = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(args.latency, theirs), daemon=True)
    server.start()
    try:
        rows = _compare(f"http://127.0.0.1:{ours.recv()}", args)
    finally:
        server.terminate()
        server.join()
    if args.json:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
        return 0
    for row in rows:
        times = f"stored after {row.mean_ms:5.1f} ms, the last {row.last_ms:5.1f} ms"
        sys.stdout.write(f"{row.way:24} {row.calls:3d} calls  {row.cpu_ms:6.1f} ms of CPU  {times}\n")
    return 0


def _compare(endpoint_url: str, args: argparse.Namespace) -> list[Row]:
    config = Config(max_pool_connections=64, retries={"total_max_attempts": 1})
    session = boto3.Session(aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1")  # noqa: S106  # of nobody
    client: Any = session.client("dynamodb", endpoint_url=endpoint_url, config=config)
    store = DynamoResultStore(client, TABLE)
    answers = [_answer(number, args.outputs) for number in range(args.answers)]
    parts = [answers[start : start + MAX_STATEMENTS] for start in range(0, len(answers), MAX_STATEMENTS)]

    def one(answer: Answer) -> None:
        store.put_answer(answer, expires_at_s=EXPIRES_AT_S)

    def many(part: Sequence[Answer]) -> None:
        store.put_answers(part, expires_at_s=EXPIRES_AT_S)

    with ThreadPoolExecutor(max_workers=REPLIERS) as pool:
        return [
            _measure(pool, "one write each", one, [(answer, 1) for answer in answers], args.rounds),
            _measure(pool, f"{MAX_STATEMENTS} statements a call", many, [(part, len(part)) for part in parts], args.rounds),
        ]


def _measure(pool: ThreadPoolExecutor, way: str, store: Callable[[Any], None], work: list[tuple[Any, int]], rounds: int) -> Row:
    def timed(item: Any, began_s: float) -> float:
        store(item)
        return time.perf_counter() - began_s

    cpu, means, lasts = [], [], []
    for number in range(rounds + 2):  # two to open connections
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        futures = [pool.submit(timed, item, began_s) for item, _ in work]
        took = [(future.result(), count) for future, (_, count) in zip(futures, work, strict=True)]
        if number >= 2:
            cpu.append(time.process_time() - began_cpu_s)
            means.append(sum(seconds * count for seconds, count in took) / sum(count for _, count in took))
            lasts.append(max(seconds for seconds, _ in took))
    cpu_ms, mean_ms, last_ms = (1e3 * statistics.median(values) for values in (cpu, means, lasts))
    return Row(way=way, calls=len(work), cpu_ms=cpu_ms, mean_ms=mean_ms, last_ms=last_ms)


def _answer(number: int, output_bytes: int) -> Answer:
    tensor = Tensor(name="scores", datatype="UINT8", shape=(1, output_bytes), data=bytes(output_bytes))
    return Answer(request_id=f"request-{number:04d}", tier=Tier.WORKER, outputs=(tensor,), instance_id="i-bench", finished_at_s=1.0)


def _serve(latency_s: float, port_to: Connection) -> None:
    """Answer as DynamoDB does when every condition holds."""

    async def serve() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while head := await _head(reader):
                request = json.loads(await reader.readexactly(int(head["content-length"])))
                await asyncio.sleep(latency_s)
                body = json.dumps(_response(request)).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body
                )
                await writer.drain()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port_to.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


async def _head(reader: asyncio.StreamReader) -> dict[str, str]:
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:]
    except (asyncio.IncompleteReadError, ConnectionError):
        return {}
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


def _response(request: dict[str, Any]) -> dict[str, Any]:
    if "Statements" in request:
        return {"Responses": [{"TableName": TABLE}] * len(request["Statements"])}
    if request.get("ReturnValues") == "ALL_NEW":
        values = request["ExpressionAttributeValues"]
        return {"Attributes": {**request["Key"], **{name.removeprefix(":"): value for name, value in values.items()}}}
    return {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
