"""A bad input, a killed worker, an interrupted spot instance: nothing is lost, and the fleet comes back."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import pytest
import torch

from local.fleet import LocalInstance
from local.system import LocalSystem
from markserve import wiring
from markserve.core.types import CapacityType, InstanceState
from markserve.messages import TensorSpec
from markserve.profiling import store_profile
from markserve.registration import ModelSpec, register_model
from tests.system.live import CLIENTS, Array, Reply, call, eventually, infer, messages_in, serving

pytestmark = pytest.mark.system

RECOVERY_S = 120.0
NOTICE_S = 6.0
PICKY = "picky"


class Picky(torch.nn.Module):
    """Doubles its input, and refuses batches with a row that begins with a negative number."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if bool((values[:, 0] < 0).any()):
            raise ValueError("a row begins with a negative number")
        return values * 2


def register_picky(system: LocalSystem) -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Picky()), buffer)
    register_model(
        ModelSpec(
            model=PICKY,
            artefact=buffer.getvalue(),
            inputs=(TensorSpec(name="image", datatype="FP32", shape=(-1, 4)),),
            outputs=(TensorSpec(name="doubled", datatype="FP32", shape=(-1, 4)),),
            max_batch_size=32,
        ),
        models=wiring.models(),
        blobs=wiring.blobs(),
        queues=wiring.work_queue_admin(),
        parameters=wiring.parameter_writer(),
        load=wiring.load_runner,
        now_s=time.time(),
    )
    for instance_type, points in system.record.profiles.items():  # the digits' are far above its own
        store_profile(wiring.models(), model=PICKY, instance_type=instance_type, points=points)


def test_input_on_which_the_model_raises_fails_alone_in_its_batch(system: LocalSystem) -> None:
    wiring.parameter_writer().put("rt-max-s", "10", model=PICKY)  # so that all of them fit into one batch
    # No instance until a request waits for one, and then a boot: the worker that comes up finds them all.
    wiring.parameter_writer().put("min-instances", "0", model=PICKY)
    # Whatever earlier tests made the digits' fleet grow to, there is room for one more.
    wiring.parameter_writer().put("max-instances", str(system.config.max_instances + 1))
    register_picky(system)
    rows: list[Array] = [np.full((1, 4), value, np.float32) for value in (1, 2, -3, 4, 5)]
    with ThreadPoolExecutor(max_workers=len(rows)) as clients:
        accepted = list(clients.map(lambda row: infer(system, row, {"Prefer": "respond-async"}, model=PICKY), rows))
    assert [reply.status for reply in accepted] == [202] * len(rows)

    def answered() -> list[Reply] | None:
        replies = [call(system.deployment.api_url + reply.headers["location"]) for reply in accepted]
        return None if any(reply.status == 202 for reply in replies) else replies

    replies = eventually("a worker answers for the new model", answered, within_s=RECOVERY_S)

    assert [reply.status for reply in replies] == [200, 200, 500, 200, 200]
    assert "a row begins with a negative number" in replies[2].body["error"]
    assert all(int(reply.headers["x-markserve-batch-size"]) == len(rows) for reply in replies)
    for row, reply in zip(rows, replies, strict=True):
        if reply.status == 200:
            np.testing.assert_array_equal(reply.logits(), 2 * row)
    eventually("the worker reports the failure", lambda: [i.stats.failed for i in serving(PICKY)] == [1])
    assert messages_in(wiring.settings().dead_letter_queue_url) == 0


def test_every_request_is_answered_when_no_worker_survives(system: LocalSystem) -> None:
    victims = workers(system)
    dead = {victim.instance_id for victim in victims}
    images = [system.model.images[i : i + 1] for i in range(4 * CLIENTS)]
    first_answer = threading.Event()

    with ThreadPoolExecutor(max_workers=CLIENTS) as clients:
        pending = [clients.submit(_infer_and_tell, system, image, first_answer.set) for image in images]
        assert first_answer.wait(timeout=30)
        for victim in victims:
            assert victim.process is not None
            os.kill(victim.process.pid, signal.SIGKILL)
        replies = [future.result() for future in as_completed(pending, timeout=120)]

    assert len(replies) == len(images)
    for reply in replies:
        if reply.status == 200:
            stored = wiring.results().get(reply.request_id)
            assert stored is not None
            assert stored.answer is not None
            assert str(stored.answer.tier) == reply.tier
        else:
            assert reply.status in (429, 503, 504)
            assert reply.body["error"]
    assert "lambda" in {reply.tier for reply in replies if reply.status == 200}

    eventually("another worker serves", lambda: [i for i in serving() if i.instance_id not in dead], within_s=RECOVERY_S)
    eventually("a worker answers again", lambda: infer(system, images[0]).headers.get("x-markserve-tier") == "worker")
    eventually("the dead are written off", lambda: dead <= ended_instances())
    eventually("nothing is left in the queue", lambda: messages_in(system.record.queue_url) == 0)


def test_interrupted_spot_workers_are_drained_and_replaced(system: LocalSystem) -> None:
    victims = workers(system)
    taken = {victim.instance_id for victim in victims}
    since_s = time.time()

    for victim in victims:
        system.fleet.interrupt(victim.instance_id, notice_s=NOTICE_S, now_s=since_s)

    eventually("they drain", lambda: taken <= {i.instance_id for i in wiring.instances().list("digits") if i.drain_at_s})

    def interrupted() -> set[str]:
        log = wiring.control().decisions(since_s=since_s - 1, until_s=time.time() + 1)
        return {d.subject for d in log if d.event == "instance_interrupted"}

    eventually("the interruptions are in the decision log", lambda: interrupted() == taken)
    (replacement, *_) = eventually(
        "a replacement serves", lambda: [i for i in serving() if i.instance_id not in taken], within_s=RECOVERY_S
    )
    assert replacement.requested_at_s >= since_s
    # Whichever plan found the gap first: the one that the interruption asked for is made as well, if only to find nothing left to buy.
    eventually(
        "the interruption's own plan",
        lambda: any(plan.trigger == "interruption" for plan in wiring.control().plans(since_s=since_s - 1, until_s=time.time() + 1)),
    )
    eventually("they are gone", lambda: taken <= ended_instances())
    eventually("the processes ended by themselves", lambda: [victim.exit_code for victim in victims] == [0] * len(victims))
    assert infer(system, system.model.images[:1]).status == 200


def _infer_and_tell(system: LocalSystem, image: Array, tell: Callable[[], None]) -> Reply:
    reply = infer(system, image)
    tell()
    return reply


def ended_instances() -> set[str]:
    return {i.instance_id for i in wiring.instances().list("digits") if i.state in (InstanceState.TERMINATED, InstanceState.FAILED)}


def workers(system: LocalSystem) -> list[LocalInstance]:
    """Find the serving workers of the digits model, all of them on spot."""
    instances = serving()
    assert {instance.offering.capacity_type for instance in instances} == {CapacityType.SPOT}
    ids = {instance.instance_id for instance in instances}
    return [known for known in system.fleet.instances() if known.instance_id in ids]
