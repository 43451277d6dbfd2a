"""Whether the load generator can be believed on this machine: its own limits against a server that does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

from benchmarks.serving.arrivals import poisson
from benchmarks.serving.contestants import PEERS
from benchmarks.serving.generator import Generator, Question
from benchmarks.serving.protocols import plain
from benchmarks.serving.server import free_port
from benchmarks.serving.summary import summarise
from benchmarks.serving.workload import TOKENS

RATE_RPS = 3000.0
DURATION_S, WARM_UP_S = 4.0, 1.0


def check_generator(core: int, say: Callable[[str], None]) -> dict[str, object]:
    """Send 3,000 requests/s to a trivial server on the server's core; report lag and the share of time in which there was work."""
    port = free_port()
    protocol = plain("/infer")
    questions = protocol.encoded([(tuple(range(TOKENS)), (1.0,))], port)
    command = ["taskset", "-c", str(core), sys.executable, str(PEERS / "trivial.py")]
    server = subprocess.Popen(command, env={**os.environ, "BENCH_PORT": str(port)})  # noqa: S603  # our own command
    try:
        _await(port, questions)
        generator = Generator(("127.0.0.1", port), questions, protocol.decode, tolerance=1e-6, connections=int(RATE_RPS * 0.3))
        record = generator.run(poisson(RATE_RPS, DURATION_S, seed=1))
    finally:
        server.kill()
        server.wait()
    summary = summarise(record, warm_up_s=WARM_UP_S, duration_s=DURATION_S)
    verdict = "saturated" if summary.is_generator_saturated else "has room"
    lag = f"lag p99 {summary.lag_p99_s * 1000:.2f} ms, highest {summary.lag_max_s * 1000:.2f} ms"
    say(f"generator at {RATE_RPS:g}/s against a server that only replies: {verdict}; {lag}, working {summary.busy_share:.0%} of the time")
    return {**asdict(summary), "rate_rps": RATE_RPS, "is_saturated": summary.is_generator_saturated}


def _await(port: int, questions: list[Question]) -> None:
    for _ in range(100):
        one = Generator(("127.0.0.1", port), questions, plain("/infer").decode, tolerance=1e-6, connections=0)
        if list(one.run([0.0]).outcomes) == [1]:
            return
        time.sleep(0.05)
    raise RuntimeError("the trivial server does not reply")
