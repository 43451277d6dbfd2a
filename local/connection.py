"""Points this process at a stack."""

from __future__ import annotations

import os
from collections.abc import Mapping

from local.embedded_server import OBSERVER_APP_ID
from markserve import wiring

CONNECTING = ("AWS_", "MARKSERVE_")


def connecting_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Pick what matters for reaching a stack out of a whole environment."""
    return {name: value for name, value in env.items() if name.startswith(CONNECTING)}


def connect(env: Mapping[str, str]) -> None:
    """Have `markserve.wiring` talk to the stack that `env` names, as an observer whose calls are not billed to a run."""
    os.environ.update(connecting_variables(env))
    os.environ["AWS_SDK_UA_APP_ID"] = OBSERVER_APP_ID
    for builder in vars(wiring).values():
        if hasattr(builder, "cache_clear"):
            builder.cache_clear()
