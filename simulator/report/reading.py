"""Read the folders that `markserve simulate` writes: which runs there are, and what each says."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from markserve.errors import InvalidRequest
from simulator.assumptions import STEP_S
from simulator.report.requests import BatchFigures, RequestFigures, read_batches, read_requests, time_step_s
from simulator.service import Floats
from simulator.summary import Summary

SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceRow:
    """A row of `instances.csv`."""

    instance_id: str
    instance_type: str
    capacity_type: str
    price_usd_per_hour: float
    requested_at_s: float
    serving_at_s: float | None
    drain_at_s: float | None
    terminated_at_s: float
    end_reason: str
    cost_usd: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlStep:
    """A row of `control.csv`."""

    at_s: float
    quantiles_rps: Mapping[float, float]
    """Forecast for the step that a launch made now reaches."""
    demand_rps: float
    fleet: str
    reason: str

    @property
    def instances(self) -> int:
        """Instances after the step; those that drain are not counted."""
        return sum(int(number) for number in re.findall(r"(\d+)x", self.fleet))


@dataclass(frozen=True, kw_only=True)
class PolicyRun:
    """What one policy did with one load."""

    label: str
    folder: Path
    summary: Summary
    instances: Sequence[InstanceRow]
    control: Sequence[ControlStep]
    requests: RequestFigures | None
    """None where they were not recorded."""
    batches: BatchFigures | None

    @property
    def bin_s(self) -> float:
        """Length of the bins of everything over time."""
        return time_step_s(self.summary.simulated_s)

    @cached_property
    def edges_s(self) -> Floats:
        """Edges of these bins."""
        bins = max(1, int(np.ceil(self.summary.simulated_s / self.bin_s - 1e-9)))
        return np.asarray(np.arange(bins + 1) * self.bin_s, np.float64)

    @cached_property
    def lead_s(self) -> float:
        """How far ahead decisions look: the median time from a launch to the first answer, in whole control steps.

        0 if nothing was launched under way.
        """
        leads = [
            i.serving_at_s - i.requested_at_s for i in self.instances if i.serving_at_s is not None and i.serving_at_s > i.requested_at_s
        ]
        return STEP_S * math.ceil(float(np.median(leads)) / STEP_S) if leads else 0.0


def find_runs(folders: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return label and folder of every policy's run below these: a folder with a summary, or one of such folders.

    Policies come in the order of `comparison.json`; a label names the run too where several have the same policy.

    Raises
    ------
    InvalidRequest
        If a folder is no run.
    """
    found: list[tuple[str, Path]] = []
    for folder in folders:
        if not folder.is_dir():
            raise InvalidRequest(f"{folder}: there is no such folder")
        ours = (
            [(folder.resolve().parent.name, folder)]
            if (folder / SUMMARY).is_file()
            else [(folder.resolve().name, sub) for sub in _policies(folder)]
        )
        if not ours:
            raise InvalidRequest(f"{folder} is no run: it has neither {SUMMARY} nor folders with one, as `markserve simulate --out` writes")
        found += [pair for pair in ours if pair[1].resolve() not in {path.resolve() for _, path in found}]
    policies = [path.resolve().name for _, path in found]
    named = [(path.resolve().name, f"{run}/{path.resolve().name}", path) for run, path in found]
    return [(short if policies.count(short) == 1 else long, path) for short, long, path in named]


def _policies(folder: Path) -> list[Path]:
    written = sorted(path.parent for path in folder.glob(f"*/{SUMMARY}"))
    comparison = folder / "comparison.json"
    if not comparison.is_file():
        return written
    try:
        order = [one["policy"] for one in msgspec.json.decode(comparison.read_bytes(), type=list[dict[str, object]])]
    except (msgspec.MsgspecError, KeyError, OSError) as error:
        raise InvalidRequest(f"{comparison} is no comparison of policies: {error}") from error
    return [folder / str(name) for name in order if folder / str(name) in written] or written


def read_run(label: str, folder: Path) -> PolicyRun:
    """Read one policy's run.

    Raises
    ------
    InvalidRequest
        If a file is missing or is not what it should be.
    """
    path = folder / SUMMARY
    try:
        summary = msgspec.json.decode(path.read_bytes(), type=Summary)
    except (msgspec.MsgspecError, OSError) as error:
        raise InvalidRequest(f"{path} is no summary of this version's simulator ({error}); simulate again") from error
    simulated_s = summary.simulated_s
    requests, batches = folder / "requests.parquet", folder / "batches.parquet"
    return PolicyRun(
        label=label,
        folder=folder,
        summary=summary,
        instances=_instances(folder / "instances.csv"),
        control=_control(folder / "control.csv"),
        requests=read_requests(requests, simulated_s=simulated_s, rt_max_s=summary.rt_max_s, requests=summary.requests)
        if requests.is_file()
        else None,
        batches=read_batches(batches, simulated_s=simulated_s) if batches.is_file() else None,
    )


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error


def _instances(path: Path) -> list[InstanceRow]:
    try:
        return [
            InstanceRow(
                instance_id=row["instance_id"],
                instance_type=row["instance_type"],
                capacity_type=row["capacity_type"],
                price_usd_per_hour=float(row["price_usd_per_hour"]),
                requested_at_s=float(row["requested_at_s"]),
                serving_at_s=_number(row["serving_at_s"]),
                drain_at_s=_number(row["drain_at_s"]),
                terminated_at_s=float(row["terminated_at_s"]),
                end_reason=row["end_reason"],
                cost_usd=float(row["cost_usd"]),
            )
            for row in _rows(path)
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise InvalidRequest(f"{path} is no list of instances: {error}") from error


def _control(path: Path) -> list[ControlStep]:
    try:
        return [
            ControlStep(
                at_s=float(row["t_s"]),
                quantiles_rps={
                    int(match[1]) / 100: float(value)
                    for name, value in row.items()
                    if value and (match := re.fullmatch(r"forecast_q(\d+)_rps", name or ""))
                },
                demand_rps=_number(row["demand_rps"]) or 0.0,
                fleet=row["fleet"],
                reason=row["reason"],
            )
            for row in _rows(path)
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise InvalidRequest(f"{path} is no list of control steps: {error}") from error


def _number(text: str) -> float | None:
    return float(text) if text else None
