"""The examples in the local system's docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "chaos.soak",
    "local.allowed_actions",
    "local.arrivals",
    "local.embedded_ec2",
    "local.embedded_server",
    "local.figures",
    "local.imds",
    "local.load",
    "cli.models",
    "worker.tracing",
)


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_are_true(module: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(module))

    assert failed == 0
    assert attempted > 0
