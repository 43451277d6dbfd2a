"""Family 3: EC2 has no capacity, throttles, or gives machines that never serve."""

from __future__ import annotations

import time
from collections.abc import Generator

from chaos.runner import forget_dry_pools
from chaos.scenario import FLOOR_ALL, FLOOR_ONE, scenario
from chaos.stage import WORKERS, Stage
from local.faults import Fault

DRY = "InsufficientInstanceCapacity"
THROTTLED = "RequestLimitExceeded"
BLACK_HOLE = ("sleep", "600")
"""A machine that boots and never serves."""


@scenario("spot-pools-dry", family=3, floor=FLOOR_ONE)
def spot_pools_dry(stage: Stage) -> Generator[None, None, None]:
    """Every spot pool is out of capacity when a worker dies; the replacement is bought on demand."""
    stage.ec2_faults(Fault(action="ec2:CreateFleet", effect="dry", mentions="DefaultTargetCapacityType=spot", code=DRY))
    since_s = time.time()
    stage.kill(stage.workers()[:1])
    yield
    stage.wait("a dry pool is noticed", lambda: stage.events("capacity_unavailable", since_s=since_s), within_s=40.0)


@scenario("all-pools-dry", family=3, hold_s=18.0, recover_within_s=60.0, floor=FLOOR_ALL)
def all_pools_dry(stage: Stage) -> Generator[None, None, None]:
    """Every pool of every type is dry while all workers die; Lambda serves for as long as that lasts."""
    stage.ec2_faults(Fault(action="ec2:CreateFleet", effect="dry", code=DRY))
    stage.kill(stage.workers())
    yield
    stage.ec2_faults()
    forget_dry_pools()
    stage.note("pools are set aside for 3 minutes, which this scenario does not wait for")


@scenario("partial-fulfilment", family=3, floor=FLOOR_ALL)
def partial_fulfilment(stage: Stage) -> Generator[None, None, None]:
    """Every fleet request gets one instance, however many it asks for; the rest comes from other pools."""
    stage.ec2_faults(Fault(action="ec2:CreateFleet", effect="partial"))
    stage.kill(stage.workers())
    yield


@scenario("ec2-throttled", family=3, hold_s=15.0, recover_within_s=60.0, floor=FLOOR_ONE)
def ec2_throttled(stage: Stage) -> Generator[None, None, None]:
    """EC2 refuses two of three calls for 15 s while a worker dies; the control cycle goes on trying."""
    stage.ec2_faults(Fault(action="ec2:*", effect="error", share=0.67, code=THROTTLED, status=503))
    stage.kill(stage.workers()[:1])
    yield
    stage.ec2_faults()


@scenario("launch-never-serves", family=3, recover_within_s=120.0, floor=FLOOR_ONE)
def launch_never_serves(stage: Stage) -> Generator[None, None, None]:
    """The replacement of a dead worker boots and never serves; it is given up, and another one is bought."""
    fleet, start_worker, since_s = stage.system.fleet, stage.system.fleet.start_worker, time.time()
    fleet.start_worker = fleet.processes.starter(BLACK_HOLE)
    known = {i.instance_id for i in fleet.instances()}
    try:
        stage.kill(stage.workers()[:1])
        stage.wait("it boots", lambda: [i for i in fleet.instances() if i.instance_id not in known and i.process], within_s=60.0)
    finally:
        fleet.start_worker = start_worker
    yield
    stage.wait(
        "it is given up and replaced",
        lambda: (
            any("does not serve" in d.reason for d in stage.events("instance_failed", since_s=since_s)) and len(stage.serving()) >= WORKERS
        ),
        within_s=110.0,
    )
