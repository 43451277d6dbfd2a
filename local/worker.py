"""`python -m local.worker`: the worker, with its runner held to the CPU share of its instance type.

The same composition as on EC2; only the runner is wrapped. `MARKSERVE_LOCAL_CPU_SHARES` (JSON, share by instance
type) replaces the built-in shares; the local system sets it. `MARKSERVE_LOCAL_CLOCK_SKEW_S` has this process's clock go wrong by so much.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import NoReturn

from local.cpu_share import CpuShareRunner, cpu_shares
from markserve.errors import ConfigurationError
from markserve.ports import ModelRunner
from worker.main import run_process


def cpu_share(environ: Mapping[str, str]) -> float:
    """Share of a core that this process emulates.

    Raises
    ------
    ConfigurationError
        If the shares do not parse, or there is none for the instance type.
    """
    shares = cpu_shares(environ)
    instance_type = environ.get("MARKSERVE_INSTANCE_TYPE", "")
    if instance_type not in shares:
        raise ConfigurationError(f"no CPU share for instance type {instance_type!r}; there is one for {', '.join(sorted(shares))}")
    return shares[instance_type]


def skew_clock(skew_s: float) -> None:
    """Have `time.time` of this process be wrong by `skew_s`, as an unsynchronised machine's is."""
    true_time = time.time
    time.time = lambda: true_time() + skew_s


def main() -> NoReturn:
    """Run the worker as the whole process."""
    skew_clock(float(os.environ.get("MARKSERVE_LOCAL_CLOCK_SKEW_S") or 0.0))
    share = cpu_share(os.environ)

    def wrap(runner: ModelRunner) -> ModelRunner:
        """Hold a loaded model to the share."""
        return CpuShareRunner(runner, share)

    run_process(wrap, threads=1)


if __name__ == "__main__":
    main()
