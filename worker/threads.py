"""The worker's threads: each repeats one step of the engine until it has drained.

Receivers (long polls), one runner (the only thread that computes), repliers, a heartbeat, a look at visibility timeouts and a
watch for the spot notice. The next batch fills while one runs. A thread that fails ends them all: half a worker would take messages and
not answer them, while a dead one is replaced and its messages are redelivered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import SimpleQueue

from markserve.errors import Transient
from markserve.telemetry import logger
from worker.engine import Engine
from worker.lifeline import Lifeline
from worker.mailbox import Finished, parcels

REPLIERS = 8
"""Parcels of answers stored at once: a conditional put takes 5-10 ms on AWS, so these keep up with 1000 requests/s even one by one."""
VISIBILITY_LOOK_S = 1.0
"""How often to look for messages that may outlast their visibility timeout: ten times in the last third of 30 s."""
NOTICE_POLL_S = 2.0
"""The spot notice comes two minutes ahead; AWS suggests looking every 5 s."""
UNAVAILABLE_PAUSE_S = 1.0
TRAFFIC_POLL_S = 5.0
"""How soon a worker begins to load a new version: one read each; a load takes longer than this."""


def _nothing() -> None:
    pass


def serve(engine: Engine, lifeline: Lifeline, *, receivers: int, heartbeat_s: float, follow_traffic: Callable[[], None] = _nothing) -> None:
    """Run the engine's steps in threads until it has drained; raises what any of them raised."""
    threads = _Threads(engine, lifeline, heartbeat_s, follow_traffic)
    loops: list[Callable[[], None]] = [
        *[threads.receive] * receivers,
        threads.run,
        *[threads.reply] * REPLIERS,
        threads.keep_hidden,
        threads.beat,
        threads.watch,
        threads.follow_traffic,
    ]
    pool = ThreadPoolExecutor(max_workers=len(loops), thread_name_prefix="worker")
    done, unfinished = wait([pool.submit(loop) for loop in loops], return_when=FIRST_EXCEPTION)
    if unfinished:
        threads.abandon()
    pool.shutdown(wait=False)  # a thread stuck in a call or a batch must not keep a failed worker alive
    for future in done:
        future.result()


class _Threads:
    """The loops, and the queue of answers between them."""

    def __init__(self, engine: Engine, lifeline: Lifeline, heartbeat_s: float, follow_traffic: Callable[[], None]) -> None:
        self._engine = engine
        self._lifeline = lifeline
        self._heartbeat_s = heartbeat_s
        self._follow_traffic = follow_traffic
        self._replies: SimpleQueue[list[Finished] | None] = SimpleQueue()
        self._pause = threading.Event()

    def receive(self) -> None:
        """Poll while there is room."""
        try:
            while self._engine.wait_for_room():
                try:
                    refused = self._engine.receive()
                except Transient as error:
                    logger.warning("receiving failed, trying again: %s", error)
                    self._pause.wait(UNAVAILABLE_PAUSE_S)
                else:
                    self._send(refused)
        finally:
            self._engine.receiver_ended()

    def run(self) -> None:
        """Compute batches; the last one to hand over answers, so it ends the repliers."""
        while (batch := self._engine.wait_for_batch()) is not None:
            self._send(self._engine.run(batch))
        self._end_repliers()

    def reply(self) -> None:
        """Store answers."""
        while (parcel := self._replies.get()) is not None:
            self._engine.reply(parcel)

    def beat(self) -> None:
        """Give signs of life; a registry that does not answer is not a reason to stop serving."""
        while not self._engine.wait_until_drained(self._heartbeat_s):
            try:
                self._lifeline.beat()
            except Transient as error:
                logger.warning("heartbeat failed: %s", error)

    def keep_hidden(self) -> None:
        """Keep what is held from others; here, so that no slow batch, reply or heartbeat delays it."""
        while not self._engine.wait_until_drained(VISIBILITY_LOOK_S):
            self._engine.keep_hidden()

    def watch(self) -> None:
        """Look for a spot interruption notice."""
        while not self._engine.wait_until_drained(NOTICE_POLL_S):
            self._lifeline.heed_interruption()

    def follow_traffic(self) -> None:
        """Load versions ahead of their traffic; here, so that no request, batch or heartbeat waits for a load."""
        while not self._engine.wait_until_drained(TRAFFIC_POLL_S):
            self._follow_traffic()

    def abandon(self) -> None:
        """Make every loop return that is not stuck."""
        self._engine.abandon()
        self._end_repliers()

    def _send(self, finished: list[Finished]) -> None:
        for parcel in parcels(finished):
            self._replies.put(parcel)

    def _end_repliers(self) -> None:
        for _ in range(REPLIERS):
            self._replies.put(None)
