"""A draw that falls the same way wherever and whenever it is made: from a hash, so that no state is shared and nothing is random."""

from __future__ import annotations

import hashlib


def lot_of(name: str) -> float:
    """Place of a name in [0, 1), the same in every process and at every attempt.

    >>> lot_of("a") == lot_of("a"), 0 <= lot_of("b") < 1
    (True, True)
    """
    # Six bytes: a float holds them exactly, so that the highest is below 1.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
