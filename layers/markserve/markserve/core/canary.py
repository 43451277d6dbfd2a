"""Whether a canary does worse than the live version: counts in, a verdict with its reason out.

A controller looks again at every cycle, for as long as the canary runs. A test made for one look (Fisher's, say) would then call
a good canary bad sooner or later. So evidence is kept that holds however often and whenever one looks: an e-process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markserve.core.traffic import Served, total
from markserve.core.types import require

PRIOR = 0.18
"""Failures and successes that each version is credited with before its first window: the choice of Turner, Ly and Gruenwald."""
MEASURES = 2
"""Errors and lateness are each judged at half the false-alarm rate."""
EPOCH_S = 3600.0
"""After an hour evidence starts anew, so that a good past does not hide what has gone wrong since."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """What both versions did of the requests that arrived in one counting window."""

    live: Served
    canary: Served


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryVerdict:
    """Whether to take the canary's traffic away, and why or why not."""

    is_worse: bool
    reason: str


def epoch_start_s(started_at_s: float, *, now_s: float) -> float:
    """Return since when evidence counts: a whole number of epochs after the canary got its share.

    >>> epoch_start_s(100.0, now_s=3650.0), epoch_start_s(100.0, now_s=3750.0)
    (100.0, 3700.0)
    """
    return started_at_s + EPOCH_S * max(0, math.floor((now_s - started_at_s) / EPOCH_S))


def judge_canary(blocks: Sequence[Block], *, sl_min: float, false_alarm_rate: float, error_margin: float) -> CanaryVerdict:
    """Compare a canary's shares of errors and of late answers with the live version's over the same windows.

    It is worse when the evidence that it fails more often reaches `2 / false_alarm_rate` for

    1. errors, and their share exceeds the live version's by `error_margin` at least; or
    2. answers that are not in time (errors among them), and the share in time is below `sl_min`.

    The second halves keep a difference that is certain but does not matter from ending a canary: with enough requests
    any difference becomes certain.

    Parameters
    ----------
    blocks
        By time; both versions' counts of one window.
    false_alarm_rate
        Chance that a canary as good as the live version is ever called worse on such a sequence of blocks, however often one looks.

    Examples
    --------
    >>> fine, broken = Served(ok=9, within_slo=9), Served(errors=1)
    >>> judge_canary([Block(live=fine, canary=broken)] * 2, sl_min=0.98, false_alarm_rate=0.001, error_margin=0.01).is_worse
    False
    >>> judge_canary([Block(live=fine, canary=broken)] * 8, sl_min=0.98, false_alarm_rate=0.001, error_margin=0.01).is_worse
    True
    """
    require(0 < false_alarm_rate < 1, f"false_alarm_rate must lie in (0, 1), got {false_alarm_rate:g}")
    live, canary = total(block.live for block in blocks), total(block.canary for block in blocks)
    if not live.requests or not canary.requests:
        return CanaryVerdict(is_worse=False, reason="nothing to compare yet")
    needed = MEASURES / false_alarm_rate
    compared = f"{canary.requests} requests against {live.requests} of the live version"
    failing = log_evidence(blocks, errors_of)
    error_shares = f"{canary.errors / canary.requests:.2%} errors against {live.errors / live.requests:.2%}"
    if failing >= math.log(needed) and canary.errors / canary.requests - live.errors / live.requests >= error_margin:
        return CanaryVerdict(is_worse=True, reason=f"{error_shares} in {compared}; {_odds(failing)}, {needed:g} needed")
    late = log_evidence(blocks, late_of)
    in_time = canary.within_slo / canary.requests
    shares_in_time = f"{in_time:.2%} in time against {live.within_slo / live.requests:.2%}"
    if late >= math.log(needed) and in_time < sl_min:
        reason = f"{shares_in_time}, objective {sl_min:.2%}, in {compared}; {_odds(late)}, {needed:g} needed"
        return CanaryVerdict(is_worse=True, reason=reason)
    return CanaryVerdict(
        is_worse=False, reason=f"{error_shares}, {shares_in_time} in {compared}; {_odds(max(failing, late))}, {needed:g} needed"
    )


def log_evidence(blocks: Sequence[Block], failures_of: Callable[[Served], int]) -> float:
    """Return the logarithm of the evidence that the canary fails more often than the live version.

    With n requests and f failures of the live version (l) and of the canary (c) in a block, and shares of failures
    q_l < q_c estimated from the blocks *before* it, the block multiplies the evidence by

        (q_c / q_0)^f_c ((1 - q_c) / (1 - q_0))^(n_c - f_c) (q_l / q_0)^f_l ((1 - q_l) / (1 - q_0))^(n_l - f_l),
        q_0 = (n_l q_l + n_c q_c) / (n_l + n_c)

    and by 1 where the estimates are not q_l < q_c. If both versions fail equally often in that block, or the canary more
    seldom, the factor's expectation is at most 1, whatever the q are; how often both fail may change from block to block, as
    under a load that grows. So the product is a supermartingale, and by Ville's inequality exceeds 1/a ever with a chance of at most a.

    Limits: it takes requests of one block to fail independently of each other. Late ones come in bunches, which makes the true
    rate of false alarms about lateness larger than stated; that the objective must be missed as well works against it.

    References
    ----------
    R. Turner, A. Ly, P. Gruenwald, "Generic E-variables for exact sequential k-sample tests that allow for optional stopping",
    Journal of Statistical Planning and Inference 230 (2024).
    """
    log_e = 0.0
    live_failures = canary_failures = live_requests = canary_requests = 0
    for block in blocks:
        f_l, f_c, n_l, n_c = failures_of(block.live), failures_of(block.canary), block.live.requests, block.canary.requests
        q_l = (live_failures + PRIOR) / (live_requests + 2 * PRIOR)
        q_c = (canary_failures + PRIOR) / (canary_requests + 2 * PRIOR)
        if q_l < q_c and n_l and n_c:
            q_0 = (n_l * q_l + n_c * q_c) / (n_l + n_c)
            log_e += _log_ratio(f_c, n_c, q_c, q_0) + _log_ratio(f_l, n_l, q_l, q_0)
        live_failures, canary_failures = live_failures + f_l, canary_failures + f_c
        live_requests, canary_requests = live_requests + n_l, canary_requests + n_c
    return log_e


def _log_ratio(failures: int, requests: int, share: float, common: float) -> float:
    return failures * math.log(share / common) + (requests - failures) * math.log((1 - share) / (1 - common))


def errors_of(served: Served) -> int:
    """Count what was answered with an error."""
    return served.errors


def late_of(served: Served) -> int:
    """Count what was not answered in time, errors among it."""
    return served.requests - served.within_slo


def _odds(log_e: float) -> str:
    """Write evidence for people; beyond a million the figure says nothing more.

    >>> _odds(0.0), _odds(50.0)
    ('evidence 1', 'evidence over a million')
    """
    return "evidence over a million" if log_e > math.log(1e6) else f"evidence {math.exp(log_e):.3g}"
