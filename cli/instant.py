"""Instants as operators write them: `10m`, `14:30`, or a date and time."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from cli.console import BAD_USAGE, Problem

_AGO = re.compile(r"^(\d+(?:\.\d+)?)\s*(s|m|h|d)$")
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(text: str) -> float:
    """Read a duration.

    Raises
    ------
    Problem
        If it is not a number and a unit.

    Examples
    --------
    >>> seconds("90s"), seconds("1.5h")
    (90.0, 5400.0)
    """
    match = _AGO.match(text.strip())
    if match is None:
        raise Problem(f"{text!r} is not a duration", next_step="such as 90s, 10m, 2h or 1d", code=BAD_USAGE)
    return float(match[1]) * _UNIT_S[match[2]]


def instant(text: str, *, now_s: float) -> float:
    """Read an instant: a duration ago, a time of the last 24 hours, or ISO 8601; local time unless it names a zone.

    Raises
    ------
    Problem
        If it is none of these, or lies in the future.

    Examples
    --------
    >>> instant("10m", now_s=1000.0)
    400.0
    >>> instant("1970-01-01T00:05:00+00:00", now_s=1000.0)
    300.0
    """
    at_s = now_s - seconds(text) if _AGO.match(text.strip()) else _clock(text.strip(), now_s)
    if at_s > now_s:
        raise Problem(f"{text!r} lies in the future", next_step="such as 10m (ago), 14:30 or 2026-01-31T14:30", code=BAD_USAGE)
    return at_s


def _clock(text: str, now_s: float) -> float:
    now = datetime.fromtimestamp(now_s).astimezone()
    for form in ("%H:%M", "%H:%M:%S"):
        try:
            clock = datetime.strptime(text, form)  # a wall clock's reading; its zone is given below
        except ValueError:
            continue
        at = now.replace(hour=clock.hour, minute=clock.minute, second=clock.second, microsecond=0)
        return (at if at <= now else at - timedelta(days=1)).timestamp()
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise Problem(f"{text!r} is not a time", next_step="such as 10m (ago), 14:30 or 2026-01-31T14:30", code=BAD_USAGE) from None
    return (parsed if parsed.tzinfo else parsed.astimezone()).timestamp()
