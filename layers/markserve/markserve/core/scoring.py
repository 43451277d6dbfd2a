"""What holding some capacity against a demand path is expected to cost, and how much nothing serves.

Works on counted groups: a hundred equal instances take the time of one. Decides nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from markserve.core.capacity import EPSILON_RPS, Candidate, SpillTier

Score = tuple[float, float]
"""(requests that nothing serves, expected cost in USD) over the horizon; lower is better."""


def serve(left_rps: list[float], repeats: Sequence[int], candidate: Candidate, number: int, kept_above_rps: float) -> tuple[int, int]:
    """Let `number` equal candidates serve what is left, one after the other; the entry of a step counts `repeats` times.

    Returns
    -------
    (paid, used)
        Steps that they are paid for, all together, and how many of them serve at all.

    Notes
    -----
    Each is paid for the steps that need it and given back after the last step at which more than `kept_above_rps` is
    left for it. By step, with `r` left and rate `c`: the i-th is needed if `r - (i - 1) c > 0`, and keeps all those
    before it from being given back if `r - (i - 1) c > kept_above_rps`. Both hold for a first few, so counts suffice.

    Examples
    --------
    >>> from markserve.core.types import CapacityType, Offering
    >>> offering = Offering(instance_type="c5.large", capacity_type=CapacityType.ON_DEMAND, zone="a", price_usd_per_hour=0.1)
    >>> left = [25.0, 25.0, 12.0]
    >>> serve(left, [1, 1, 1], Candidate(offering=offering, capacity_rps=10.0, ready_step=1), 3, kept_above_rps=3.0), left
    ((4, 3), [25.0, -5.0, 2.0])
    """
    rate_rps = candidate.capacity_rps
    kept, kept_rps, paid, used = 0, 0.0, 0, 0
    above_rps = max(kept_above_rps, EPSILON_RPS)
    for step in range(len(left_rps) - 1, candidate.ready_step - 1, -1):
        rest = left_rps[step]
        if rest <= EPSILON_RPS:
            continue
        if kept < number and rest - above_rps > kept_rps:
            kept = min(number, math.ceil((rest - above_rps) / rate_rps))
            kept_rps = kept * rate_rps
        if rest >= kept_rps:
            left_rps[step] = rest - kept_rps
            paid += kept * repeats[step]
            used = kept  # never fewer than before
        else:
            needing = 1 if rest <= rate_rps else math.ceil((rest - EPSILON_RPS) / rate_rps)
            left_rps[step] = rest - needing * rate_rps
            paid += needing * repeats[step]
            used = max(used, needing)
    return paid, used


class Scorer:
    """Rates changes to what is chosen; everything cheaper than what a change touches is served only once.

    Each step is served by the cheapest capacity first. An instance is paid for the steps that need it, and given
    back when what is left of them would cost less to spill. What nobody serves then spills.

    Parameters
    ----------
    ready_step
        Step from which everything that will be rated is ready: from there on equal steps in a row are rated as one.
    """

    def __init__(
        self,
        demand_rps: Sequence[float],
        step_s: float,
        spill: SpillTier | None,
        chosen: Iterable[tuple[Candidate, int]],
        *,
        ready_step: int | None = None,
    ) -> None:
        self._step_s = step_s
        self._spill_usd, self._spillable_rps = (spill.usd_per_request, spill.capacity_rps) if spill else (math.inf, 0.0)
        self._order = sorted(((c.merit, c, n) for c, n in chosen if n), key=lambda group: group[0])
        self._merits = [merit for merit, _, _ in self._order]
        different, self._repeats = _merged(demand_rps, len(demand_rps) if ready_step is None else ready_step)
        self._states = [(different, 0.0, 0)]
        self.idle = 0
        """Spot launches that served at no step when last rated."""

    def score(self, changes: Mapping[str, tuple[Candidate, int]] | None = None, *, limit_usd: float = math.inf) -> Score | None:
        """Rate what is chosen with other numbers of some candidates.

        Parameters
        ----------
        changes
            Candidate and its new number, by key.
        limit_usd
            None is returned as soon as it is certain that something stays unserved or the cost exceeds this; the rest
            of the demand costs at least what the next capacity, or spilling, costs per request.
        """
        changes = changes or {}
        first = bisect_left(self._merits, min(c.merit for c, _ in changes.values())) if changes else len(self._order)
        left, cost, idle = self._state(first)
        rest = [group for group in self._order[first:] if group[1].key not in changes]
        rest += [(c.merit, c, n) for c, n in changes.values() if n]
        rest.sort(key=lambda group: group[0])
        launch_usd = math.fsum(n * c.launch_cost_usd for _, c, n in rest)
        left = list(left)
        for _, candidate, number in rest:
            if limit_usd < math.inf:
                each_usd = min(candidate.usd_per_request, self._spill_usd)
                if cost + launch_usd + each_usd * self._step_s * self._sum(left) > limit_usd:
                    return None
            launch_usd -= number * candidate.launch_cost_usd
            more_usd, more_idle = self._serve(left, candidate, number)
            cost, idle = cost + more_usd, idle + more_idle
        self.idle = idle
        return self._with_spill(left, cost)

    def _state(self, groups: int) -> tuple[list[float], float, int]:
        """Return what is left, the cost and the idle spot launches once the `groups` cheapest have served."""
        while len(self._states) <= groups:
            before, cost, idle = self._states[-1]
            left = list(before)
            _, candidate, number = self._order[len(self._states) - 1]
            more_usd, more_idle = self._serve(left, candidate, number)
            self._states.append((left, cost + more_usd, idle + more_idle))
        return self._states[groups]

    def _serve(self, left: list[float], candidate: Candidate, number: int) -> tuple[float, int]:
        worth_rps = candidate.usd_per_s / self._spill_usd
        kept_above_rps = self._spillable_rps if candidate.capacity_rps <= worth_rps else min(self._spillable_rps, worth_rps)
        paid, used = serve(left, self._repeats, candidate, number, kept_above_rps)
        cost = number * candidate.launch_cost_usd + paid * self._step_s * candidate.usd_per_s
        return cost, number - used if candidate.is_new and candidate.is_spot else 0

    def _sum(self, left: Sequence[float]) -> float:
        return sum([rate * times for rate, times in zip(left, self._repeats, strict=True) if rate > 0.0])

    def _with_spill(self, left: Sequence[float], cost: float) -> Score:
        spillable_rps = self._spillable_rps
        positive = [(rate, times) for rate, times in zip(left, self._repeats, strict=True) if rate > 0.0]
        unserved = math.fsum((rate - spillable_rps) * times for rate, times in positive if rate > spillable_rps) * self._step_s
        spilled = math.fsum((rate if rate < spillable_rps else spillable_rps) * times for rate, times in positive) * self._step_s
        return round(unserved, 6), cost + (spilled * self._spill_usd if spilled else 0.0)


def _merged(rates: Sequence[float], first: int) -> tuple[list[float], list[int]]:
    """Return the rates with equal ones in a row as one from `first` on, and how many each stands for.

    >>> _merged([7.0, 7.0, 7.0, 7.0, 3.0, 3.0], 1)
    ([7.0, 7.0, 3.0], [1, 3, 2])
    """
    merged, repeats = list(rates[: first + 1]), [1] * len(rates[: first + 1])
    for rate in rates[first + 1 :]:
        if rate == merged[-1]:
            repeats[-1] += 1
        else:
            merged.append(rate)
            repeats.append(1)
    return merged, repeats
