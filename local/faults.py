"""Faults on purpose: what the embedded services can be told to do wrong, call by call.

Each embedded service keeps a `FaultBoard`, empty unless somebody `PUT`s a list of faults to its `FAULTS_PATH`. Nothing
that ships knows of it: production code sees a slow, throttled or dry AWS and cannot tell why.
"""

from __future__ import annotations

import random
import threading
import urllib.request
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

FAULTS_PATH = "/_markserve/faults"

Effect = Literal["error", "delay", "duplicate", "dry", "partial"]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that goes wrong with some calls of one kind."""

    action: str
    """Pattern of `service:Action`, such as `sqs:SendMessage`, `dynamodb:*`, `ec2:CreateFleet`; `lambda:Invoke` at a function's host."""
    effect: Effect
    """error: refused with `code`. delay: answered `delay_s` later. duplicate: carried out twice. dry: an instant fleet
    without instances. partial: an instant fleet of one instance, whatever was asked for."""
    mentions: str = ""
    """Text that the request must contain: a table, a queue, an instance type."""
    share: float = 1.0
    """Of the calls that match."""
    code: str = "ThrottlingException"
    status: int = 400
    delay_s: float = 0.0


class FaultBoard:
    """The faults of one service; safe to share between threads.

    Which calls of a share are hit is drawn from a seeded generator, so that a run can be repeated as far as its order of calls can.
    """

    def __init__(self, *, seed: int = 1) -> None:
        self._faults: tuple[Fault, ...] = ()
        self._random = random.Random(seed)  # noqa: S311  # a workload, not a secret
        self._lock = threading.Lock()

    @property
    def is_clear(self) -> bool:
        """Whether nothing is to go wrong."""
        return not self._faults

    def put(self, payload: bytes) -> None:
        """Replace the faults. Raises `msgspec.MsgspecError` for what is no list of faults."""
        self._faults = tuple(msgspec.json.decode(payload, type=list[Fault]))

    def strike(self, action: str, body: bytes) -> Fault | None:
        """Return the first fault that hits this call, if any does."""
        for fault in self._faults:
            if fnmatchcase(action, fault.action) and fault.mentions.encode() in body:
                with self._lock:
                    hit = self._random.random() < fault.share
                if hit:
                    return fault
        return None


def set_faults(urls: Iterable[str], faults: Sequence[Fault]) -> None:
    """Replace the faults of the services at `urls`; an empty list heals them."""
    body = msgspec.json.encode(list(faults))
    for url in urls:
        request = urllib.request.Request(f"{url}{FAULTS_PATH}", data=body, method="PUT")  # noqa: S310  # our own loopback URL
        with urllib.request.urlopen(request, timeout=10.0):  # noqa: S310
            pass
