"""What the documents tell a user to type, typed: the tutorial from end to end, then every other command on a running system."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from benchmarks.serving import workload
from tests.docs.commands import REPOSITORY, RunBy, commands, rules_for, sequence
from tests.system.live import call, eventually

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(900)]

BIN = Path(sys.executable).parent
TIMEOUT_S = 800.0
WITHOUT_A_SYSTEM = r"make demo|markserve (serve|chaos|report) .*|markserve simulate .*"
"""Bring what they need with them, and would share the cores with a system that runs."""
SLACK = {r"make demo": ["RATE=2", "RT_MAX=10"], r"markserve serve .*": ["--rt-max", "20", "--port", "0"]}
"""Added to a command: whether an objective can be kept here is not for a test on a shared machine, and a port may be taken."""
SHARES = {"c5.large": 0.016, "c5.xlarge": 0.0276, "c7i.xlarge": 0.0276, "m7i.large": 0.016}
"""The local system emulates c5 alone, unless it is told how fast others are."""
BEFORE = {
    r"markserve characterize digits --measure .*": ["markserve params set max-instances 8"],
    r"markserve models promote digits 2 --canary 0\.1": ["markserve models register digits again.pt --hold {tensors}"],
    # The page says "or": rolled back, version 1 is the live one, which nobody can delete.
    r"markserve models delete digits --version 1": ["markserve models promote digits 2"],
}
"""What has to come first that the page takes for granted."""
DIGITS = "--input image:FP32:-1,1,8,8 --output logits:FP32:-1,10"


TUTORIAL = sequence("tutorial.md")
ALONE = [c for c in commands(RunBy.SYSTEM) if re.fullmatch(WITHOUT_A_SYSTEM, c) and c not in TUTORIAL]
START_AND_END = ["make up", "make down", "markserve up", "markserve down"]
ON_IT = [c for c in commands(RunBy.SYSTEM) if c not in (*ALONE, *START_AND_END, *TUTORIAL)]


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """A folder as a user of the repository has it, and what belongs to the commands typed there."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def command_line(self, command: str) -> list[str]:
        program, *arguments = shlex.split(command)
        arguments += [more for pattern, slack in SLACK.items() if re.fullmatch(pattern, command) for more in slack]
        if program == "make":  # its commands, with the virtual environment that there is
            return ["make", "-s", "-o", "setup", f"VENV={BIN.parent}", *arguments]
        if program == "curl":  # as a shell would, which reads what the reader has set
            return ["curl", *(Template(argument).substitute(self.environment) for argument in arguments)]
        return [sys.executable if program == "python" else str(BIN / program), *arguments]

    def type(self, command: str) -> str:
        """Run a command to its end; return what it printed."""
        done = subprocess.run(  # noqa: S603  # from our own documents
            self.command_line(command),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        printed = done.stdout + done.stderr
        assert done.returncode == 0, f"{command}\n{printed}"
        assert "Traceback" not in printed
        return printed

    def type_and_read(self, command: str) -> str:
        """Run a documented command, and see that it says what its rule wants."""
        (rule,) = rules_for(command)
        printed = self.type(command)
        assert re.search(rule.says, printed, re.MULTILINE), f"{command}\ndoes not say {rule.says}:\n{printed}"
        return printed


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("Makefile", "examples", "simulator", "pyproject.toml"):
        (folder / name).symlink_to(REPOSITORY / name)
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("AWS_", "MARKSERVE_"))}
    environment = {
        **inherited,
        "MARKSERVE_LOCAL_DIR": str(folder / ".markserve"),
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / part) for part in ("layers/markserve", "clients/python", ".")),
        "BROWSER": "true",  # a browser that opens nothing
        "COLUMNS": "200",
        "MARKSERVE_LOCAL_CPU_SHARES": json.dumps(SHARES),
    }
    return Workplace(folder=folder, environment=environment)


def test_tutorial_leads_from_a_module_to_an_answer(workplace: Workplace) -> None:
    steps = TUTORIAL
    printed: dict[str, str] = {}
    try:
        for step in steps:
            printed[step] = workplace.type_and_read(step)
    finally:
        left = _processes(workplace)
        stopped = subprocess.run(workplace.command_line("markserve down"), env=workplace.environment, capture_output=True, text=True)  # noqa: S603
    assert [step.split()[1] for step in steps if step.startswith("markserve")] == [
        "up", "models", "profile", "simulate", "params", "infer", "down"
    ]  # fmt: skip
    assert len(steps) < 10

    # What the script prints is what the page has one type next.
    (made,) = (text for step, text in printed.items() if step.startswith("python"))
    assert made.split() == next(step for step in steps if " register " in step).split()
    (answer,) = (text for step, text in printed.items() if " infer " in step)
    assert re.search(rf"digit INT64 \[1\].*│ 0 +│ {_unseen_digit()} ", answer, re.DOTALL)
    assert {"mark", "sagemaker", "all-lambda"} <= {path.name for path in (workplace.folder / "runs/digits-cnn").iterdir()}
    assert "nothing was running" in stopped.stdout
    assert left == []


def _unseen_digit() -> int:
    from examples.models.digits_cnn import make

    _, labels = make.digits()
    return int(labels[-make.HELD_OUT])


def _processes(workplace: Workplace) -> list[psutil.Process]:
    """What still runs of this workplace."""
    mine = str(workplace.folder)
    own = os.getpid()
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != own and process.environ().get("MARKSERVE_LOCAL_DIR", "").startswith(mine):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_every_command_for_a_system_is_in_one_of_the_tests_here() -> None:
    assert {*ALONE, *ON_IT, *START_AND_END, *TUTORIAL} == set(commands(RunBy.SYSTEM))
    assert {"make up", "make down"} <= set(sequence("README.md"))
    assert {"markserve up", "markserve down"} <= set(TUTORIAL)
    assert len(ON_IT) > 15


@pytest.mark.parametrize("command", [command for command in ALONE if not command.startswith("markserve serve ")])
def test_documented_command_does_what_it_says(workplace: Workplace, command: str) -> None:
    workplace.type_and_read(command)


@pytest.mark.parametrize("command", [command for command in ALONE if command.startswith("markserve serve ")])
def test_documented_server_answers_until_it_is_told_to_stop(workplace: Workplace, command: str) -> None:
    # The file alone: what it takes is for the command to say.
    built = workload.build(workplace.folder)
    built.model.with_suffix(".json").unlink()
    process = subprocess.Popen(  # noqa: S603  # from our own documents
        workplace.command_line(command), cwd=workplace.folder, env=workplace.environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        said = ""
        while not re.search(rules_for(command)[0].says, said):
            line = process.stderr.readline()
            assert line, f"it ended:\n{said}"
            said += line
        rest = threading.Thread(target=process.stderr.read)  # lest it waits for a reader
        rest.start()
        found = re.search(r"ready at (http://\S+):", said)
        assert found
        assert urlsplit(found[1]).hostname == "127.0.0.1"
        request = {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, len(built.inputs[0])], "data": built.inputs[0]}]}
        answer = call(f"{found[1]}/v2/models/lstm/infer", json.dumps(request).encode())
        assert answer.status == 200
        assert np.allclose(answer.body["outputs"][0]["data"], built.expected[0], atol=workload.TOLERANCE)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=TIMEOUT_S) == 0
        rest.join()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def running(workplace: Workplace) -> Iterator[Workplace]:
    """README's system, from `make up` to `make down`, with some load behind it and one that serves."""
    try:
        ready = re.search(r"^ready: (\S+)", workplace.type_and_read("make up"), re.MULTILINE)
        assert ready
        workplace.environment.update(URL=ready[1], KEY="a key, which the local system asks nobody for")
        workplace.type("markserve load digits --rate 3 --seconds 20 --rt-max 6")
        eventually("a worker serves", lambda: '"state": "serving"' in workplace.type("markserve status --json"), within_s=120.0)
        yield workplace
    finally:
        workplace.type_and_read("make down")
    assert _processes(workplace) == []


@pytest.mark.parametrize("command", ON_IT)
def test_documented_command_works_on_a_running_system(running: Workplace, command: str) -> None:
    for pattern, first in BEFORE.items():
        if re.fullmatch(pattern, command):
            _save_another_digits(running.folder / "again.pt")
            for one in first:
                running.type(one.format(tensors=DIGITS))

    running.type_and_read(command)


def _save_another_digits(path: Path) -> None:
    """Write a network of the same kind as the one that is served."""
    import warnings

    import torch

    class Reader(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.layer(image.flatten(1))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.jit.save(torch.jit.script(Reader().eval()), str(path))
