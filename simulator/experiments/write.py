"""What an experiment leaves behind: results.json, results.csv, table.md and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from simulator.experiments import tables
from simulator.experiments.cells import Outcome
from simulator.experiments.charts import picture_name
from simulator.experiments.experiment import Experiment, Setup
from simulator.experiments.runner import run_cells
from simulator.report.style import save_png

Tell = Callable[[str], None]


def run_experiment(
    experiment: Experiment, setup: Setup, *, resume: bool, jobs: int, keep_files: bool, tell: Tell
) -> tuple[list[Outcome], dict[str, Any]]:
    """Run an experiment and write its files into a folder of its name; return outcomes, and figures with the paths.

    Raises
    ------
    InvalidRequest
        If something in the setup cannot be simulated.
    OSError
        If the files cannot be written.
    """
    folder = setup.folder / experiment.name
    outcomes = run_cells(experiment.cells(setup), folder, resume=resume, jobs=jobs, keep_files=keep_files, tell=tell)
    note = setup.note if experiment.uses_load else ""
    return outcomes, write_results(experiment, outcomes, folder, note=note, tell=tell)


def write_results(experiment: Experiment, outcomes: Sequence[Outcome], folder: Path, *, note: str, tell: Tell) -> dict[str, Any]:
    """Write the files of an experiment that has run; its cells' files hold the curves too."""
    tell(f"{experiment.name}: drawing")
    pictures: list[str] = []
    for name, figure in experiment.charts(outcomes):
        path = folder / picture_name(name)
        save_png(figure, path)
        pictures.append(str(path))
    results = {
        "experiment": experiment.name,
        "question": experiment.question,
        "note": note,
        "outcomes": [tables.figures(outcome) for outcome in outcomes],
        "pictures": pictures,
    }
    (folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    tables.write_csv(folder / "results.csv", outcomes)
    said = f"\n\n{note[0].upper()}{note[1:]}." if note else ""
    rows = tables.compact(outcomes) if any(outcome.value for outcome in outcomes) else tables.table(outcomes)
    (folder / "table.md").write_text(f"{tables.markdown(*rows)}{said}\n", encoding="utf-8")
    return results
