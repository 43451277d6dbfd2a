"""Service-level accounting: how well the objective is met, and whether it is about to be missed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markserve.core.types import Slo, require


@dataclass(frozen=True, kw_only=True, slots=True)
class SloWindow:
    """Outcomes of the requests that arrived in one counting window; errors and rejections count as not within."""

    at_s: float
    requests: int
    within_slo: int

    def __post_init__(self) -> None:
        require(0 <= self.within_slo <= self.requests, f"within_slo must lie in [0, {self.requests}], got {self.within_slo}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SloAssessment:
    """Attainment over the sliding window, and whether capacity should be added before the next planned cycle."""

    attainment: float
    """Share of requests within the objective; 1.0 when there were none."""
    burn_rate: float
    """Short-window failure share over the allowed share: 1 just meets the objective, 2 fails twice as often."""
    long_burn_rate: float
    """The same over the sliding window."""
    requests: int
    at_risk: bool
    reason: str


@dataclass(frozen=True, slots=True)
class _Tally:
    requests: int
    failures: int

    @property
    def failure_share(self) -> float:
        return self.failures / self.requests if self.requests else 0.0


def _tally(windows: Iterable[SloWindow], *, after_s: float, until_s: float) -> _Tally:
    chosen = [window for window in windows if after_s < window.at_s <= until_s]
    requests = sum(window.requests for window in chosen)
    return _Tally(requests, requests - sum(window.within_slo for window in chosen))


def assess(
    windows: Iterable[SloWindow],
    *,
    slo: Slo,
    now_s: float,
    sliding_s: float = 300.0,
    short_s: float = 30.0,
    lead_s: float = 60.0,
    minimum_requests: int = 50,
    minimum_failures: int = 3,
) -> SloAssessment:
    """Judge the last `sliding_s` against the objective, and the pace of the last `short_s` against its future.

    With N requests and F failures in the sliding window, n and f in the short one, and p the objective:

        attainment = 1 - F / N                    burn rate = (f / n) / (1 - p)
        projected  = 1 - (F - F_old + k*f) / (N - N_old + k*n),    k = lead_s / short_s

    where F_old and N_old leave the sliding window during the next `lead_s`. The objective is at risk when

    1. it is missed: attainment < p over at least `minimum_requests`; or
    2. it soon will be: the short window burns faster than allowed *and* the projection falls below p. Both windows
       must agree, as in multi-window burn-rate alerts: the short one alone is noise, the long one alone is history.

    Two failures may be chance whatever the share, so rule 2 needs `minimum_failures` and a short window that holds
    its part of `minimum_requests`.

    Regimes: with steady full attainment nothing moves. On a sudden outage rule 2 fires within one short window,
    minutes before rule 1 would. After recovery rule 1 stays true until the failures leave the window; a caller
    that acts on `at_risk` limits its own rate, and may look at `burn_rate < 1` to see that the cause is gone.

    Limits: requests still running are in no window yet, so a stall shows only when its requests end.

    Parameters
    ----------
    windows
        In any order; those that do not start in `(now_s - sliding_s, now_s]` are ignored.
    lead_s
        How far ahead adding capacity still helps: about a launch.

    Notes
    -----
    MArk's prototype uses one exponentially weighted failure rate (0.001 per request) and adds an instance above 2 %.
    That is slow at low rates (half-life 693 requests, however long they take) and knows no objective but 98 %.

    References
    ----------
    The Site Reliability Workbook (Google, 2018), chapter 5, "Alerting on SLOs": multiwindow burn rates.

    Examples
    --------
    >>> good = [SloWindow(at_s=5.0 * i, requests=50, within_slo=50) for i in range(60)]
    >>> assess(good, slo=Slo(latency_s=0.2), now_s=295.0).at_risk
    False
    >>> bad = good[:-2] + [SloWindow(at_s=5.0 * i, requests=50, within_slo=30) for i in (58, 59)]
    >>> verdict = assess(bad, slo=Slo(latency_s=0.2), now_s=295.0)
    >>> verdict.at_risk, round(verdict.attainment, 4), round(verdict.burn_rate, 2)
    (True, 0.9867, 6.67)
    """
    require(0 < short_s < sliding_s, f"short_s must lie in (0, {sliding_s:g}), got {short_s:g}")
    require(0 < lead_s < sliding_s, f"lead_s must lie in (0, {sliding_s:g}), got {lead_s:g}")
    recent = [window for window in windows if now_s - sliding_s < window.at_s <= now_s]
    sliding = _tally(recent, after_s=now_s - sliding_s, until_s=now_s)
    short = _tally(recent, after_s=now_s - short_s, until_s=now_s)
    leaving = _tally(recent, after_s=now_s - sliding_s, until_s=now_s - sliding_s + lead_s)
    allowed = 1 - slo.percentile

    attainment = 1 - sliding.failure_share
    burn_rate = short.failure_share / allowed
    projected = _projected(sliding, leaving, short, pace=lead_s / short_s)
    share_needed = minimum_requests * short_s / sliding_s
    measured = f"{attainment:.2%} of {sliding.requests} requests within {slo.latency_s:g} s in {sliding_s:g} s"

    if sliding.requests < minimum_requests and short.requests < share_needed:
        at_risk, why = False, f"too few requests to judge, {minimum_requests} needed"
    elif sliding.requests >= minimum_requests and attainment < slo.percentile:
        at_risk, why = True, f"below the objective of {slo.percentile:.2%}"
    elif short.failures >= minimum_failures and short.requests >= share_needed and burn_rate > 1 and projected < slo.percentile:
        at_risk, why = True, f"burning {burn_rate:.1f} times too fast, heading for {projected:.2%} within {lead_s:g} s"
    else:
        at_risk, why = False, f"objective {slo.percentile:.2%}, burn rate {burn_rate:.1f}"
    return SloAssessment(
        attainment=attainment,
        burn_rate=burn_rate,
        long_burn_rate=sliding.failure_share / allowed,
        requests=sliding.requests,
        at_risk=at_risk,
        reason=f"{measured}: {why}",
    )


def _projected(sliding: _Tally, leaving: _Tally, short: _Tally, *, pace: float) -> float:
    requests = sliding.requests - leaving.requests + pace * short.requests
    failures = sliding.failures - leaving.failures + pace * short.failures
    return 1 - failures / requests if requests else 1.0
