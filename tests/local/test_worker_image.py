"""Workers that are forked, not started: as separate, as killable and as accounted for as any process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from local.fleet import FAILED_TO_SERVE
from local.processes import ProcessLedger, reap
from local.worker_image import NICENESS, WorkerImage
from tests.processes import has_ended

WORKER = {"MARKSERVE_INSTANCE_ID": "i-1", "MARKSERVE_INSTANCE_TYPE": "c5.large", "MARKSERVE_MODEL": "digits", "MARKSERVE_STACK_NAME": "s"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("image")


@pytest.fixture(scope="module")
def ledger(folder: Path) -> ProcessLedger:
    return ProcessLedger(folder / "processes.json")


@pytest.fixture(scope="module")
def image(ledger: ProcessLedger, folder: Path) -> Iterator[WorkerImage]:
    image = WorkerImage.start(ledger=ledger, env=dict(os.environ), log_path=folder / "worker-image.log")
    yield image
    image.close()
    assert has_ended(image.process.pid)


@pytest.fixture
def waiting() -> Iterator[dict[str, str]]:
    """Environment of a worker that waits for an AWS that never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        aws = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
        yield {**os.environ, **WORKER, **aws, "MARKSERVE_MODELS_TABLE": "models"}


def test_worker_runs_with_its_own_environment_and_log_and_its_exit_code_is_known(image: WorkerImage, tmp_path: Path) -> None:
    log_path = tmp_path / "logs" / "worker.log"

    worker = image.boot("i-1", {"MARKSERVE_INSTANCE_TYPE": "never.seen"}, log_path)

    assert worker.wait(timeout=60) == FAILED_TO_SERVE
    assert "no CPU share for instance type 'never.seen'" in log_path.read_text()


def test_worker_is_a_session_of_its_own_that_yields_to_others(image: WorkerImage, waiting: dict[str, str], tmp_path: Path) -> None:
    worker = image.boot("i-1", waiting, tmp_path / "worker.log")

    deadline_s = time.monotonic() + 30
    while os.getsid(worker.pid) != worker.pid or psutil.Process(worker.pid).nice() != NICENESS:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert worker.poll() is None

    worker.kill()
    worker.wait(timeout=60)


@pytest.mark.parametrize(("end", "number"), [("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)])
def test_signal_that_ended_a_worker_is_its_exit_code(
    end: str, number: int, image: WorkerImage, waiting: dict[str, str], tmp_path: Path
) -> None:
    workers = [image.boot(f"i-{n}", waiting, tmp_path / f"worker-{n}.log") for n in range(2)]

    with pytest.raises(subprocess.TimeoutExpired):
        workers[0].wait(timeout=0.05)
    getattr(workers[0], end)()

    assert workers[0].wait(timeout=60) == -number
    assert workers[1].poll() is None
    workers[0].kill()  # ended already: nobody else is hit
    workers[1].kill()
    assert workers[1].wait(timeout=60) == -signal.SIGKILL


def test_worker_is_in_the_ledger_while_it_runs(image: WorkerImage, waiting: dict[str, str], folder: Path, tmp_path: Path) -> None:
    worker = image.boot("i-listed", waiting, tmp_path / "worker.log")

    assert b"i-listed" in (folder / "processes.json").read_bytes()
    assert image.ledger.stop(worker, grace_s=60) == -signal.SIGTERM
    assert b"i-listed" not in (folder / "processes.json").read_bytes()


def test_system_that_crashed_leaves_workers_that_the_next_one_ends(tmp_path: Path, waiting: dict[str, str]) -> None:
    path = tmp_path / "processes.json"
    image = WorkerImage.start(ledger=ProcessLedger(path), env=dict(os.environ), log_path=tmp_path / "worker-image.log")
    worker = image.boot("i-1", waiting, tmp_path / "worker.log")
    image.process.kill()
    image.process.wait()

    assert {record.name for record in reap(path)} == {"i-1"}
    assert has_ended(worker.pid)
    with pytest.raises(RuntimeError, match=r"worker-image\.log"):
        image.boot("i-2", waiting, tmp_path / "worker.log")
    assert worker.poll() == -signal.SIGKILL
    image.pipe.close()
