"""A virtual environment per peer under `.bench-venvs/`: their dependencies collide with each other's and with ours.

torch is installed once, in a venv of its own that the others see through a .pth file, after their own packages.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from benchmarks.serving.contestants import Contestant

FOLDER = Path(".bench-venvs")
TORCH = ("torch==2.13.0", "numpy==2.4.6")
PIP_TIMEOUT_S = 900


class CannotInstall(Exception):
    """pip failed; the message is its last line that says why."""


def ensure(contestant: Contestant, say: Callable[[str], None]) -> Path:
    """Return the interpreter for a contestant, making its venv if it is not there with these requirements.

    Raises
    ------
    CannotInstall
        If pip does not install the requirements; the full log lies beside the venv.
    """
    if not contestant.requirements:
        return Path(sys.executable)
    torch_site = _site_packages(_ensure("torch", TORCH, say))
    python = _ensure("-".join(sorted({contestant.requirements[0].split("==")[0].split("[")[0]})), contestant.requirements, say)
    (_site_packages(python) / "zz_torch.pth").write_text(f"{torch_site}\n", encoding="utf-8")
    return python


def _ensure(name: str, requirements: tuple[str, ...], say: Callable[[str], None]) -> Path:
    folder = (FOLDER / name).absolute()
    python = folder / "bin/python"
    stamp = folder / f".installed-{hashlib.sha256(' '.join(requirements).encode()).hexdigest()[:12]}"
    if stamp.exists():
        return python
    say(f"installing {', '.join(requirements)} (once; up to a few minutes)")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    log = folder.with_suffix(".log")
    with log.open("w", encoding="utf-8") as output:
        command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *requirements]
        try:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=PIP_TIMEOUT_S, check=False).returncode  # noqa: S603 - pinned names
        except subprocess.TimeoutExpired:
            raise CannotInstall(f"{name}: pip took more than {PIP_TIMEOUT_S} s, see {log}") from None
    if code != 0:
        errors = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("ERROR")]
        raise CannotInstall(f"{name}: {errors[-1] if errors else f'pip ended with {code}'}, see {log}")
    stamp.touch()
    return python


def _site_packages(python: Path) -> Path:
    return python.parents[1] / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
