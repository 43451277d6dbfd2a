"""`markserve up` to `markserve down`, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from local.supervisor import SystemState
from tests.processes import has_ended
from tests.system.conftest import is_open
from tests.system.live import eventually

pytestmark = pytest.mark.system

MARKSERVE = Path(sys.executable).parent / "markserve"
TOUR = Path(__file__).resolve().parents[2] / "examples/tours/operator.sh"
COMMAND_TIMEOUT_S = 200.0


def markserve(state_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MARKSERVE_LOCAL_DIR": str(state_dir)}
    return subprocess.run([MARKSERVE, *arguments], env=env, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)  # noqa: S603


def printed(state_dir: Path, *arguments: str) -> Any:
    done = markserve(state_dir, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_system_serves_between_up_and_down_and_leaves_nothing_behind(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    try:
        up = printed(state_dir, "up", "--rt-max", "2.5", "--max-instances", "2")
        state = msgspec.json.decode((state_dir / "state.json").read_bytes(), type=SystemState)
        supervisor = psutil.Process(state.process.pid)

        image = tmp_path / "image.npy"
        np.save(image, np.zeros((1, 1, 8, 8), np.float32))
        answer = printed(state_dir, "infer", "digits", str(image))
        assert [output["shape"] for output in answer["outputs"]] == [[1, 10]]

        status = printed(state_dir, "status")
        assert list(status["models"]) == ["digits"]
        assert status["models"]["digits"]["service"]["rt_max_s"] == 2.5
        assert status["api_url"] == up["api_url"]

        assert printed(state_dir, "params", "get", "max-instances") == {"max-instances": 2}
        assert printed(state_dir, "params", "set", "headroom", "1.2") == {"headroom": 1.2}
        assert printed(state_dir, "params", "get", "headroom") == {"headroom": 1.2}
        refused = markserve(state_dir, "params", "set", "headroom", "12")
        assert refused.returncode == 2
        assert "above the highest allowed value 3" in refused.stderr

        eventually("there is a plan to explain", lambda: markserve(state_dir, "explain").returncode == 0)
        assert printed(state_dir, "explain")["plan_id"].startswith("plan-")

        processes = [supervisor, *supervisor.children(recursive=True)]
    finally:
        stopped = printed(state_dir, "down")
    assert stopped == {"stopped": True}
    assert [process for process in processes if not has_ended(process)] == []
    assert not is_open(up["api_url"])
    assert markserve(state_dir, "status").returncode == 3


@pytest.mark.long
def test_operators_tour_and_measuring_run_on_a_system_of_their_own(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    try:
        printed(state_dir, "up", "--rt-max", "2.5", "--max-instances", "2")
        profile = tmp_path / "digits.json"
        printed(state_dir, "profile", "digits", "--batch-sizes", "1,8", "--samples", "5", "--out", str(profile))
        for source in (["digits"], ["--profile", str(profile), "--rt-max", "2.5"]):
            compared = printed(state_dir, "characterize", *source)
            assert {"c5.large", "c5.xlarge", "fargate-2vCPU", "lambda-1769MB", "e2-standard-2"} <= {e["rent"]["machine"] for e in compared}

        toured = subprocess.run(  # noqa: S603  # our own script
            [TOUR],
            env={**os.environ, "MARKSERVE_LOCAL_DIR": str(state_dir), "VENV": str(MARKSERVE.parent.parent), "SECONDS_OF_LOAD": "4"},
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert toured.returncode == 0, toured.stderr + toured.stdout
        assert "the front's log line is not there" not in toured.stdout
        assert "planned plan_id=plan-" in toured.stdout
    finally:
        printed(state_dir, "down")
