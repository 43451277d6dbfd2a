"""Whether too few requests were in time to be chance."""

from __future__ import annotations

from scipy.stats import binom

LEAST_CHANCE = 0.01
"""Of a run as bad as this one where the floor holds: below it, it does not hold. One scenario in a hundred fails by chance alone."""


def shortfall(*, in_time: int, judged: int, floor: float) -> str | None:
    """Say how far a run fell below its floor; None if chance alone may have done it.

    Requests are taken as independent, each in time with probability `floor`: the chance of so few is `binom.cdf(in_time, judged, floor)`.

    >>> shortfall(in_time=70, judged=74, floor=0.98) is None
    True
    >>> shortfall(in_time=66, judged=74, floor=0.98) is None
    False
    """
    chance = float(binom.cdf(in_time, judged, floor))
    if judged == 0 or chance >= LEAST_CHANCE:
        return None
    return f"{in_time} of {judged} requests in time, {in_time / judged:.1%}: below the floor of {floor:.0%}, a chance of {chance:.1g}"
