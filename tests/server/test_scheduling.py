"""How front and model are scheduled on a core they share."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from server import scheduling

LINUX = hasattr(os, "SCHED_BATCH")


@pytest.mark.skipif(not LINUX, reason="a policy of Linux")
def test_front_preempts_nobody_and_the_model_it_starts_is_scheduled_as_usual() -> None:
    code = (
        "import os; from server import scheduling; scheduling.yielding(); front = os.sched_getscheduler(0); "
        "scheduling.interactive(); print(front == os.SCHED_BATCH, os.sched_getscheduler(0) == os.SCHED_OTHER)"
    )
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)  # noqa: S603  # our own code

    assert done.stdout.split() == ["True", "True"]


@pytest.mark.skipif(not LINUX, reason="a policy of Linux")
def test_server_goes_on_where_a_sandbox_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def refuse(pid: int, policy: int, param: os.sched_param) -> None:
        asked.append(policy)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)

    scheduling.yielding()

    assert asked == [os.SCHED_BATCH]
