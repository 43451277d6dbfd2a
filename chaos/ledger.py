"""The client's own book of what it asked and what it got: the judge of "answered exactly once", outside of the system.

Requests go out by a Poisson schedule until told to stop, however the system fares. Three kinds, mixed: synchronous ones;
asynchronous ones, which are asked for until they are answered; and ones under an idempotency key, which are repeated
once, as a careful client would, and must get the same answer again. Every answer is compared with the model's own.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import numpy as np
import numpy.typing as npt

Kind = Literal["sync", "async", "keyed"]
KIND_SHARES: dict[Kind, float] = {"sync": 0.8, "async": 0.1, "keyed": 0.1}
REFUSALS = (429, 503, 504)
"""Explicit: nothing was accepted, or it was given up with an answer that says so."""
GONE = frozenset({403, 404})
"""What API Gateway says once the API is closed: not accepted."""
TIMEOUT_S = 35.0
ASYNC_POLL_S = 1.0
ASYNC_PATIENCE_S = 75.0
"""An asynchronous request whose worker died waits for its message to reappear, 30 s, and then for a worker."""
RETRY_WITHIN_S, RETRY_PAUSE_S = 60.0, 1.0
"""For how long, and how often, a client with an idempotency key repeats a request that got no response."""
TOLERANCE = 1e-3
"""Logits of the same model in another batch size differ in the last bits."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """An input, and the right answer of each version of the model."""

    body: bytes
    logits: dict[str, npt.NDArray[np.float32]]
    """By version; more than one while versions change."""


@dataclass(kw_only=True)
class Entry:
    """One request."""

    index: int
    kind: Kind
    scheduled_at_s: float
    finished_at_s: float = 0.0
    status: int = 0
    """HTTP status of the last response; 0 when there was none."""
    error: str = ""
    is_accepted: bool = False
    """Whether the server said that it will answer later."""
    request_id: str = ""
    version: str = ""
    """Of the model, as the answer names it."""
    tier: str = ""
    batch_size: int = 0
    logits: npt.NDArray[np.float32] | None = None
    right: bool | None = None
    """None without a result."""
    reason: str = ""
    """The server's own words on how the answer came about."""
    timing: str = ""
    repeated_differently: str = ""
    """What a repeated request got that its first one did not."""

    @property
    def latency_s(self) -> float:
        """From the instant it should have been sent."""
        return self.finished_at_s - self.scheduled_at_s

    @property
    def answer(self) -> tuple[str, str, int, str]:
        """What tells one answer from another: its request, tier, batch and version."""
        return self.request_id, self.tier, self.batch_size, self.version

    def in_time(self, rt_max_s: float) -> bool:
        """Whether it got a result within the objective."""
        return self.status == 200 and self.latency_s <= rt_max_s


@dataclass(kw_only=True)
class Ledger:
    """Sends requests from `start` to `stop`, in a thread of its own, and writes down what becomes of each."""

    endpoint: str
    model: str
    questions: Sequence[Question]
    rate_rps: float
    """May be changed while it runs."""
    seed: int
    refusals: frozenset[int] = frozenset(REFUSALS)
    """Statuses that say explicitly that nothing was accepted, or that it was given up."""
    entries: list[Entry] = field(default_factory=list, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Begin sending."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send()), name="ledger", daemon=True)
        self._thread.start()

    def stop_sending(self) -> None:
        """Send no more; what is under way goes on."""
        self._stopping.set()

    def is_lost(self, entry: Entry) -> bool:
        """Whether a request got neither a result nor an explicit refusal."""
        return entry.status != 200 and entry.status not in self.refusals

    def stop(self) -> None:
        """Send no more, and wait for what is under way."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    async def _send(self) -> None:
        rng = random.Random(self.seed)  # noqa: S311  # a workload, not a secret
        kinds, shares = list(KIND_SHARES), list(KIND_SHARES.values())
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=256)) as session:
            tasks: list[asyncio.Task[None]] = []
            due_at_s = time.time()
            while not self._stopping.is_set():
                due_at_s += rng.expovariate(self.rate_rps)
                await asyncio.sleep(max(0.0, due_at_s - time.time()))
                (kind,) = rng.choices(kinds, shares)
                entry = Entry(index=len(self.entries), kind=kind, scheduled_at_s=due_at_s)
                self.entries.append(entry)
                tasks.append(asyncio.create_task(self._follow(session, entry, rng.choice(self.questions))))
            await asyncio.gather(*tasks)

    async def _follow(self, session: aiohttp.ClientSession, entry: Entry, question: Question) -> None:
        headers = {"Content-Type": "application/json"}
        if entry.kind == "async":
            headers["Prefer"] = "respond-async"
        if entry.kind == "keyed":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        location = await self._ask(session, "POST", self._infer_url, entry, headers, question)
        entry.is_accepted = entry.status == 202
        if entry.kind == "async" and entry.is_accepted:
            await self._fetch(session, f"{self.endpoint}{location}", entry, question)
        if entry.kind == "keyed":
            await self._repeat(session, entry, headers, question)

    @property
    def _infer_url(self) -> str:
        return f"{self.endpoint}/v2/models/{self.model}/infer"

    async def _fetch(self, session: aiohttp.ClientSession, url: str, entry: Entry, question: Question) -> None:
        give_up_at_s = time.time() + ASYNC_PATIENCE_S
        while time.time() < give_up_at_s:
            await asyncio.sleep(ASYNC_POLL_S)
            await self._ask(session, "GET", url, entry, {}, question)
            if entry.status not in (202, 0, *REFUSALS):
                return  # a refusal to tell is no answer yet
        entry.error = entry.error or f"accepted, and not answered within {ASYNC_PATIENCE_S:g} s"

    async def _repeat(self, session: aiohttp.ClientSession, entry: Entry, headers: dict[str, str], question: Question) -> None:
        first = entry.answer
        give_up_at_s = time.time() + RETRY_WITHIN_S
        while True:
            again = Entry(index=entry.index, kind=entry.kind, scheduled_at_s=time.time())
            await self._ask(session, "POST", self._infer_url, again, headers, question)
            if again.status == 200 or entry.status != 0 or time.time() > give_up_at_s:
                break
            await asyncio.sleep(RETRY_PAUSE_S)
        if entry.status == 200 and again.status == 200:
            if first != again.answer:
                entry.repeated_differently = f"first {first}, then {again.answer}"
        elif again.status == 200 or entry.status == 0:  # the retry is what this client gets
            for name in ("status", "finished_at_s", "error", "request_id", "version", "tier", "batch_size", "logits", "right"):
                setattr(entry, name, getattr(again, name))

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, url: str, entry: Entry, headers: dict[str, str], question: Question
    ) -> str:
        """Send one request, note the response, and return its Location."""
        data = question.body if method == "POST" else None
        try:
            async with session.request(method, url, data=data, headers=headers) as response:
                payload = await response.read()
                entry.status, entry.error = response.status, ""
                entry.request_id = response.headers.get("x-markserve-request-id", entry.request_id)
                entry.tier = response.headers.get("x-markserve-tier", "")
                entry.batch_size = int(response.headers.get("x-markserve-batch-size") or 0)
                entry.reason = response.headers.get("x-markserve-reason", "")
                entry.timing = response.headers.get("Server-Timing", "")
                if response.status == 200:
                    self._judge(entry, await response.json(content_type=None), question)
                elif response.status != 202:
                    entry.error = payload[:300].decode("utf-8", errors="replace")
                location = response.headers.get("Location", "")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            entry.status, entry.error, location = 0, f"{type(error).__name__}: {error}", ""
        entry.finished_at_s = time.time()
        return location

    @staticmethod
    def _judge(entry: Entry, body: Any, question: Question) -> None:
        (output,) = body["outputs"]
        entry.version = str(body.get("model_version"))
        entry.logits = np.asarray(output["data"], np.float32).reshape(output["shape"])
        expected = question.logits.get(entry.version)
        entry.right = (
            expected is not None and entry.logits.shape == expected.shape and bool(np.allclose(entry.logits, expected, atol=TOLERANCE))
        )
