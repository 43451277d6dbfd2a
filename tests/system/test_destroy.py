"""`markserve destroy` on a running local system: whatever a stack made is gone, and the command proves it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import boto3
import pytest

from cli.teardown import take_inventory, tear_down
from local.system import LocalSystem, SystemConfig
from tests.system.live import eventually, serving

pytestmark = pytest.mark.system


@pytest.fixture
def doomed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSystem]:
    config = SystemConfig(
        work_dir=tmp_path_factory.mktemp("doomed"),
        rt_max_s=2.0,
        max_instances=2,
        cycle_s=3.0,
        window_s=1.5,
        launch_delay_s=0.5,
        warm_api_environments=1,
        parameters={"min-instances": "1"},
    )
    environment = dict(os.environ)
    try:
        with LocalSystem(config=config, note=print) as system:
            yield system
    finally:
        os.environ.clear()
        os.environ.update(environment)


def test_destroy_ends_instances_queues_objects_parameters_and_the_stack(doomed: LocalSystem) -> None:
    boto3.client("ssm").put_parameter(Name="/markserve/models/digits/headroom", Value="1.1", Type="String")
    eventually("a worker serves", serving, within_s=120.0)

    before = take_inventory("markserve")
    assert before.stack_status == "CREATE_COMPLETE"
    assert before.instances
    assert before.work_queues
    assert before.objects
    assert before.parameters == ("/markserve/models/digits/headroom",)
    steps: list[str] = []
    left = tear_down("markserve", steps.append)

    assert left.is_empty, left
    assert steps[0] == "turning launches off"
    assert not boto3.client("dynamodb").list_tables()["TableNames"]
    assert not boto3.client("lambda").list_functions()["Functions"]
    assert take_inventory("markserve").is_empty
