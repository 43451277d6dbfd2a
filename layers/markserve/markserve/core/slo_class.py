"""How urgent a request is, in its client's words, and the deadline that follows."""

from __future__ import annotations

from enum import StrEnum

from markserve.core.tunables import Tunables
from markserve.core.types import Slo

LONGEST_DEADLINE_S = 29.0
"""An HTTP API ends at 30 s."""


class SloClass(StrEnum):
    """What a client asks for; without a word, `interactive`: the model's own objective.

    Interactive: somebody waits, RT_max. Standard: a program waits and has time, a multiple of RT_max; both spill to
    Lambda what workers would answer too late. Batch: nobody waits; no deadline, never spilled, fetched later.
    """

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


def class_objective(slo_class: SloClass, tunables: Tunables) -> Slo | None:
    """Objective of a class; None for batch, which has no deadline.

    >>> class_objective(SloClass.STANDARD, Tunables(rt_max_s=0.2)).latency_s
    0.8
    >>> class_objective(SloClass.STANDARD, Tunables(rt_max_s=20.0)).latency_s
    29.0
    """
    if slo_class is SloClass.BATCH:
        return None
    factor = tunables.standard_deadline_factor if slo_class is SloClass.STANDARD else 1.0
    return Slo(latency_s=min(LONGEST_DEADLINE_S, factor * tunables.rt_max_s), percentile=tunables.sl_min)
