"""Constant load that surges, as in the paper's robustness benchmark: what happens to latency, and for how long."""

from __future__ import annotations

from simulator.experiments.cells import EVENT_FOR_S, Cell
from simulator.experiments.charts import event_charts
from simulator.experiments.experiment import Experiment, Setup
from simulator.experiments.workloads import constant

RATES_RPS = {"squeezenet": 400.0, "inception-v3": 100.0}
"""By model: enough for a fleet of several instances; the second runs in batches on GPUs."""
POLICIES = ("mark", "mark-paper", "reactive")
"""All on demand, so that nothing but the surge disturbs them."""
FACTORS = (1.5, 2.0, 4.0)
SHAPES = {"for a minute": 60.0, "for the whole event": EVENT_FOR_S}
"""How long the load stays up. It rises at once, which is harder than any rise within a minute."""
AT_S, QUICK_AT_S = 1800.0, 480.0
AFTER_S, QUICK_AFTER_S = 600.0, 60.0


def cells(setup: Setup) -> list[Cell]:
    """Return every surge under every policy."""
    at_s = QUICK_AT_S if setup.is_quick else AT_S
    until_s = at_s + EVENT_FOR_S + (QUICK_AFTER_S if setup.is_quick else AFTER_S)
    return [
        Cell(
            experiment="micro-surge",
            group=f"{model}, +{100 * (factor - 1):.0f} % {shape}",
            request=setup.request(model, policy, trace=constant(rate_rps, until_s), surges=(f"{at_s:g}:{factor:g}:{for_s:g}",)),
            event_at_s=at_s,
            records_latency=True,
        )
        for model, rate_rps in RATES_RPS.items()
        for factor in FACTORS
        for shape, for_s in SHAPES.items()
        for policy in POLICIES
    ]


SURGE = Experiment(
    name="micro-surge",
    question="Constant load surges at once: are 98 % of the event's 10 minutes answered in time?",
    cells=cells,
    charts=event_charts,
    uses_load=False,
)
