"""What must hold in every scenario, checked from the outside: the client's ledger, the results table, EC2, the queues."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import boto3
import numpy as np

from chaos.ledger import TOLERANCE, Entry
from chaos.stage import MAX_HOURLY_COST_USD, MAX_INSTANCES, WORKERS, Stage
from cli.traffic import messages_in
from markserve import wiring
from markserve.catalog import load_catalog
from markserve.errors import Transient
from markserve.messages import Answer

SAMPLE_EVERY_S = 1.0
SETTLE_WITHIN_S = 45.0
"""A message whose worker died reappears after 30 s; whoever receives it finds it answered and deletes it."""
ROUNDING_USD = 1e-6

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The fleet at one instant, as EC2 tells it."""

    at_s: float
    running: int
    usd_per_hour: float
    serving: int


@dataclass(kw_only=True)
class FleetWatch:
    """Samples the fleet from `start` to `stop`."""

    stage: Stage
    samples: list[Sample] = field(default_factory=list, init=False)
    _done: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Sample in a thread of its own."""
        self._thread = threading.Thread(target=self._watch, name="fleet-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        prices = {entry.instance_type: entry.price_usd_per_hour for entry in load_catalog().entries}
        while not self._done.wait(SAMPLE_EVERY_S):
            try:
                rents = {i.instance_id: i.offering.price_usd_per_hour for i in wiring.instances().list()}
                running = running_instances(self.stage.system.config.stack_name)
                usd = sum(rents.get(name, prices[kind]) for name, kind in running.items())
                self.samples.append(Sample(at_s=time.time(), running=len(running), usd_per_hour=usd, serving=len(self.stage.serving())))
            except Exception as error:  # noqa: BLE001  # a watcher must survive what it watches: the embedded AWS restarts, the stack goes
                if not self.stage.is_gone:
                    self.stage.note(f"the fleet could not be seen: {type(error).__name__}")

    def short_until_s(self) -> float:
        """Last instant at which fewer workers served than there should be; 0 when there always were enough."""
        return max((sample.at_s for sample in self.samples if sample.serving < WORKERS), default=0.0)


def running_instances(stack_name: str) -> dict[str, str]:
    """Types of the instances that EC2 charges for, by id."""
    filters: Any = [
        {"Name": "tag:markserve:stack", "Values": [stack_name]},
        {"Name": "instance-state-name", "Values": ["pending", "running"]},
    ]
    pages = boto3.client("ec2").get_paginator("describe_instances").paginate(Filters=filters)
    return {i["InstanceId"]: i["InstanceType"] for page in pages for r in page["Reservations"] for i in r["Instances"]}


def doubled(entries: Iterable[Entry], *, refuses_records: bool = False) -> list[str]:
    """Tell whose answer in the results table is another one than the client's, or whose repetition got another answer.

    A synchronous request without a key has no other response than the one its client got. `refuses_records`: where the table refuses
    to record that, a worker's later answer may stand there, for nobody to read.
    """
    found: list[str] = []
    for entry in entries:
        if entry.repeated_differently:
            found.append(f"request {entry.index} was answered twice: {entry.repeated_differently}")
        elif entry.status == 200 and entry.logits is not None and not (refuses_records and entry.kind == "sync"):
            stored = patiently(partial(wiring.results().get, entry.request_id))
            if stored is not None and stored.answer is not None and not _is_the_same(entry, stored.answer):
                found.append(f"request {entry.index}: the client got an answer of the {entry.tier} tier, the table holds another one")
    return found


def patiently(call: Callable[[], ValueT], attempts: int = 10) -> ValueT:
    """Read from a system that may be slow to tell."""
    for _ in range(attempts - 1):
        try:
            return call()
        except Transient:
            time.sleep(1.0)
    return call()


def _is_the_same(entry: Entry, answer: Answer) -> bool:
    if answer.error is not None or str(answer.tier) != entry.tier or entry.logits is None:
        return False
    if entry.tier == "worker" and answer.batch_size != entry.batch_size:
        return False
    (output,) = answer.outputs
    return bool(np.allclose(np.frombuffer(output.data, "<f4").reshape(output.shape), entry.logits, atol=TOLERANCE))


def breaches(stage: Stage, watch: FleetWatch) -> list[str]:
    """Tell what else does not hold: ceilings, leaked instances, messages left over."""
    found: list[str] = []
    if stage.ceilings_checked:
        most, dearest = max((s.running for s in watch.samples), default=0), max((s.usd_per_hour for s in watch.samples), default=0.0)
        if most > MAX_INSTANCES:
            found.append(f"{most} instances ran; the ceiling is {MAX_INSTANCES}")
        if dearest > MAX_HOURLY_COST_USD + ROUNDING_USD:
            found.append(f"${dearest:.3f}/h were spent; the ceiling is ${MAX_HOURLY_COST_USD:g}/h")
    if stage.is_gone:
        return found
    give_up_at_s = time.monotonic() + SETTLE_WITHIN_S
    while (left := patiently(partial(left_over, stage))) and time.monotonic() < give_up_at_s:
        time.sleep(1.0)
    return found + left


def left_over(stage: Stage) -> list[str]:
    """Tell what is still there that should not be."""
    found: list[str] = []
    alive = {i.instance_id for i in wiring.instances().list() if i.is_alive}
    if leaked := set(running_instances(stage.system.config.stack_name)) - alive:
        found.append(f"EC2 runs what the registry does not: {', '.join(sorted(leaked))}")
    waiting = {record.model: messages_in(record.queue_url) for record in wiring.models().list()}
    found += [f"{count} messages are left in the work queue of {model}" for model, count in waiting.items() if count]
    dead = messages_in(wiring.settings().dead_letter_queue_url)
    if dead != stage.explained_dead_letters:
        found.append(f"{dead} dead letters; {stage.explained_dead_letters} are explained by the scenario")
    return found
