"""Points this process at a stack."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import boto3

from local.embedded_server import OBSERVER_APP_ID
from markserve import wiring

CONNECTING = ("AWS_", "MARKSERVE_")


def connecting_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Pick what matters for reaching a stack out of a whole environment."""
    return {name: value for name, value in env.items() if name.startswith(CONNECTING)}


def connect(env: Mapping[str, str]) -> Callable[[], None]:
    """Have `markserve.wiring` talk to the stack that `env` names, as an observer whose calls are not billed to a run.

    Returns
    -------
    disconnect
        Restores what the environment said before.
    """
    before = connecting_variables(os.environ)
    _become({**connecting_variables(env), "AWS_SDK_UA_APP_ID": OBSERVER_APP_ID})

    def disconnect() -> None:
        _become(before)

    return disconnect


def _become(variables: Mapping[str, str]) -> None:
    for name in connecting_variables(os.environ):
        del os.environ[name]
    os.environ.update(variables)
    # The default session keeps the first credentials it saw, and the embedded AWS tells accounts apart by them.
    boto3.setup_default_session()
    for builder in vars(wiring).values():
        if hasattr(builder, "cache_clear"):
            builder.cache_clear()
