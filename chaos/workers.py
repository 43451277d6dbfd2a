"""Family 1: workers that die, hang, crawl, or cannot start."""

from __future__ import annotations

import time
from collections.abc import Generator

import boto3

from chaos.scenario import FLOOR_ALL, FLOOR_ONE, scenario
from chaos.stage import Stage
from local.digits import INPUTS, OUTPUTS
from local.system import LocalSystem
from markserve import wiring
from markserve.core.quarantine import FAILURES
from markserve.messages import ModelRecord
from markserve.profiling import store_profile
from markserve.registration import ModelSpec, register_model

SLOW_S = 10.0
STOPPED_S, RUNNING_S = 0.4, 0.1


@scenario("worker-killed", family=1, short=True, floor=FLOOR_ONE)
def worker_killed(stage: Stage) -> Generator[None, None, None]:
    """One worker is killed with SIGKILL under load; its requests are spilled, and it is replaced."""
    stage.kill(stage.workers()[:1])
    yield


@scenario("workers-killed", family=1, floor=FLOOR_ALL)
def workers_killed(stage: Stage) -> Generator[None, None, None]:
    """Every worker is killed at once; Lambda serves until others do."""
    stage.kill(stage.workers())
    yield


@scenario("worker-hangs", family=1, floor=FLOOR_ONE)
def worker_hangs(stage: Stage) -> Generator[None, None, None]:
    """One worker hangs, holding messages; its silence is noticed, it is terminated and replaced."""
    victims = stage.workers()[:1]
    since_s = time.time()
    stage.freeze(victims)
    stage.victims.add(victims[0].instance_id)
    yield
    stage.wait(
        "the hanging worker is given up",
        lambda: any(d.subject == victims[0].instance_id for d in stage.events("instance_failed", since_s=since_s)),
        within_s=40.0,
    )


@scenario("worker-slow", family=1, floor=FLOOR_ONE)
def worker_slow(stage: Stage) -> Generator[None, None, None]:
    """One worker gets a fifth of its processor for 10 s; what it cannot do in time goes elsewhere."""
    victims = stage.workers()[:1]
    until_s = time.monotonic() + SLOW_S
    while time.monotonic() < until_s:
        stage.freeze(victims)
        time.sleep(STOPPED_S)
        stage.thaw(victims)
        time.sleep(RUNNING_S)
    yield


def register_twin(system: LocalSystem, name: str) -> ModelRecord:
    """Register the digits model a second time, as a model of its own that wants one worker."""
    wiring.parameter_writer().put("min-instances", "1", model=name)
    record = register_model(
        ModelSpec(model=name, artefact=system.model.artefact, inputs=INPUTS, outputs=OUTPUTS, max_batch_size=32),
        models=wiring.models(),
        blobs=wiring.blobs(),
        queues=wiring.work_queue_admin(),
        parameters=wiring.parameter_writer(),
        load=wiring.load_runner,
        now_s=time.time(),
    )
    for instance_type, points in system.record.profiles.items():
        store_profile(wiring.models(), model=name, instance_type=instance_type, points=points)
    return record


@scenario("crash-loop", family=1, hold_s=12.0, floor=FLOOR_ONE)
def crash_loop(stage: Stage) -> Generator[None, None, None]:
    """A second model's artefact is damaged in the bucket: its workers cannot start; it is quarantined after three."""
    since_s = time.time()
    stage.make_room()
    record = register_twin(stage.system, "damaged")
    boto3.client("s3").put_object(Bucket=wiring.settings().artefacts_bucket, Key=record.artefact_key, Body=b"damaged")
    try:
        stage.wait("the model is quarantined", lambda: stage.events("model_quarantined", since_s=since_s), within_s=90.0)
        launched = wiring.instances().list("damaged")
        yield
        later = wiring.instances().list("damaged")
        stage.note(f"quarantined after {len(launched)} launches, {len(later) - len(launched)} in the 12 s after that")
        if len(later) > FAILURES + 1:
            raise AssertionError(f"{len(later)} instances were launched for a model that cannot start")
    finally:
        wiring.models().delete("damaged")
