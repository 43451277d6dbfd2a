"""Family 6: Lambda is at its limit, slow or broken just when it is needed."""

from __future__ import annotations

import time
from collections.abc import Generator

from chaos.scenario import scenario
from chaos.stage import Stage
from local.faults import Fault


@scenario("lambda-limit", family=6, unjudged="overload")
def lambda_limit(stage: Stage) -> Generator[None, None, None]:
    """All workers die, the load doubles, and the spillover function may run once at a time; the rest is refused, not lost."""
    lambda_, name = stage.system.client("lambda"), stage.system.deployment.outputs["SpilloverFunctionName"]
    lambda_.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    try:
        stage.kill(stage.workers())
        with stage.burst(2.0):
            time.sleep(8.0)
    finally:
        lambda_.delete_function_concurrency(FunctionName=name)
    yield


@scenario("spillover-slow", family=6, hold_s=8.0, unjudged="every spill waits")
def spillover_slow(stage: Stage) -> Generator[None, None, None]:
    """All workers die and the spillover function takes 3 s longer: late answers, each of them once."""
    stage.function_faults("spillover", Fault(action="lambda:Invoke", effect="delay", delay_s=3.0))
    stage.kill(stage.workers())
    yield
    stage.function_faults("spillover")


@scenario("spillover-fails", family=6, hold_s=8.0, unjudged="no way out")
def spillover_fails(stage: Stage) -> Generator[None, None, None]:
    """One worker dies and every spill fails: the other worker has to do; what it cannot is refused with 503."""
    stage.function_faults("spillover", Fault(action="lambda:Invoke", effect="error", code="RuntimeError"))
    stage.kill(stage.workers()[:1])
    yield
    stage.function_faults("spillover")


@scenario("front-times-out", family=6, unjudged="meant to be late")
def front_times_out(stage: Stage) -> Generator[None, None, None]:
    """Workers freeze beyond every deadline and spilling fails, so fronts give up; then the workers answer late, to nobody's confusion."""
    victims = stage.workers()
    stage.function_faults("spillover", Fault(action="lambda:Invoke", effect="error", code="RuntimeError"))
    stage.freeze(victims)
    time.sleep(4.0)
    stage.thaw(victims)
    stage.function_faults("spillover")
    yield
