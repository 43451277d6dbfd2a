"""Family 4: what decides fails: forecast, planner, events, clocks."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from chaos.scenario import FLOOR_ONE, scenario
from chaos.stage import WORKERS, Stage
from local.faults import Fault
from local.model_setup import MODEL
from markserve import wiring
from markserve.messages import ForecastRecord

ABSURD_RPS = 1e9
NONSENSE_S = 12.0
SKEW_S = 2.0
CYCLES_AT_ONCE = 4
REPEATS = 5


@scenario("forecast-fails", family=4, hold_s=12.0, floor=FLOOR_ONE)
def forecast_fails(stage: Stage) -> Generator[None, None, None]:
    """Every forecast fails while a worker dies; the plan uses the last forecast and replaces it."""
    stage.function_faults("forecast", Fault(action="lambda:Invoke", effect="error", code="RuntimeError"))
    stage.kill(stage.workers()[:1])
    yield


@scenario("forecast-slow", family=4, hold_s=12.0, unjudged="late replacement")
def forecast_slow(stage: Stage) -> Generator[None, None, None]:
    """Every forecast takes 10 s more, so that cycles fall behind, while a worker dies."""
    stage.function_faults("forecast", Fault(action="lambda:Invoke", effect="delay", delay_s=10.0))
    stage.kill(stage.workers()[:1])
    yield


@scenario("forecast-nonsense", family=4, floor=FLOOR_ONE)
def forecast_nonsense(stage: Stage) -> Generator[None, None, None]:
    """The forecast says a billion requests a second, then nothing, then negative rates, while a worker dies; ceilings hold."""
    since_s = time.time()
    stage.kill(stage.workers()[:1])
    until_s = since_s + NONSENSE_S
    rates = [ABSURD_RPS, 0.0, -5.0]
    while time.time() < until_s:
        for rate in rates:
            wiring.control().put_forecast(_forecast(rate))
            time.sleep(0.5)
    plans = wiring.control().plans(since_s=since_s, until_s=time.time())
    stage.note(f"{len(plans)} plans were made on nonsense")
    if not plans:
        raise AssertionError("no plan was made while the forecast was nonsense")
    yield


def _forecast(rate_rps: float) -> ForecastRecord:
    now_s = time.time()
    rates: dict[str, tuple[float, ...]] = dict.fromkeys(("0.5", "0.9", "0.98"), (rate_rps,) * 6)
    return ForecastRecord(model=MODEL, origin_at_s=now_s, step_s=3.0, rates_rps=rates, forecaster="nonsense", reason="a fault on purpose")


@contextmanager
def _broken(stage: Stage, function: str) -> Iterator[None]:
    """Deploy a function with the name of a table that does not exist."""
    lambda_ = stage.system.client("lambda")
    variables = lambda_.get_function_configuration(FunctionName=function)["Environment"]["Variables"]
    wrong = {**variables, "MARKSERVE_CONTROL_TABLE": "there-is-no-such-table"}
    lambda_.update_function_configuration(FunctionName=function, Environment={"Variables": wrong})
    try:
        yield
    finally:
        lambda_.update_function_configuration(FunctionName=function, Environment={"Variables": variables})


@scenario("planner-fails", family=4, floor=FLOOR_ONE)
def planner_fails(stage: Stage) -> Generator[None, None, None]:
    """The planner fails for 12 s (deployed with a wrong table) while a worker dies; what serves goes on serving."""
    with _broken(stage, stage.system.deployment.outputs["PlanFunctionName"]):
        stage.kill(stage.workers()[:1])
        time.sleep(12.0)
    yield


@scenario("cycles-overlap", family=4, floor=FLOOR_ONE)
def cycles_overlap(stage: Stage) -> Generator[None, None, None]:
    """Four control cycles at once, three times over, while a worker dies; it is replaced once."""
    since_s = time.time()
    stage.kill(stage.workers()[:1])
    for _ in range(3):
        for _ in range(CYCLES_AT_ONCE):
            stage.system.ticker.trigger("manual")
        time.sleep(2.0)
    yield
    stage.wait("the fleet is whole", lambda: len(stage.serving()) >= WORKERS, within_s=60.0)
    launched = len(stage.events("instance_launched", since_s=since_s))
    stage.note(f"{launched} launched for one dead worker")
    if launched > 2:  # a second one may be for the load: every cycle planning for itself would launch twelve
        raise AssertionError(f"{launched} instances were launched to replace one")


@scenario("events-repeated", family=4, floor=FLOOR_ONE)
def events_repeated(stage: Stage) -> Generator[None, None, None]:
    """EC2's and workers' events come five times, backwards, and hours late; nothing changes but what they say once."""
    (victim, *_) = stage.workers()
    since_s = time.time()
    stage.kill([victim])
    stage.wait("it is given up and replaced", stage.is_whole, within_s=60.0)
    ended = next(i for i in wiring.instances().list(MODEL) if i.instance_id == victim.instance_id)
    alive = {w.instance_id for w in stage.workers()}
    bus = stage.system.fleet.events
    for _ in range(REPEATS):
        for state in ("terminated", "shutting-down", "running", "pending"):
            bus.state_changed(ended.instance_id, state)
        for instance_id in alive:
            bus.state_changed(instance_id, "running")
            bus.state_changed(instance_id, "pending")
        bus.interruption_warned(ended.instance_id, zone=ended.offering.zone)
    late = {"schema_version": 1, "model": MODEL, "instance_id": ended.instance_id, "at_s": since_s - 4 * 3600}
    stage.publish("markserve", "InstanceReady", late)
    stage.publish("markserve", "InstanceDrained", {**late, "reason": "hours ago"})
    stage.publish("aws.ec2", "EC2 Instance State-change Notification", {"instance-id": "i-0unknown", "state": "terminated"})
    yield
    time.sleep(4.0)
    if not alive <= {w.instance_id for w in stage.workers()}:
        raise AssertionError("repeated events ended workers that serve")


@scenario("clock-skew", family=4, recover_within_s=90.0, unjudged="deadlines misjudged")
def clock_skew(stage: Stage) -> Generator[None, None, None]:
    """One worker's clock is 2 s ahead and the other's 2 s behind; deadlines are misjudged, and answers stay right and single."""
    fleet, true_env = stage.system.fleet, stage.system.fleet.worker_env
    skewed: set[str] = set()
    try:
        for skew_s in (SKEW_S, -SKEW_S):
            fleet.worker_env = {**true_env, "MARKSERVE_LOCAL_CLOCK_SKEW_S": f"{skew_s:g}"}
            skewed |= _replace_one(stage, spared=skewed)
        time.sleep(8.0)
    finally:
        fleet.worker_env = true_env
    yield
    stage.kill([w for w in stage.workers() if w.instance_id in skewed])


def _replace_one(stage: Stage, *, spared: set[str]) -> set[str]:
    """Kill one worker that is not spared, and return what serves in its place."""
    before = {w.instance_id for w in stage.workers()}
    stage.kill([w for w in stage.workers() if w.instance_id not in spared][:1])
    found = stage.wait("a replacement serves", lambda: [w for w in stage.workers() if w.instance_id not in before], within_s=60.0)
    return {w.instance_id for w in found}
