"""Whether a client may send one more request in this minute."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markserve.core.types import require

QUOTA_WINDOW_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotaDecision:
    """Within the quota or not, and when there is room again."""

    allowed: bool
    retry_after_s: float
    reason: str


def window_of(now_s: float) -> float:
    """Start of the quota window that `now_s` lies in.

    >>> window_of(125.0)
    120.0
    """
    return math.floor(now_s / QUOTA_WINDOW_S) * QUOTA_WINDOW_S


def check_quota(*, used: int, requests_per_minute: int, now_s: float) -> QuotaDecision:
    """Judge a request by the count of this window, itself included.

    A fixed window, not a token bucket: one atomic counter and no read before it. Its price is that up to twice the quota can
    pass within a minute around the turn of two windows; the stage's throttle bounds that.

    Examples
    --------
    >>> check_quota(used=600, requests_per_minute=600, now_s=90.0).allowed
    True
    >>> check_quota(used=601, requests_per_minute=600, now_s=90.0).retry_after_s
    30.0
    """
    require(requests_per_minute >= 0, f"requests_per_minute must not be negative, got {requests_per_minute}")
    if used <= requests_per_minute:
        return QuotaDecision(allowed=True, retry_after_s=0.0, reason=f"request {used} of {requests_per_minute} this minute")
    ends_in_s = window_of(now_s) + QUOTA_WINDOW_S - now_s
    return QuotaDecision(allowed=False, retry_after_s=ends_in_s, reason=f"quota of {requests_per_minute} requests a minute is used up")
