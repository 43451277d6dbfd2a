"""Family 8: what operators do by mistake."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import requests

from chaos.ledger import GONE
from chaos.scenario import FLOOR_ONE, scenario
from chaos.stage import MAX_INSTANCES, Stage
from chaos.workers import register_twin
from cli.console import Problem
from cli.destroy import refuse_under_load
from cli.rollout import rollout_ports
from cli.traffic import recent_requests
from markserve import rollout, wiring
from markserve.core.types import InstanceState

STAYING = (InstanceState.REQUESTED, InstanceState.WARMING, InstanceState.SERVING)
LOWERED_WITHIN_S = 20.0


def _lower(stage: Stage, name: str, text: str) -> Generator[None, None, None]:
    """Lower a ceiling to one worker, see the fleet drain down to it, and raise it again."""
    stage.ceilings_checked = False
    since_s = time.time()
    stage.put_parameters({name: text})
    stage.wait(
        "the fleet is down to one worker",
        lambda: sum(i.state in STAYING for i in wiring.instances().list()) == 1 and stage.events("instance_draining", since_s=since_s),
        within_s=LOWERED_WITHIN_S,
    )
    stage.note(f"down to one worker within {time.time() - since_s:.0f} s")
    yield


@scenario("ceiling-lowered", family=8, hold_s=6.0, short=True, floor=FLOOR_ONE)
def ceiling_lowered(stage: Stage) -> Generator[None, None, None]:
    """`max-instances` is set to 1 while two workers serve: one drains at once; set back, it is replaced."""
    yield from _lower(stage, "max-instances", "1")
    stage.put_parameters({"max-instances": str(MAX_INSTANCES)})


@scenario("spend-ceiling-lowered", family=8, hold_s=6.0, floor=FLOOR_ONE)
def spend_ceiling_lowered(stage: Stage) -> Generator[None, None, None]:
    """`max-hourly-cost-usd` is set below what two workers cost: one drains at once; set back, it is replaced."""
    rents = sorted(i.offering.price_usd_per_hour for i in wiring.instances().list() if i.state in STAYING)
    yield from _lower(stage, "max-hourly-cost-usd", f"{rents[0] + rents[-1] / 2:.4f}" if len(rents) > 1 else "0.01")
    stage.put_parameters({"max-hourly-cost-usd": "1"})


@scenario("model-deleted", family=8, recover_within_s=60.0, floor=FLOOR_ONE)
def model_deleted(stage: Stage) -> Generator[None, None, None]:
    """A second model is deleted with 20 accepted requests in its queue: all are answered, new ones get 404, its worker ends."""
    name = "shortlived"
    stage.make_room()
    register_twin(stage.system, name)
    stage.wait("a worker serves it", lambda: stage.serving(name), within_s=60.0)
    url = f"{stage.ledger.endpoint}/v2/models/{name}/infer"
    headers = {"Content-Type": "application/json", "Prefer": "respond-async"}
    accepted = [requests.post(url, data=q.body, headers=headers, timeout=30) for q in list(stage.ledger.questions)[:20]]
    rollout.delete_model(name, rollout_ports(), force=True)
    answers = [requests.get(stage.ledger.endpoint + a.headers["Location"], timeout=30).status_code for a in accepted]
    late = requests.post(url, data=stage.ledger.questions[0].body, headers=headers, timeout=30).status_code
    stage.note(f"{answers.count(200)} of {len(accepted)} accepted requests answered; a request after that got {late}")
    if answers.count(200) != len(accepted) or late != 404:
        raise AssertionError(stage.notes[-1])
    # Slow to scale in, here: what no model wants is let go at once.
    stage.put_parameters({"scale-in-cycles": "1"})
    stage.wait("its worker has ended", lambda: not [i for i in wiring.instances().list(name) if i.is_alive], within_s=40.0)
    yield


@scenario("stack-destroyed", family=8, last=True, unjudged="API closed")
def stack_destroyed(stage: Stage) -> Generator[None, None, None]:
    """`markserve destroy` refuses under load; told to go on, it closes the API, has what was accepted answered, and ends the rest."""
    from cli.teardown import tear_down

    name = stage.system.config.stack_name
    stage.wait("the load is known", lambda: recent_requests(stage.ledger.model), within_s=20.0)
    try:
        refuse_under_load(name)
    except Problem as refusal:
        stage.note(f"refused at first: {refusal}")
    else:
        raise AssertionError("destroy did not refuse under load")
    stage.ledger.refusals |= GONE
    stage.is_gone = True
    stage.ceilings_checked = False
    ending = threading.Timer(8.0, stage.ledger.stop_sending)
    ending.start()
    steps: list[str] = []
    left = tear_down(name, steps.append)
    stage.note(f"then, in order: {', '.join(step.split(';')[0] for step in steps[:4])}")
    if not left.is_empty:
        raise AssertionError(f"destroyed, but left: {left}")
    yield
    ending.join()
