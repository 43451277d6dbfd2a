"""Real servers on loopback, and the models they serve."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

START_TIMEOUT_S = 90.0
REPOSITORY = Path(__file__).resolve().parents[2]


class Doubler(nn.Module):  # type: ignore[misc]  # torch is untyped here
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Picky(nn.Module):  # type: ignore[misc]
    """Raises on a row that holds a negative number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x < 0).any()):
            raise ValueError("negative input")
        return x + 1


class Slow(nn.Module):  # type: ignore[misc]
    """Takes some tens of milliseconds, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((700, 700), 1 / 700))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.ones(700, 700)
        for _ in range(4):
            state = state @ self.weight
        return x * state[0, 0].round()


def save(module: nn.Module, path: Path, **manifest: Any) -> Path:
    """Write a TorchScript file and the manifest beside it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.jit.script(module).save(str(path))
    content = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}], **manifest}
    path.with_suffix(".json").write_text(json.dumps(content))
    return path


@dataclass
class Running:
    """A server that serves."""

    process: subprocess.Popen[str]
    host: str
    port: int
    log: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """One request on a connection of its own: status, body (decoded when JSON), headers in lower case."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, body=data, headers={name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            content = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            is_json = found.get("content-type", "").startswith("application/json") and content
            return response.status, json.loads(content) if is_json else content, found
        finally:
            connection.close()

    def infer(self, rows: Sequence[Sequence[float]], model: str = "doubler", **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Ask a model of rows of four numbers."""
        data = [value for row in rows for value in row]
        entry = {"name": "x", "datatype": "FP32", "shape": [len(rows), 4], "data": data}
        return self.ask("POST", f"/v2/models/{model}/infer", {"inputs": [entry]}, **headers)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def serving(*models: Path, options: Sequence[str] = ()) -> Iterator[Running]:
    """Run `markserve serve` until the block ends."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "layers/markserve"), str(REPOSITORY)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cli.main", "serve", *map(str, models), "--port", "0", "--threads", "1", "--json", *options]
    process = subprocess.Popen(  # noqa: S603  # our own command
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    log: list[str] = []
    assert process.stderr is not None
    assert process.stdout is not None
    reader = threading.Thread(target=lambda lines: log.extend(lines), args=(process.stderr,), daemon=True)
    reader.start()
    timer = threading.Timer(START_TIMEOUT_S, process.kill)
    timer.start()
    try:
        text = ""
        for line in process.stdout:
            text += line
            if line.startswith("}"):
                break
        timer.cancel()
        assert text, f"the server did not start: {log}"
        url = urlsplit(json.loads(text)["url"])
        yield Running(process, str(url.hostname), int(url.port or 0), log)
    finally:
        timer.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)
        process.stdout.close()
        process.stderr.close()
