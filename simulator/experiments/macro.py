"""The paper's macro benchmark: whole workloads, several models, against SageMaker and MArk as published."""

from __future__ import annotations

from simulator.experiments.cells import Cell
from simulator.experiments.charts import compared_charts
from simulator.experiments.experiment import RT_MAX_S, Experiment, Setup

POLICIES = ("sagemaker", "mark-paper", "mark-paper-on-demand", "mark-on-demand", "mark")
"""`mark` and `mark-paper` may buy spot."""


def cells(setup: Setup) -> list[Cell]:
    """Return every workload with every model under every policy."""
    return [
        Cell(experiment="macro", group=f"{workload}, {model}", request=asked(model, policy), records_latency=True)
        for workload, asked in ((setup.workload, setup.recorded), ("mmpp", setup.modulated))
        for model in RT_MAX_S
        for policy in POLICIES
    ]


MACRO = Experiment(
    name="macro",
    question="What do whole workloads cost, and how fast are the answers, for several models?",
    cells=cells,
    charts=compared_charts,
    uses_load=True,
)
