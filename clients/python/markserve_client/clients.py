"""The clients: one that blocks, and one to await."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar, Unpack, cast

import httpx

from markserve_client.calls import Calls, Inputs, Options, Step, Steps
from markserve_client.codec import InferResult, Job, Model

ResultT = TypeVar("ResultT")


class Client:
    """Blocking client; safe to share between threads. Close it, or use it in `with`.

    Parameters
    ----------
    url
        Of the API, such as https://abc.execute-api.us-east-1.amazonaws.com.
    api_key, auth
        How to prove who calls, as the stack's ApiAuth asks.
    attempts, timeout_s
        Of each call; a call's own `timeout_s` comes first.
    transport, sleep
        Of httpx, and of pauses; for tests and proxies.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        auth: httpx.Auth | None = None,
        attempts: int = 4,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(base_url=url, auth=auth, headers=_headers(api_key), transport=transport)
        self._calls = Calls(self._http.build_request, attempts=attempts, timeout_s=timeout_s)
        self._sleep = sleep

    def infer(self, model: str, inputs: Inputs, **options: Unpack[Options]) -> InferResult:
        """Have arrays computed; raises `MarkserveClientError`."""
        return cast("InferResult", self._run(self._calls.infer(model, inputs, options, later=False)))

    def submit(self, model: str, inputs: Inputs, **options: Unpack[Options]) -> Job:
        """Have arrays computed later; raises `MarkserveClientError`."""
        return cast("Job", self._run(self._calls.infer(model, inputs, options, later=True)))

    def fetch(self, job: Job | str, *, timeout_s: float | None = None) -> InferResult:
        """Wait for a submitted request's answer; raises `TimedOut` when it is not there yet."""
        return self._run(self._calls.fetch(_id(job), timeout_s=timeout_s))

    def model(self, model: str, version: str | None = None) -> Model:
        """Ask what a model takes and returns."""
        return self._run(self._calls.model(model, version))

    def is_ready(self, model: str) -> bool:
        """Ask whether a request would be computed by anyone."""
        return self._run(self._calls.is_ready(model))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _run(self, steps: Steps[ResultT]) -> ResultT:
        answer: httpx.Response | httpx.TransportError | None = None
        while True:
            try:
                step: Step = steps.send(answer)
                answer = None
                if isinstance(step, httpx.Request):
                    answer = self._http.send(step)
                else:
                    self._sleep(step)
            except StopIteration as end:
                return cast("ResultT", end.value)
            except httpx.TransportError as error:
                answer = error


class AsyncClient:
    """Client to await, with the parameters and methods of `Client`. Close it, or use it in `async with`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        auth: httpx.Auth | None = None,
        attempts: int = 4,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, auth=auth, headers=_headers(api_key), transport=transport)
        self._calls = Calls(self._http.build_request, attempts=attempts, timeout_s=timeout_s)
        self._sleep = sleep

    async def infer(self, model: str, inputs: Inputs, **options: Unpack[Options]) -> InferResult:
        """Have arrays computed; raises `MarkserveClientError`."""
        return cast("InferResult", await self._run(self._calls.infer(model, inputs, options, later=False)))

    async def submit(self, model: str, inputs: Inputs, **options: Unpack[Options]) -> Job:
        """Have arrays computed later; raises `MarkserveClientError`."""
        return cast("Job", await self._run(self._calls.infer(model, inputs, options, later=True)))

    async def fetch(self, job: Job | str, *, timeout_s: float | None = None) -> InferResult:
        """Wait for a submitted request's answer; raises `TimedOut` when it is not there yet."""
        return await self._run(self._calls.fetch(_id(job), timeout_s=timeout_s))

    async def model(self, model: str, version: str | None = None) -> Model:
        """Ask what a model takes and returns."""
        return await self._run(self._calls.model(model, version))

    async def is_ready(self, model: str) -> bool:
        """Ask whether a request would be computed by anyone."""
        return await self._run(self._calls.is_ready(model))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def _run(self, steps: Steps[ResultT]) -> ResultT:
        answer: httpx.Response | httpx.TransportError | None = None
        while True:
            try:
                step: Step = steps.send(answer)
                answer = None
                if isinstance(step, httpx.Request):
                    answer = await self._http.send(step)
                else:
                    await self._sleep(step)
            except StopIteration as end:
                return cast("ResultT", end.value)
            except httpx.TransportError as error:
                answer = error


def _id(job: Job | str) -> str:
    return job.request_id if isinstance(job, Job) else job


def _headers(api_key: str | None) -> dict[str, str]:
    return {"x-api-key": api_key} if api_key else {}
