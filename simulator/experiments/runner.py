"""Runs cells, one file of results each, so that an interrupted experiment goes on where it stopped."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq

from markserve.errors import InfeasibleSlo
from simulator.experiments.cells import EVENT_FOR_S, Cell, Curve, Outcome
from simulator.experiments.variations import varied
from simulator.policies import Policy
from simulator.registry import policies
from simulator.report.requests import RequestFigures, read_requests
from simulator.request import generation_of, scenario_of
from simulator.service import Floats
from simulator.simulation import Scenario, simulate, tried
from simulator.summary import Summary

QUANTILES = {"p50": 0.5, "p98": 0.98}
CURVE_STEP = 0.005
"""Points of a latency distribution closer than this on the axis of -log10(1 - share) are one: they cannot be told apart."""
Tell = Callable[[str], None]


def run_cells(
    cells: Sequence[Cell], folder: Path, *, resume: bool = False, jobs: int = 1, keep_files: bool = False, tell: Tell = lambda _: None
) -> list[Outcome]:
    """Run cells and return their outcomes in order; `folder` gets `cells/NAME.json`, and `runs/NAME/` if the files are kept.

    Cells that describe the same run are run once. With `resume`, so are those whose file is there and describes the same run.
    Results of another version of the simulator are not told apart: start afresh after changing it.

    Parameters
    ----------
    tell
        Told what is under way, and what is done.

    Raises
    ------
    InvalidRequest
        If a cell asks for something that cannot be simulated, but for an objective that cannot be met: that is a result.
    """
    known: dict[bytes, Outcome] = {}
    for cell in cells if resume else ():
        done = _read(cell, folder)
        if done is not None:
            known[_key(cell)] = done
    missing = {_key(cell): cell for cell in reversed(cells) if _key(cell) not in known}
    todo = list(reversed(missing.values()))
    for number, (cell, outcome) in enumerate(_outcomes(todo, folder, jobs=jobs, keep_files=keep_files, tell=tell), start=1):
        known[_key(cell)] = outcome
        _write(outcome, cell, folder)
        tell(f"{number} of {len(todo)} done: {cell.experiment}, {cell.title}")
    outcomes: list[Outcome] = []
    for cell in cells:
        found = known[_key(cell)]
        outcome = msgspec.structs.replace(found, experiment=cell.experiment, group=cell.group, value=cell.value, policy=cell.policy)
        if outcome != found or not _path(cell, folder).is_file():
            _write(outcome, cell, folder)
        outcomes.append(outcome)
    with suppress(OSError):  # not there, or not empty
        (folder / "runs").rmdir()
    return outcomes


def read_outcomes(cells: Sequence[Cell], folder: Path) -> list[Outcome]:
    """Return the outcomes of those cells that have run."""
    return [outcome for cell in cells if (outcome := _read(cell, folder)) is not None]


def run_cell(cell: Cell, folder: Path, *, keep_files: bool = False, tell: Tell = lambda _: None) -> Outcome:
    """Run one cell."""
    outcome = Outcome(experiment=cell.experiment, group=cell.group, value=cell.value, policy=cell.policy, described=cell.described())
    scenario = varied(scenario_of(cell.request), cell.variation)
    try:
        policy = _policy(cell, scenario)
    except InfeasibleSlo as error:
        return msgspec.structs.replace(outcome, refused=str(error))

    def progress(at_s: float, requests: int) -> None:
        if at_s % 600 == 0:
            tell(f"{cell.title}: hour {at_s / 3600:.1f}, {requests:,} requests")

    files = folder / "runs" / cell.file_name
    if not cell.records_latency and not keep_files:
        return msgspec.structs.replace(outcome, summary=tried(scenario, policy))
    try:
        summary = simulate(scenario, policy, files, progress=progress)
        seen = _seen(cell, summary, files / "requests.parquet") if cell.records_latency else {}
    finally:
        if not keep_files:
            shutil.rmtree(files, ignore_errors=True)
    return msgspec.structs.replace(outcome, summary=summary, **seen)


def _policy(cell: Cell, scenario: Scenario) -> Policy:
    asked = cell.request
    [policy] = policies(
        [cell.policy],
        scenario,
        forecaster_name=asked.forecaster,
        sagemaker_prices=generation_of(asked.sagemaker_prices),
        sagemaker_batch=asked.sagemaker_batch,
        forecast_factor=cell.variation.forecast,
    )
    return policy


def _outcomes(cells: Sequence[Cell], folder: Path, *, jobs: int, keep_files: bool, tell: Tell) -> Iterator[tuple[Cell, Outcome]]:
    if jobs == 1 or len(cells) < 2:
        for cell in cells:
            tell(cell.title)
            yield cell, run_cell(cell, folder, keep_files=keep_files, tell=tell)
        return
    with ProcessPoolExecutor(max_workers=jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run_cell, cell, folder, keep_files=keep_files): cell for cell in cells}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


# --- what is looked at ----------------------------------------------------------------------------------------------


def _seen(cell: Cell, summary: Summary, path: Path) -> dict[str, object]:
    figures = read_requests(path, simulated_s=summary.simulated_s, rt_max_s=summary.rt_max_s, requests=summary.requests)
    seen: dict[str, object] = {"latency": _distribution(figures)}
    if cell.event_at_s is not None:
        seen["latency_over_time"] = {name: _over_time(figures, q) for name, q in QUANTILES.items()}
        arrived, met = event_counts(path, from_s=cell.event_at_s, rt_max_s=summary.rt_max_s)
        seen["event_requests"], seen["event_attainment"] = arrived, met / arrived if arrived else None
    return seen


def event_counts(path: Path, *, from_s: float, rt_max_s: float, for_s: float = EVENT_FOR_S) -> tuple[int, int]:
    """Count the requests of `requests.parquet` that arrived in a stretch of time, and those answered within RT_max."""
    window = [("arrival_s", ">=", from_s), ("arrival_s", "<", from_s + for_s)]
    rows = pq.read_table(path, columns=["arrival_s", "finished_at_s"], filters=window)
    taken_s = np.asarray(rows["finished_at_s"].to_numpy(), np.float64) - rows["arrival_s"].to_numpy()
    return rows.num_rows, int(np.count_nonzero(taken_s <= rt_max_s))


def _distribution(figures: RequestFigures) -> Curve:
    latency_s, share = figures.distribution()
    heights = -np.log10(np.maximum(1 - share, 1e-6))
    kept = np.unique(np.floor(heights / CURVE_STEP), return_index=True)[1]
    return Curve(_rounded(latency_s[kept]), _rounded(share[kept]))


def _over_time(figures: RequestFigures, q: float) -> Curve:
    values = figures.quantile_over_time_s(q)
    known = np.isfinite(values)
    return Curve(_rounded(np.asarray(np.arange(values.size) * figures.bin_s, np.float64)[known]), _rounded(values[known]))


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 7) for value in values]


# --- files ----------------------------------------------------------------------------------------------------------


def _key(cell: Cell) -> bytes:
    return msgspec.json.encode(cell.described())


def _path(cell: Cell, folder: Path) -> Path:
    return folder / "cells" / f"{cell.file_name}.json"


def _read(cell: Cell, folder: Path) -> Outcome | None:
    """Return a cell's outcome if its file is there, whole, and about the same run."""
    try:
        read = msgspec.json.decode(_path(cell, folder).read_bytes(), type=Outcome)
    except (OSError, msgspec.MsgspecError):
        return None
    return read if msgspec.json.encode(read.described) == _key(cell) else None


def _write(outcome: Outcome, cell: Cell, folder: Path) -> None:
    path = _path(cell, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=1) + b"\n")
    part.replace(path)
