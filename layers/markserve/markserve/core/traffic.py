"""Which version of a model answers a request, and how versions compare."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markserve.core.lot import lot_of
from markserve.core.types import require


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionChoice:
    """A version, and why it."""

    version: str
    reason: str
    """Empty where there was nothing to choose between."""


def choose_version(*, model: str, live: str, canary: str | None, weight: float, key: str, is_canary_ready: bool = True) -> VersionChoice:
    """Choose between the live version and its canary, the same way every time for the same key.

    A key's place in [0, 1) is a hash of model, canary and key; places below `weight` go to the canary. So a raised weight
    only adds keys to those the canary had, and another canary gets other keys: nobody is the one who always tries things out.

    Parameters
    ----------
    weight
        Share of keys that the canary answers.
    key
        Identity of the request: the same for every attempt under one idempotency key.
    is_canary_ready
        Whether everybody who would compute it has loaded it; until then the live version answers and nobody waits for a load.

    Examples
    --------
    >>> choose_version(model="digits", live="1", canary=None, weight=0.0, key="a").version
    '1'
    >>> [choose_version(model="digits", live="1", canary="2", weight=0.5, key=key).version for key in "abcd"]
    ['2', '1', '1', '2']
    """
    require(0 <= weight <= 1, f"weight must lie in [0, 1], got {weight}")
    if canary is None or weight == 0:
        return VersionChoice(version=live, reason="")
    if lot_of("\n".join((model, canary, key))) >= weight:
        return VersionChoice(version=live, reason=f"live version, the canary {canary} gets {weight:.0%}")
    if not is_canary_ready:
        return VersionChoice(version=live, reason=f"live version, not every worker has loaded the canary {canary} yet")
    return VersionChoice(version=canary, reason=f"canary, {weight:.0%} of requests")


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """Outcomes of the requests of one version, or of one class."""

    ok: int = 0
    errors: int = 0
    within_slo: int = 0

    @property
    def requests(self) -> int:
        """All of them."""
        return self.ok + self.errors

    @property
    def attainment(self) -> float | None:
        """Share within the objective; None without requests."""
        return self.within_slo / self.requests if self.requests else None

    @property
    def error_rate(self) -> float | None:
        """Share of errors; None without requests."""
        return self.errors / self.requests if self.requests else None


def total(counts: Iterable[Served]) -> Served:
    """Sum of outcomes.

    >>> total([Served(ok=9, errors=1, within_slo=8), Served(ok=10, within_slo=10)]).error_rate
    0.05
    """
    listed = list(counts)
    return Served(ok=sum(c.ok for c in listed), errors=sum(c.errors for c in listed), within_slo=sum(c.within_slo for c in listed))
