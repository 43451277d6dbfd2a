"""The spillover function as the local system hosts it: the same composition, at the CPU share that Lambda would give.

Without it Lambda would have a whole core while emulated instances have a fraction of one, and no instance would ever pay.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from functions.spillover.app import make_handler
from local.cpu_share import CpuShareRunner, cpu_shares
from markserve.messages import Answer, InferenceRequest
from markserve.ports import ModelRunner
from markserve.profiling import WARM_UP_RUNS

LAMBDA_SHARE = cpu_shares(os.environ)["c5.large"] / 2
"""1,769 MB buy one vCPU; a c5.large has two."""


class CompiledFirst:
    """Runs a model's first runs, in which TorchScript compiles, as fast as this machine can.

    Compiling takes a hundred times as long as a run; at a share of a core it would take longer than any real cold start.
    """

    def __init__(self, runner: ModelRunner, emulated: ModelRunner) -> None:
        self._runner = runner
        self._emulated = emulated
        self._compiled = False

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        """Run at the emulated speed, once compiled."""
        if not self._compiled:
            for _ in range(WARM_UP_RUNS):
                self._runner.run(batch)
            self._compiled = True
        return self._emulated.run(batch)


def at_lambda_share(runner: ModelRunner) -> ModelRunner:
    """Hold a loaded model to Lambda's share."""
    torch.set_num_threads(1)  # the share is taken of the calling thread's CPU time
    return CompiledFirst(runner, CpuShareRunner(runner, LAMBDA_SHARE))


handler = make_handler(at_lambda_share)
