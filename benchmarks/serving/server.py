"""One contestant's processes: started on their core, sampled while loaded, ended to the last one."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.serving.contestants import PYTHON, Contestant, Knobs
from benchmarks.serving.generator import Generator, Question

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
METER = struct.Struct("=qqdd")
"""See `peers/model.py`, which cannot be imported here: it is the peers' side."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
CLOCK_HZ = os.sysconf("SC_CLK_TCK")


class CannotStart(Exception):
    """The server ended, or answered nothing right in time."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The server at one moment."""

    at_s: float
    rss_bytes: int
    """Summed over its processes, so shared pages count in each."""
    cpu_s: float
    core_busy_s: float
    """The whole core's, whoever used it."""


@dataclass(kw_only=True)
class Server:
    """A running contestant, as a context manager; `questions` fit its port."""

    contestant: Contestant
    python: Path
    model: Path
    knobs: Knobs
    core: int
    folder: Path
    questions: list[Question] = field(default_factory=list)
    port: int = field(default_factory=lambda: free_port())
    samples: list[Sample] = field(default_factory=list)
    first_answer_s: float = 0.0
    """How long one question takes an idle server, with all that asking it involves."""
    _process: subprocess.Popen[bytes] | None = None
    _family: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return ("127.0.0.1", self.port)

    @property
    def log(self) -> Path:
        """What it said."""
        return self.folder / f"{self.contestant.name}.log"

    @property
    def meter(self) -> Path:
        """Where a peer counts its model's calls."""
        return self.folder / f"{self.contestant.name}.meter"

    def __enter__(self) -> Server:
        names = {PYTHON: str(self.python), "{model}": str(self.model.absolute()), "{port}": str(self.port)}
        command = ["taskset", "-c", str(self.core), *(names.get(part, part) for part in self.contestant.command)]
        self.meter.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own command
                command, env=self._environment(), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(["layers/markserve", "."]) if not self.contestant.requirements else "",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "BENCH_PORT": str(self.port),
            "BENCH_MODEL": str(self.model.absolute()),
            "BENCH_METER": str(self.meter.absolute()),
            "BENTOML_HOME": str((self.folder / "bentoml").absolute()),
            "BENTOML_DO_NOT_TRACK": "True",
            "RAY_USAGE_STATS_ENABLED": "0",
            **self.knobs.environment,
            **self.contestant.environment,
            **self.contestant.mode_environment.get(self.knobs.mode, {}),
        }

    def wait_ready(self) -> float:
        """Ask until one answer is right; return the seconds it took.

        Raises
        ------
        CannotStart
            With the end of the server's log.
        """
        begin = time.monotonic()
        while time.monotonic() - begin < START_TIMEOUT_S:
            if self._process is not None and self._process.poll() is not None:
                raise CannotStart(f"{self.contestant.name} ended with {self._process.returncode}: {self._last_words()}")
            if self.answers_rightly():
                ready_s = time.monotonic() - begin
                self._remember_family()
                asked = time.monotonic()
                self.answers_rightly()
                self.first_answer_s = time.monotonic() - asked
                return ready_s
            time.sleep(0.25)
        raise CannotStart(f"{self.contestant.name} gave no right answer within {START_TIMEOUT_S:g} s: {self._last_words()}")

    def answers_rightly(self) -> bool:
        """Whether one request gets its expected output."""
        one = Generator(self.address, self.questions[:1], self.contestant.protocol.decode, tolerance=1e-3, connections=0)
        return list(one.run([0.0]).outcomes) == [1]

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1][:200] if lines else 'it said nothing'} (all of it in {self.log})"

    def _remember_family(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        root = psutil.Process(self._process.pid)
        for process in (root, *root.children(recursive=True)):
            self._family[process.pid] = process

    def sample(self) -> None:
        """Read memory and CPU from /proc: cheap enough to do between two sends."""
        rss_pages, ticks = 0, 0
        for pid in self._family:
            try:
                rss_pages += int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
                fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except (OSError, IndexError):
                continue
            ticks += int(fields[11]) + int(fields[12])
        self.samples.append(
            Sample(at_s=time.monotonic(), rss_bytes=rss_pages * PAGE_BYTES, cpu_s=ticks / CLOCK_HZ, core_busy_s=_core_busy_s(self.core))
        )

    def model_meter(self) -> tuple[int, int, float, float] | None:
        """Return calls, rows, clock and CPU seconds of the model so far; None for a server that does not count them."""
        try:
            calls, rows, wall_s, cpu_s = METER.unpack(self.meter.read_bytes())
        except (OSError, struct.error):
            return None
        return calls, rows, wall_s, cpu_s

    def stop(self) -> None:
        """End it politely, then by force whatever is left of it."""
        if self._process is None:
            return
        self._remember_family()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        _, alive = psutil.wait_procs([p for p in self._family.values() if p.is_running()], timeout=3)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=5)
        self._process = None


def _core_busy_s(core: int) -> float:
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _, _, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / CLOCK_HZ
    raise ValueError(f"no core {core} in /proc/stat")


def free_port() -> int:
    """Return a port nobody listens on, with its successor free as well (MLServer wants a second one)."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
