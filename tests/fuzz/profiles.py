"""How long to fuzz: `MARKSERVE_FUZZ=long` takes minutes, the default seconds."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

IS_LONG = os.environ.get("MARKSERVE_FUZZ") == "long"
"""Read when tests are collected, before the fixture that clears the environment."""


def fuzz(examples: int) -> settings:
    """Settings for a fuzzing test: so many examples, fifty times as many in the long profile, however slow the machine."""
    return settings(
        max_examples=examples * (50 if IS_LONG else 1),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
