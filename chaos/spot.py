"""Family 2: spot instances that are taken back."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

from chaos.scenario import FLOOR_ALL, FLOOR_ONE, scenario
from chaos.stage import WORKERS, Stage
from local.fleet import LocalInstance

NOTICE_S = 6.0
"""Two minutes in AWS, where launches take minutes as well."""
BURST_FACTOR = 3.0
BURST_S = 5.0
SPOT_WITHIN_S = 60.0


def spot_workers(stage: Stage) -> list[LocalInstance]:
    """Find the workers on spot; those that an earlier fault had bought on demand are exchanged first."""
    others = [w.instance_id for w in stage.workers() if w.capacity_type != "spot"]
    if others:
        stage.system.client("ec2").terminate_instances(InstanceIds=others)
    return stage.wait(
        f"{WORKERS} workers serve on spot",
        lambda: found if len(found := [w for w in stage.workers() if w.capacity_type == "spot"]) >= WORKERS else None,
        within_s=SPOT_WITHIN_S,
    )


def interrupt(stage: Stage, victims: Sequence[LocalInstance]) -> None:
    """Give notice, and wait until it is over."""
    for victim in victims:
        stage.system.fleet.interrupt(victim.instance_id, notice_s=NOTICE_S, now_s=time.time())
        stage.victims.add(victim.instance_id)
    time.sleep(NOTICE_S)


@scenario("spot-one", family=2, floor=FLOOR_ONE)
def spot_one(stage: Stage) -> Generator[None, None, None]:
    """One spot instance is interrupted with notice; it drains, and a replacement is bought at once."""
    interrupt(stage, spot_workers(stage)[:1])
    yield


@scenario("spot-all", family=2, floor=FLOOR_ALL)
def spot_all(stage: Stage) -> Generator[None, None, None]:
    """Every spot instance is interrupted with notice; the pools are avoided, others are bought."""
    interrupt(stage, spot_workers(stage))
    yield


@scenario("spot-without-notice", family=2, floor=FLOOR_ONE)
def spot_without_notice(stage: Stage) -> Generator[None, None, None]:
    """Half of the spot fleet is gone at once, the notice having been lost; EC2's state change brings replacements."""
    victims = spot_workers(stage)
    for victim in victims[: len(victims) // 2]:
        stage.system.fleet.take_back(victim.instance_id)
        stage.victims.add(victim.instance_id)
    yield


@scenario("spot-all-in-burst", family=2, unjudged="overload")
def spot_all_in_burst(stage: Stage) -> Generator[None, None, None]:
    """Every spot instance is interrupted while the load trebles."""
    victims = spot_workers(stage)
    with stage.burst(BURST_FACTOR):
        interrupt(stage, victims)
        time.sleep(BURST_S)
    yield


@scenario("spot-rebalance", family=2, floor=FLOOR_ONE)
def spot_rebalance(stage: Stage) -> Generator[None, None, None]:
    """A rebalance recommendation comes 5 s ahead of the interruption; its pool is not bought from."""
    victims = spot_workers(stage)[:1]
    since_s = time.time()
    stage.system.fleet.recommend_rebalance(victims[0].instance_id, now_s=since_s)
    stage.wait("the recommendation is heeded", lambda: stage.events("rebalance_recommended", since_s=since_s), within_s=15.0)
    time.sleep(5.0)
    interrupt(stage, victims)
    yield
