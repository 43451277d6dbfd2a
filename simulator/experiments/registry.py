"""Experiments by the names that the command line takes."""

from __future__ import annotations

from markserve.errors import InvalidRequest
from simulator.experiments.experiment import Experiment
from simulator.experiments.interruption import SPOT
from simulator.experiments.macro import MACRO
from simulator.experiments.sensitivity import SENSITIVITY
from simulator.experiments.surge import SURGE

EXPERIMENTS = {one.name: one for one in (MACRO, SURGE, SPOT, SENSITIVITY)}
ALL = "all"


def experiments_named(text: str) -> list[Experiment]:
    """Read `all` or `NAME[,NAME...]`.

    Raises
    ------
    InvalidRequest
        If there is no such experiment.
    """
    names = list(EXPERIMENTS) if text == ALL else list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown or not names:
        raise InvalidRequest(f"{', '.join(unknown) or 'nothing'} is none of {', '.join((ALL, *EXPERIMENTS))}", field="name")
    return [EXPERIMENTS[name] for name in names]
