"""Operators change parameters of a running system; a bad value changes nothing but the decision log."""

from __future__ import annotations

import time
import uuid

import pytest

from local.system import LocalSystem
from markserve import wiring
from tests.system.live import eventually, infer

pytestmark = pytest.mark.system

NAME = "rt-max-s"


def objective_of_a_request(system: LocalSystem) -> float:
    """Send a request and see within what time the front promised to answer it."""
    reply = infer(system, system.model.images[:1], {"Idempotency-Key": str(uuid.uuid4())})
    assert reply.status == 200, reply.body
    stored = wiring.results().get(reply.request_id)
    assert stored is not None
    assert stored.deadline_at_s is not None
    return stored.deadline_at_s - stored.accepted_at_s


def test_bad_value_is_refused_and_the_last_good_one_kept(system: LocalSystem) -> None:
    since_s = time.time()
    wiring.parameter_writer().put(NAME, "98")

    def refusal() -> str | None:
        infer(system, system.model.images[:1])
        log = wiring.control().decisions(since_s=since_s - 1, until_s=time.time() + 1)
        return next((d.reason for d in log if d.event == "parameter_refused" and d.subject.endswith(f"/{NAME}")), None)

    reason = eventually("the refusal is in the decision log", refusal)

    assert "98 is above the highest allowed value 29" in reason
    assert objective_of_a_request(system) == pytest.approx(system.config.rt_max_s)
    wiring.parameter_writer().put(NAME, f"{system.config.rt_max_s:g}")


def test_objective_changes_without_a_deployment(system: LocalSystem) -> None:
    deployed = system.client("cloudformation").describe_stacks(StackName=system.config.stack_name)["Stacks"][0].get("LastUpdatedTime")

    wiring.parameter_writer().put(NAME, "4.5")

    eventually("requests are promised an answer within 4.5 s", lambda: objective_of_a_request(system) == pytest.approx(4.5))
    wiring.parameter_writer().put(NAME, f"{system.config.rt_max_s:g}")
    eventually("requests are promised the old objective", lambda: objective_of_a_request(system) == pytest.approx(system.config.rt_max_s))
    stack = system.client("cloudformation").describe_stacks(StackName=system.config.stack_name)["Stacks"][0]
    assert stack.get("LastUpdatedTime") == deployed
