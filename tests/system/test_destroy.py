"""`markserve destroy` on a running local system: whatever a stack made is gone, and the command proves it."""

from __future__ import annotations

import boto3
import pytest

from cli.teardown import take_inventory, tear_down
from local.system import LocalSystem
from markserve import wiring
from tests.system.live import eventually, serving

pytestmark = pytest.mark.system


def test_destroy_ends_instances_queues_objects_parameters_and_the_stack(running: LocalSystem) -> None:
    running.reconnect()
    others = take_inventory("markserve").parameters  # what other tests have set
    wiring.parameter_writer().put("headroom", "1.1", model="digits")
    eventually("a worker serves", serving, within_s=120.0)

    before = take_inventory("markserve")
    assert before.stack_status == "CREATE_COMPLETE"
    assert before.instances
    assert before.work_queues
    assert before.objects
    assert set(before.parameters) == {*others, "/markserve/models/digits/headroom"}
    steps: list[str] = []
    left = tear_down("markserve", steps.append)

    assert left.is_empty, left
    assert steps[0] == "turning launches off"
    assert not boto3.client("dynamodb").list_tables()["TableNames"]
    assert not boto3.client("lambda").list_functions()["Functions"]
    assert take_inventory("markserve").is_empty
