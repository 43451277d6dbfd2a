"""Every example in a core docstring is true."""

import doctest
import importlib
import pkgutil

import pytest

import markserve.core

MODULES = sorted(module.name for module in pkgutil.iter_modules(markserve.core.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_hold_when_run(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(f"markserve.core.{name}"))

    assert failed == 0
