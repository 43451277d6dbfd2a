"""Every example in a docstring of core and of the forecasters is true."""

import doctest
import importlib
import pkgutil

import pytest

import markserve.core
import markserve.forecasters

MODULES = sorted(
    f"{package.__name__}.{module.name}"
    for package in (markserve.core, markserve.forecasters)
    for module in pkgutil.iter_modules(package.__path__)
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_hold_when_run(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))

    assert failed == 0
