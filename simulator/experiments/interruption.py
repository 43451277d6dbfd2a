"""Constant load on spot instances that are taken back, as in the paper's robustness benchmark."""

from __future__ import annotations

from simulator.experiments.cells import EVENT_FOR_S, Cell
from simulator.experiments.charts import event_charts
from simulator.experiments.experiment import Experiment, Setup
from simulator.experiments.surge import AFTER_S, AT_S, QUICK_AFTER_S, QUICK_AT_S
from simulator.experiments.variations import Variation
from simulator.experiments.workloads import constant

MODEL, RATE_RPS, QUICK_RPS = "vgg-cifar10", 3000.0, 2000.0
SMALL_ONES = Variation(left_out=("g4dn", "c5", "c5a"))
"""One GPU would serve it all, three c5.4xlarge nearly; of what is left it takes a fleet. Burstable types, for standbys, are left."""
POLICIES = ("mark", "mark-paper", "mark-paper-no-standbys")
INTERRUPTIONS = {
    "one instance of the largest pool": "0.001",
    "half of the largest pool": "0.5",
    "all of the largest pool": "1",
    "all of the largest pool, without notice": "1:no-notice",
}
"""As `--interrupt` takes them; shares are rounded up to whole instances."""


def cells(setup: Setup) -> list[Cell]:
    """Return every interruption under every policy."""
    at_s = QUICK_AT_S if setup.is_quick else AT_S
    trace = constant(QUICK_RPS if setup.is_quick else RATE_RPS, at_s + EVENT_FOR_S + (QUICK_AFTER_S if setup.is_quick else AFTER_S))
    return [
        Cell(
            experiment="micro-spot",
            group=group,
            request=setup.request(MODEL, policy, trace=trace, spot=True, interrupts=(f"{at_s:g}:{share}",)),
            variation=SMALL_ONES,
            event_at_s=at_s,
            records_latency=True,
        )
        for group, share in INTERRUPTIONS.items()
        for policy in POLICIES
    ]


SPOT = Experiment(
    name="micro-spot",
    question=f"Spot instances are taken back under constant load ({MODEL} on 2xlarge): are answers in time?",
    cells=cells,
    charts=event_charts,
    uses_load=False,
)
