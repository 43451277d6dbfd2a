"""What the result depends on: launch delay, prices, and how wrong profile and forecast are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from simulator.assumptions import LAUNCH_DELAY_S
from simulator.experiments.cells import Cell
from simulator.experiments.charts import sensitivity_charts
from simulator.experiments.experiment import Experiment, Setup
from simulator.experiments.variations import AS_IS, Variation
from simulator.request import Request

MODELS = ("squeezenet", "inception-v3")
POLICIES = ("mark", "mark-on-demand", "mark-paper")
LAUNCH_DELAYS_S = (30.0, 60.0, 120.0, 180.0, 300.0)
PRICE_FACTORS = (0.5, 1.0, 2.0)
BELIEVED_LATENCIES = (1 / 1.5, 1.0, 1.5)
"""Below 1, policies take instances for faster than they are."""
FORECAST_FACTORS = (0.7, 1.0, 1.3)
FORECASTERS = ("best", "persistence")


def cells(setup: Setup) -> list[Cell]:
    """Return every variation, one at a time, under every policy; the unvaried run is part of each group."""
    made = [cell for model in MODELS for policy in POLICIES for cell in _varied(model, setup.recorded(model, policy))]
    groups = list(dict.fromkeys(cell.group for cell in made))
    return sorted(made, key=lambda cell: groups.index(cell.group))


def _varied(model: str, plain: Request) -> Iterator[Cell]:
    for delay_s in LAUNCH_DELAYS_S:
        delayed = replace(plain, launch_delay=None if delay_s == LAUNCH_DELAY_S else f"{delay_s:g}")
        yield _cell(f"{model}, launch delay, s", f"{delay_s:g}", delayed)
    for factor in PRICE_FACTORS:
        yield _cell(f"{model}, EC2 price, factor", f"{factor:g}", plain, Variation(instance_price=factor))
    for factor in PRICE_FACTORS:
        yield _cell(f"{model}, Lambda price, factor", f"{factor:g}", plain, Variation(lambda_price=factor))
    for factor in BELIEVED_LATENCIES:
        yield _cell(f"{model}, believed over true latency", f"{factor:.2f}", plain, Variation(planned_latency=factor))
    for factor in FORECAST_FACTORS:
        yield _cell(f"{model}, forecast, factor", f"{factor:g}", plain, Variation(forecast=factor))
    if plain.policies != "mark-paper":  # which knows persistence alone
        for name in FORECASTERS:
            yield _cell(f"{model}, forecaster", name, replace(plain, forecaster=name))


def _cell(group: str, value: str, asked: Request, variation: Variation = AS_IS) -> Cell:
    return Cell(experiment="sensitivity", group=group, value=value, request=asked, variation=variation)


SENSITIVITY = Experiment(
    name="sensitivity",
    question="How much do launch delay, prices, and errors of profile and forecast change?",
    cells=cells,
    charts=sensitivity_charts,
    uses_load=True,
)
