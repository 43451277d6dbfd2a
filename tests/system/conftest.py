"""The whole local system, started once for this folder: embedded AWS, deployed template, real Lambdas and workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from local.connection import connect
from local.system import LocalSystem, SystemConfig
from tests.processes import has_ended
from tests.system.live import CLIENTS, eventually, serving

WORKER_TIMEOUT_S = 120.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what starts a system of its own before the shared one starts, as two would share the cores; what destroys that one runs last."""
    here = [index for index, item in enumerate(items) if Path(__file__).parent in item.path.parents]
    ordered = sorted((items[index] for index in here), key=_turn)
    for index, item in zip(here, ordered, strict=True):
        items[index] = item


def _turn(item: pytest.Item) -> int:
    if item.path.name == "test_destroy.py":
        return 2
    return int("running" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSystem]:
    """Start the system, wait until the control cycle has brought a worker up; afterwards nothing of it is left."""
    config = SystemConfig(
        work_dir=tmp_path_factory.mktemp("system"),
        rt_max_s=2.0,
        max_instances=4,
        cycle_s=3.0,
        window_s=1.5,
        launch_delay_s=0.5,
        warm_api_environments=CLIENTS,
        # Spot, so that there is something to interrupt; slow to scale in, so that only what a test does ends a worker.
        parameters={"min-instances": "1", "spot-max-share": "1", "scale-in-cycles": "60"},
        # All of it under the template's roles; the default run, which has to be quick, has tests of its own for them.
        enforce_iam=bool(os.environ.get("MARKSERVE_TEST_ENFORCE_IAM")),
    )
    environment = dict(os.environ)
    own = psutil.Process()
    before = set(own.children(recursive=True))
    try:
        with LocalSystem(config=config, note=print) as system:
            eventually("a worker serves", serving, within_s=WORKER_TIMEOUT_S)
            yield system
            started = set(own.children(recursive=True)) - before
    finally:
        os.environ.clear()
        os.environ.update(environment)
    assert len(started) > 5
    assert [process for process in started if not has_ended(process)] == []
    assert not any(is_open(url) for url in (system.aws.endpoint_url, system.aws.ec2_endpoint_url))


@pytest.fixture
def system(running: LocalSystem, _fake_environment: None) -> LocalSystem:
    """The running system, with this process connected to it; whatever an earlier test ended is serving again."""
    connect(running.deployment.settings_env())
    eventually("a worker serves", serving, within_s=WORKER_TIMEOUT_S)
    return running


def is_open(url: str) -> bool:
    """Whether somebody listens at the URL's port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(url).port)) == 0
