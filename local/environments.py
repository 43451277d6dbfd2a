"""Lambda's execution environments as processes: one invocation at a time each, more of them under load, fewer when idle."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec

from local.image_runtime import Failed, Invocation, Ready, Reply, Returned, run_environment, warm_template

logger = logging.getLogger(__name__)

# What a container has loaded before the handler's module runs; imported once, then inherited by every fork.
PRELOADED = ["torch", "numpy", "msgspec", "aws_lambda_powertools", "local.preloaded"]
# Lambda ends an init that takes longer.
INIT_TIMEOUT_S = 60.0
THROTTLED = {
    "errorType": "TooManyRequestsException",
    "errorMessage": "Rate Exceeded.",
    "reason": "ReservedFunctionConcurrentInvocationLimitExceeded",
}


class HostStats(msgspec.Struct, kw_only=True):
    """What happened since the host started; `billed_ms` includes init, as Lambda bills images."""

    function: str
    memory_mb: int
    invocations: int = 0
    cold_starts: int = 0
    throttles: int = 0
    errors: int = 0
    timeouts: int = 0
    billed_ms: int = 0
    init_s_total: float = 0.0
    environments: int = 0
    idle: int = 0
    environments_max: int = 0


@dataclass(kw_only=True)
class Environment:
    """One execution environment: a process and the pipe to it."""

    process: BaseProcess
    pipe: Connection
    idle_since_s: float = 0.0

    def end(self) -> None:
        """Kill the process; Lambda freezes and drops environments without asking either."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


@dataclass(kw_only=True)
class ImageHost:
    """Execution environments of one function."""

    folder: Path
    """The function's folder, with its `app.py`."""
    memory_mb: int
    timeout_s: float
    limit: int
    idle_ttl_s: float
    context: ForkServerContext
    stats: HostStats = field(init=False)
    _idle: list[Environment] = field(default_factory=list)
    _busy: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.stats = HostStats(function=self.folder.name, memory_mb=self.memory_mb)

    def invoke(self, request_id: str, payload: bytes) -> tuple[int, bytes]:
        """Run one invocation and return an HTTP status and the body ministack is to see.

        2xx is the handler's result. 429 is a throttle, 5xx a function error; ministack reports both as the
        invocation's FunctionError, with the body in its message.
        """
        with self._lock:
            if not self._idle and self._busy >= self.limit:
                self.stats.throttles += 1
                return 429, msgspec.json.encode(THROTTLED)
            # The most recently used one, so that surplus environments grow old and are reaped.
            # One that has died is known by its closed pipe before the fork server reports its end: idle ones say nothing.
            self._idle = [environment for environment in self._idle if environment.process.is_alive() and not environment.pipe.poll()]
            environment = self._idle.pop() if self._idle else None
            self._busy += 1
            self.stats.invocations += 1
            self.stats.environments_max = max(self.stats.environments_max, self._busy + len(self._idle))
        started_at_s = time.perf_counter()
        healthy: Environment | None = None
        try:
            environment = environment or self._cold_start()
            reply = self._run(environment, request_id, payload)
            healthy = environment if isinstance(reply, Returned) or not reply.fatal else None
            if healthy is None:
                environment.end()
            return (200, reply.payload) if isinstance(reply, Returned) else self._failed(reply)
        except EnvironmentFailedError as failure:
            return self._failed(failure.reply)
        finally:
            with self._lock:
                self._busy -= 1
                self.stats.billed_ms += ceil((time.perf_counter() - started_at_s) * 1000)
                if healthy is not None:
                    healthy.idle_since_s = time.monotonic()
                    self._idle.append(healthy)

    def snapshot(self) -> HostStats:
        """Copy of the counters, with the present number of environments."""
        with self._lock:
            return msgspec.structs.replace(self.stats, environments=self._busy + len(self._idle), idle=len(self._idle))

    def reap(self, now_s: float) -> int:
        """End environments idle longer than `idle_ttl_s`, and return how many."""
        with self._lock:
            expired = [environment for environment in self._idle if now_s - environment.idle_since_s > self.idle_ttl_s]
            self._idle = [environment for environment in self._idle if environment not in expired]
        for environment in expired:
            environment.end()
        return len(expired)

    def close(self) -> None:
        """End every idle environment; busy ones end with this process."""
        self.reap(float("inf"))

    def _cold_start(self) -> Environment:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=run_environment, args=(theirs, self.folder), name=f"{self.folder.name}-environment", daemon=True
        )
        started_at_s = time.perf_counter()
        process.start()
        theirs.close()
        environment = Environment(process=process, pipe=ours)
        reply = _receive(environment, INIT_TIMEOUT_S)
        if not isinstance(reply, Ready):
            environment.end()
            raise EnvironmentFailedError(reply if isinstance(reply, Failed) else _ended("Runtime.InitError", "init timed out"))
        with self._lock:
            self.stats.cold_starts += 1
            self.stats.init_s_total += time.perf_counter() - started_at_s
        return environment

    def _run(self, environment: Environment, request_id: str, payload: bytes) -> Returned | Failed:
        invocation = Invocation(request_id=request_id, deadline_at_s=time.time() + self.timeout_s, payload=payload)
        try:
            environment.pipe.send(invocation)
        except OSError:
            return _ended("Runtime.ExitError", "the execution environment ended while idle")
        reply = _receive(environment, self.timeout_s)
        if reply is None:
            with self._lock:
                self.stats.timeouts += 1
            return _ended("Sandbox.Timedout", f"Task timed out after {self.timeout_s:.2f} seconds")
        assert not isinstance(reply, Ready)  # noqa: S101  # sent once, at init
        return reply

    def _failed(self, reply: Failed) -> tuple[int, bytes]:
        with self._lock:
            self.stats.errors += 1
        logger.warning("%s failed: %s: %s", self.folder.name, reply.error_type, reply.message)
        return 500, msgspec.json.encode({"errorType": reply.error_type, "errorMessage": reply.message})


class EnvironmentFailedError(Exception):
    """An environment did not come up."""

    def __init__(self, reply: Failed) -> None:
        super().__init__(reply.message)
        self.reply = reply


def _receive(environment: Environment, timeout_s: float) -> Reply | None:
    """Next message of an environment, None when it does not come in time; a dead environment counts as a failure."""
    try:
        if not environment.pipe.poll(timeout_s):
            return None
        reply: Reply = environment.pipe.recv()
    except (EOFError, OSError):
        environment.process.join(timeout=1.0)
        return _ended("Runtime.ExitError", f"the execution environment exited with code {environment.process.exitcode}")
    return reply


def _ended(error_type: str, message: str) -> Failed:
    return Failed(error_type=error_type, message=message, fatal=True)


def start_context(variables: Mapping[str, str]) -> ForkServerContext:
    """Start the process that environments are forked from, with torch loaded and the function's environment set."""
    os.environ.update(variables)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # The fork server starts with its first fork; this one waits for the imports, so that no cold start pays for them.
    template = context.Process(target=warm_template)
    template.start()
    template.join()
    return context
