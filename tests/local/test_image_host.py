"""The image host treats processes as Lambda treats execution environments."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import psutil
import pytest

from local.environments import ImageHost, start_context
from tests.processes import has_ended

# Blocks where a test tells it to by opening a FIFO that nobody has opened for writing yet.
HANDLER = """
import os
def handler(event, context):
    match event.get("do"):
        case "raise":
            raise ValueError("no such digit")
        case "exit":
            os._exit(9)
        case "wait":
            open(event["fifo"]).read()
    return {
        "pid": os.getpid(), "echo": event, "request_id": context.aws_request_id, "variable": os.environ["MARKSERVE_STACK_NAME"],
        "memory_mb": context.memory_limit_in_mb, "left_ms": context.get_remaining_time_in_millis(),
    }
"""
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def forked() -> Iterator[ForkServerContext]:
    with pytest.MonkeyPatch.context() as patch:
        variables = {
            "MARKSERVE_STACK_NAME": "probe",
            "AWS_LAMBDA_FUNCTION_NAME": "probe-spillover",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        yield start_context(variables)


@pytest.fixture
def host(forked: ForkServerContext, tmp_path: Path) -> Iterator[ImageHost]:
    built = a_host(forked, tmp_path, HANDLER)
    yield built
    built.close()


def a_host(forked: ForkServerContext, tmp_path: Path, source: str, **overrides: Any) -> ImageHost:
    folder = tmp_path / "spillover"
    folder.mkdir()
    (folder / "app.py").write_text(source)
    values: dict[str, Any] = {"memory_mb": 1769, "timeout_s": TIMEOUT_S, "limit": 2, "idle_ttl_s": 60.0, **overrides}
    return ImageHost(folder=folder, context=forked, **values)


def invoke(host: ImageHost, event: dict[str, Any] | None = None) -> tuple[int, Any]:
    status, body = host.invoke("request-1", json.dumps(event or {}).encode())
    return status, json.loads(body)


def until(condition: Callable[[], bool]) -> None:
    """Wait for another process to get somewhere; the test run's own time limit is the failure."""
    while not condition():
        time.sleep(0.005)


def test_handler_sees_its_event_its_settings_and_lambdas_context(host: ImageHost) -> None:
    status, result = invoke(host, {"model": "digits"})

    assert status == 200
    assert (result["echo"], result["request_id"], result["variable"]) == ({"model": "digits"}, "request-1", "probe")
    assert result["memory_mb"] == 1769
    assert 0 < result["left_ms"] <= TIMEOUT_S * 1000


def test_environment_is_reused_when_it_is_idle(host: ImageHost) -> None:
    pids = {invoke(host)[1]["pid"] for _ in range(3)}

    assert len(pids) == 1
    assert pids != {os.getpid()}
    assert (host.snapshot().invocations, host.snapshot().cold_starts, host.snapshot().environments) == (3, 1, 1)


def test_concurrent_invocations_get_environments_of_their_own_and_those_beyond_the_limit_are_throttled(
    host: ImageHost, tmp_path: Path
) -> None:
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    held = {"do": "wait", "fifo": str(fifo)}
    with ThreadPoolExecutor(2) as callers:
        running = [callers.submit(invoke, host, held) for _ in range(2)]
        until(lambda: host.snapshot().cold_starts == 2)
        throttled = invoke(host)
        release(fifo, readers=running)

    assert throttled == (
        429,
        {
            "errorType": "TooManyRequestsException",
            "errorMessage": "Rate Exceeded.",
            "reason": "ReservedFunctionConcurrentInvocationLimitExceeded",
        },
    )
    assert len({call.result()[1]["pid"] for call in running}) == 2
    assert (host.snapshot().throttles, host.snapshot().environments_max) == (1, 2)


def release(fifo: Path, *, readers: list[Any]) -> None:
    """Let every blocked reader go on; one that opens late finds the next writer."""
    while not all(call.done() for call in readers):
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            time.sleep(0.005)


def test_exception_is_a_function_error_and_the_environment_lives_on(host: ImageHost) -> None:
    before = invoke(host)[1]["pid"]
    failed = invoke(host, {"do": "raise"})

    assert failed == (500, {"errorType": "ValueError", "errorMessage": "no such digit"})
    assert invoke(host)[1]["pid"] == before
    assert host.snapshot().errors == 1


def test_environment_that_exits_is_replaced(host: ImageHost) -> None:
    before = invoke(host)[1]["pid"]
    status, error = invoke(host, {"do": "exit"})

    assert (status, error["errorType"]) == (500, "Runtime.ExitError")
    assert invoke(host)[1]["pid"] != before
    assert host.snapshot().cold_starts == 2


def test_environment_that_died_while_idle_is_not_used(host: ImageHost) -> None:
    before = psutil.Process(invoke(host)[1]["pid"])
    before.kill()
    until(lambda: has_ended(before))

    status, result = invoke(host)

    assert (status, result["pid"] != before.pid) == (200, True)


def test_invocation_is_ended_at_the_functions_timeout(forked: ForkServerContext, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    host = a_host(forked, tmp_path, HANDLER, timeout_s=0.2)

    ended = invoke(host, {"do": "wait", "fifo": str(tmp_path / "gate")})

    assert ended == (500, {"errorType": "Sandbox.Timedout", "errorMessage": "Task timed out after 0.20 seconds"})
    assert (host.snapshot().timeouts, host.snapshot().environments) == (1, 0)


def test_handler_that_does_not_load_is_an_error_of_each_invocation(forked: ForkServerContext, tmp_path: Path) -> None:
    host = a_host(forked, tmp_path, "raise RuntimeError('no model')\n")

    assert invoke(host) == invoke(host) == (500, {"errorType": "RuntimeError", "errorMessage": "no model"})
    assert (host.snapshot().cold_starts, host.snapshot().environments) == (0, 0)


def test_idle_environments_are_reaped_and_their_processes_end(host: ImageHost) -> None:
    process = psutil.Process(invoke(host)[1]["pid"])

    assert host.reap(time.monotonic() + 59.0) == 0
    assert host.reap(time.monotonic() + 61.0) == 1
    assert host.snapshot().environments == 0
    until(lambda: has_ended(process))


def test_cold_starts_share_the_preloaded_template_and_do_not_import_torch_again(forked: ForkServerContext, tmp_path: Path) -> None:
    host = a_host(forked, tmp_path, "import sys\nLOADED = 'torch' in sys.modules\ndef handler(event, context):\n    return LOADED\n")

    assert invoke(host) == (200, True)
    host.close()


def test_no_invocation_is_lost_or_answered_twice_under_concurrency(forked: ForkServerContext, tmp_path: Path) -> None:
    host = a_host(forked, tmp_path, HANDLER, limit=4)
    start = threading.Barrier(4)

    def call(caller: int) -> list[int]:
        start.wait()
        return [invoke(host, {"n": 100 * caller + i})[1]["echo"]["n"] for i in range(25)]

    with ThreadPoolExecutor(4) as callers:
        answered = [n for numbers in callers.map(call, range(4)) for n in numbers]
    host.close()

    assert sorted(answered) == sorted(100 * caller + i for caller in range(4) for i in range(25))
    assert host.snapshot().invocations == 100
