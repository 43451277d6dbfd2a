"""One contestant under one load: the smallest step of the benchmark, with what must hold around it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.serving import arrivals
from benchmarks.serving.contestants import Contestant, Knobs
from benchmarks.serving.generator import MOST_CONNECTIONS, Generator
from benchmarks.serving.server import Sample, Server
from benchmarks.serving.summary import RT_MAX_S, RunSummary, summarise
from benchmarks.serving.workload import TOLERANCE, Workload

WARM_UP_S = 1.0
SETTLED_FACTOR = 5.0
"""A server is itself again when it answers within so many times what its first answer took."""
SETTLE_TIMEOUT_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run's figures and what the server's core did meanwhile."""

    summary: RunSummary
    server_share: float
    """Of its core, used by the server's processes."""
    foreign_share: float
    """Of its core, used by anybody else: above a few percent the run measures the neighbours as well."""
    model_share: float | None
    """Of its core's time, spent in the model; None where the server counts nothing."""
    mean_batch: float | None
    rss_bytes: int
    """The highest seen."""

    def as_json(self) -> dict[str, object]:
        """Flat, for the results file."""
        own = {key: value for key, value in asdict(self).items() if key != "summary"}
        return {**asdict(self.summary), **own, "generator_saturated": self.summary.is_generator_saturated}


@dataclass(kw_only=True)
class Bench:
    """Runs loads against one contestant, restarting it where it does not come back."""

    contestant: Contestant
    python: Path
    workload: Workload
    knobs: Knobs
    core: int
    folder: Path
    say: Callable[[str], None]
    may_repeat: bool = True
    restarts: int = 0
    ready_s: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    _server: Server | None = None

    def __enter__(self) -> Bench:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        self._server = Server(
            contestant=self.contestant, python=self.python, model=self.workload.model, knobs=self.knobs, core=self.core, folder=self.folder
        )
        self._server.questions = self.contestant.protocol.questions(self.workload, self._server.port)
        self._server.__enter__()
        try:
            self.ready_s = self._server.wait_ready()
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        if self._server:
            self.samples += self._server.samples
            self._server.stop()
            self._server = None

    def load(self, rate_rps: float, duration_s: float, seed: int, *, is_bursty: bool = False) -> Result:
        """Send one schedule; where the generator itself was late, once more if `may_repeat`."""
        result = self._load_once(rate_rps, duration_s, seed, is_bursty=is_bursty)
        if result.summary.is_generator_saturated and self.may_repeat:
            self.say(f"  the generator was late (p99 {result.summary.lag_p99_s * 1000:.1f} ms): once more")
            result = self._load_once(rate_rps, duration_s, seed, is_bursty=is_bursty)
        kind = "bursty " if is_bursty else ""
        self.say(f"  {kind}{rate_rps:7.1f}/s  {_line(result)}")
        return result

    def _load_once(self, rate_rps: float, duration_s: float, seed: int, *, is_bursty: bool) -> Result:
        server = self._settled()
        total_s = WARM_UP_S + duration_s
        schedule = (arrivals.mmpp if is_bursty else arrivals.poisson)(rate_rps, total_s, seed)
        connections = min(MOST_CONNECTIONS, math.ceil(rate_rps * RT_MAX_S * 1.5) + 16)
        generator = Generator(
            server.address,
            server.questions,
            self.contestant.protocol.decode,
            tolerance=TOLERANCE,
            connections=connections,
            tick=server.sample,
        )
        before, first = _model_counts(server), len(server.samples)
        server.sample()
        record = generator.run(schedule)
        server.sample()
        after, seen = _model_counts(server), server.samples[first:]
        elapsed_s = seen[-1].at_s - seen[0].at_s
        server_share = (seen[-1].cpu_s - seen[0].cpu_s) / elapsed_s
        core_share = (seen[-1].core_busy_s - seen[0].core_busy_s) / elapsed_s
        batches = after[0] - before[0] if before and after else 0
        return Result(
            summary=summarise(record, warm_up_s=WARM_UP_S, duration_s=total_s),
            server_share=server_share,
            foreign_share=max(0.0, core_share - server_share),
            model_share=(after[2] - before[2]) / elapsed_s if before and after else None,
            mean_batch=(after[1] - before[1]) / batches if before and after and batches else None,
            rss_bytes=max(sample.rss_bytes for sample in seen),
        )

    def _settled(self) -> Server:
        """Wait until what an earlier load left behind is worked off."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while time.monotonic() < deadline and self._server is not None:
            begin = time.monotonic()
            if self._server.answers_rightly() and time.monotonic() - begin < SETTLED_FACTOR * self._server.first_answer_s:
                return self._server
        self.say(f"  {self.contestant.name} has not recovered after {SETTLE_TIMEOUT_S:g} s: started again")
        self.restarts += 1
        self._stop()
        self._start()
        assert self._server is not None  # noqa: S101  # _start sets it or raises
        return self._server


def _line(result: Result) -> str:
    summary = result.summary
    p99 = "  inf" if summary.p99_s is None else f"{summary.p99_s * 1000:5.0f}"
    p50 = "  inf" if summary.p50_s is None else f"{summary.p50_s * 1000:5.1f}"
    batch = f" batch {result.mean_batch:4.1f}" if result.mean_batch else ""
    trouble = [
        f"{count} {name}"
        for name, count in (("wrong", summary.wrong), ("lost", summary.lost), ("doubled", summary.doubled), ("errors", summary.errors))
        if count
    ]
    noise = [f"neighbours {result.foreign_share:.0%}"] if result.foreign_share > 0.05 else []
    late = ["generator late"] if summary.is_generator_saturated else []
    verdict = "pass" if summary.passes else "fail"
    return f"{verdict} {summary.attainment:6.1%} p50 {p50} p99 {p99} ms{batch} {', '.join(trouble + noise + late)}"


def _model_counts(server: Server) -> tuple[float, float, float] | None:
    """Batches, rows and seconds in the model so far: peers count in a shared file, markserve in its metrics."""
    meter = server.model_meter()
    if meter:
        return meter[0], meter[1], meter[2]
    if server.contestant.requirements:
        return None
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as reply:
            text: str = reply.read().decode()
    except OSError:
        return None
    names = ("markserve_batches_total", "markserve_batch_rows_total", "markserve_compute_seconds_total")
    values = {name: float(line.split()[-1]) for line in text.splitlines() for name in names if line.startswith(name)}
    return (values[names[0]], values[names[1]], values[names[2]]) if len(values) == len(names) else None


def ceiling(model: Path, core: int, repeats: int) -> dict[str, object]:
    """Measure the model alone in a fresh process on the server's core."""
    command = [
        "taskset",
        "-c",
        str(core),
        sys.executable,
        "-m",
        "benchmarks.serving.workload",
        "ceiling",
        str(model),
        "--repeats",
        str(repeats),
    ]
    found: dict[str, object] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)  # noqa: S603  # our own command
    return found
