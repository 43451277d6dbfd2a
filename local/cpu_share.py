"""Instance sizes on one machine: a runner gets the share of a core that its emulated size has.

Local only. The real model computes the real answer; then the runner idles until its CPU time is no more than its
share of the elapsed time, which is what a CPU quota of the operating system enforces over time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from markserve.core.types import require
from markserve.errors import ConfigurationError
from markserve.messages import Answer, InferenceRequest
from markserve.ports import ModelRunner

CPU_SHARES = {"c5.large": 0.016, "c5.xlarge": 0.0276}
"""Share of a core by instance type, see docs/decisions/0005. The ratio is MArk's measured one: 284 and 490 requests a minute of
Inception."""
DIGIT_CPU_S = 0.0018
"""CPU time of one digit on the core that the shares are of. A definition, not a measurement: a c5.large takes 0.0018 / 0.016 = 0.11 s."""
VARIABLE = "MARKSERVE_LOCAL_CPU_SHARES"


def cpu_shares(environ: Mapping[str, str]) -> dict[str, float]:
    """Shares of this machine's core by instance type: the variable's, else those above.

    Raises
    ------
    ConfigurationError
        If the variable does not parse.
    """
    text = environ.get(VARIABLE, "").strip()
    try:
        return msgspec.json.decode(text, type=dict[str, float]) if text else dict(CPU_SHARES)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"{VARIABLE}={text!r} is not a JSON object of numbers: {error}") from error


def emulate_sizes(digit_cpu_s: float) -> Callable[[], None]:
    """Have this process and its children emulate the same speeds as on any machine, unless shares were given.

    Parameters
    ----------
    digit_cpu_s
        CPU time that one digit takes here: a core half as fast gives twice the share.

    Returns
    -------
    undo
        Restores what the environment said before.
    """
    if os.environ.get(VARIABLE, "").strip():
        return lambda: None
    shares = {name: min(1.0, share * digit_cpu_s / DIGIT_CPU_S) for name, share in CPU_SHARES.items()}
    os.environ[VARIABLE] = msgspec.json.encode(shares).decode()

    def undo() -> None:
        os.environ.pop(VARIABLE, None)

    return undo


class CpuShareRunner:
    """`ModelRunner` that takes as long as its model would on `share` of a core.

    A batch that used `t` of CPU time ends `t / share` after it began: it idles for `t * (1 / share - 1)` when it had a
    core to itself. CPU time rather than elapsed time, because a quota charges only what ran, so processes that
    compete for the machine do not make the emulated instance look slower than it is. It measures the calling thread:
    the model must compute in it, that is with one torch thread.
    """

    def __init__(
        self,
        runner: ModelRunner,
        share: float,
        *,
        cpu_clock: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        require(0 < share <= 1, f"share must lie in (0, 1], got {share}")
        self._runner = runner
        self._share = share
        self._cpu_clock = cpu_clock
        self._clock = clock
        self._sleep = sleep

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        """Run the batch, then idle for what the share does not allow."""
        started_s, cpu_started_s = self._clock(), self._cpu_clock()
        results = self._runner.run(batch)
        cpu_s, elapsed_s = self._cpu_clock() - cpu_started_s, self._clock() - started_s
        idle_s = cpu_s / self._share - elapsed_s
        if idle_s > 0:
            self._sleep(idle_s)
        return results


@dataclass
class SkippedIdle:
    """A clock on which idling takes no time: profiles a small share as fast as the model computes.

    Pass `clock` and `sleep` to `CpuShareRunner`, and `clock` to the profiler.
    """

    clock_s: Callable[[], float] = time.perf_counter
    skipped_s: float = 0.0

    def clock(self) -> float:
        """Elapsed time, skipped idling included."""
        return self.clock_s() + self.skipped_s

    def sleep(self, seconds: float) -> None:
        """Advance the clock instead of waiting."""
        self.skipped_s += seconds
