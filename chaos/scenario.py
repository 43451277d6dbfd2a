"""What a scenario is, and the register of all of them.

A scenario is a generator function: what it does before its `yield` is the fault, what it does after it is the healing (or
nothing, where the system has to heal itself). Its docstring's first line says what happens and what must come of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaos.stage import Stage

Act = Callable[["Stage"], Generator[None, None, None]]

FLOOR_ONE, FLOOR_ALL = 0.98, 0.95
"""The objective of this system where one worker at most is lost or slow, or none; and where all of them are, and Lambda serves."""

FAMILIES = {
    1: "workers",
    2: "spot",
    3: "capacity",
    4: "control",
    5: "plumbing",
    6: "spill-over",
    7: "configuration",
    8: "operator",
}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One fault and what is expected of the system under it."""

    name: str
    family: int
    summary: str
    act: Act
    hold_s: float
    """From the fault to its healing."""
    recover_within_s: float
    """From the healing to a fleet that serves again and requests in time again."""
    outage: str = ""
    """Why a synchronous request may get no response at all: nobody is there to give one. Empty: each must get one."""
    refuses_records: bool = False
    """Whether the results table refuses writes, so that what a synchronous client got need not stand in it."""
    last: bool = False
    """Whether nothing is left to play on afterwards."""
    short: bool = False
    """Whether it belongs to the subset that the tests run."""
    floor: float | None = None
    """Least share of requests in time, but for chance; None where attainment is reported only."""
    unjudged: str = ""
    """Why there is no floor: what of the fault itself makes answers late."""


def floor_cell(floor: float | None, unjudged: str) -> str:
    """Least share of requests in time, or why there is none."""
    return f"none: {unjudged}" if floor is None else f"{floor:.0%}"


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str,
    *,
    family: int,
    hold_s: float = 0.0,
    recover_within_s: float = 60.0,
    outage: str = "",
    refuses_records: bool = False,
    last: bool = False,
    short: bool = False,
    floor: float | None = None,
    unjudged: str = "",
) -> Callable[[Act], Act]:
    """Register a generator function as a scenario; it has a floor, or says why not."""

    def register(act: Act) -> Act:
        if name in SCENARIOS:
            raise ValueError(f"there are two scenarios called {name!r}")
        summary = (inspect.getdoc(act) or "").split("\n", 1)[0]
        if (floor is None) != bool(unjudged):
            raise ValueError(f"scenario {name!r} needs a floor, or else the reason why there is none")
        if not summary:
            raise ValueError(f"scenario {name!r} does not say what happens")
        SCENARIOS[name] = Scenario(
            name=name,
            family=family,
            summary=summary,
            act=act,
            hold_s=hold_s,
            recover_within_s=recover_within_s,
            outage=outage,
            refuses_records=refuses_records,
            last=last,
            short=short,
            floor=floor,
            unjudged=unjudged,
        )
        return act

    return register


def load_scenarios() -> dict[str, Scenario]:
    """Return every scenario, by family; the one that leaves nothing comes last."""
    from chaos import capacity, configuration, control, operators, plumbing, spillover, spot, workers  # noqa: F401  # they register themselves

    return dict(sorted(SCENARIOS.items(), key=lambda item: (item[1].last, item[1].family)))
