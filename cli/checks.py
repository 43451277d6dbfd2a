"""What must hold for markserve to work, checked one by one; here what this machine needs."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
import psutil

Result = Literal["ok", "warn", "fail"]

LEAST_PYTHON = (3, 11)
PINNED = {"ministack": "1.5.33", "moto": "5.2.5"}
"""The emulators; pyproject.toml pins them too, and a test holds both equal."""
LEAST_CORES = 2
LEAST_MEMORY_GB = 6.0
"""The demo peaks at 5.5 GB."""
LEAST_DISK_GB = 2.0


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding."""

    name: str
    result: Result
    found: str
    next_step: str = ""
    """What to do about it; empty when all is well."""


def check(name: str, good: bool, found: str, next_step: str, *, otherwise: Result = "fail") -> Check:
    """Make a finding from a condition."""
    return Check(name=name, result="ok" if good else otherwise, found=found, next_step="" if good else next_step)


def local_checks(state_dir: Path, phase: str | None) -> Iterator[Check]:
    """Check what the command line and the local system need of this machine.

    Parameters
    ----------
    state_dir
        Where the local system keeps its files.
    phase
        Of the local system: starting, ready or failed; None when there is none.
    """
    yield check("python", sys.version_info[:2] >= LEAST_PYTHON, platform.python_version(), "make a venv with Python 3.11 or newer")
    yield _package("torch", "for models: `make setup`")
    for name, wanted in PINNED.items():
        yield _package(name, f"the local system is tested with {wanted} alone: `make setup`", wanted=wanted)
    yield _package("tritonclient", "for `markserve load`: `make setup`")
    for name in ("matplotlib", "numba", "pyarrow"):
        yield _package(name, "for `markserve simulate` and `report`: pip install -e '.[simulate]'", otherwise="warn")
    cores = psutil.cpu_count() or 1
    yield check("cores", cores >= LEAST_CORES, str(cores), "the local system wants two; give it a lower --rate", otherwise="warn")
    memory_gb = psutil.virtual_memory().available / 1e9
    good = memory_gb >= LEAST_MEMORY_GB or phase == "ready"
    yield check("memory", good, f"{memory_gb:.1f} GB free", "the local system takes 5 to 6 GB; end something", otherwise="warn")
    disk_gb = shutil.disk_usage(next(parent for parent in (state_dir, *state_dir.parents) if parent.exists())).free / 1e9
    yield check("disk", disk_gb >= LEAST_DISK_GB, f"{disk_gb:.1f} GB free under {state_dir}", "free some, or set MARKSERVE_LOCAL_DIR")
    step = f"read {state_dir / 'supervisor.log'}, then `markserve up`"
    yield check("local system", phase != "failed", {None: "not running", "failed": "did not start"}.get(phase, str(phase)), step)


def guarded(name: str, run: Callable[[], Iterator[Check]], errors: tuple[type[Exception], ...]) -> list[Check]:
    """Run checks; one that could not be made is a warning, and the others still run."""
    found: list[Check] = []
    try:
        found.extend(run())
    except errors as error:
        found.append(Check(name=name, result="warn", found=f"could not be checked: {error}", next_step="allow the call, or check by hand"))
    return found


def _package(name: str, next_step: str, *, wanted: str = "", otherwise: Result = "fail") -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name=name, result=otherwise, found="not installed", next_step=next_step)
    return check(name, not wanted or version == wanted, version, next_step, otherwise=otherwise)
