"""Write the report: read the runs, draw each chart once for the page and once as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simulator.report import figures
from simulator.report.drawing import report_charts
from simulator.report.page import page
from simulator.report.reading import find_runs, read_run
from simulator.report.style import WIDE, save_png

DEFAULT_NAME = "report.html"


def write_report(
    folders: Sequence[Path], *, out: Path | None = None, png: bool = True, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Write a report of runs and return its figures, with the paths of what was written.

    Parameters
    ----------
    folders
        One policy's folder each, or a run's with several.
    out
        The page, or a folder for it; default: `report.html` in the first folder. Pictures lie beside the page.
    progress
        Told what is done next.

    Raises
    ------
    InvalidRequest
        If a folder is no run, or a file in it is not what it should be.
    OSError
        If the report cannot be written.
    """
    runs = []
    for label, folder in find_runs(folders):
        progress(f"reading {label}")
        runs.append(read_run(label, folder))
    target = page_path(folders[0], out)
    charts = report_charts(runs)
    progress("drawing")
    target.parent.mkdir(parents=True, exist_ok=True)
    names = [folder.resolve().name for folder in folders]
    target.write_text(page(runs, charts, title=f"Provisioning policies: {', '.join(names)}"), encoding="utf-8")
    pictures: list[Path] = []
    for chart in charts if png else []:
        progress(f"drawing {chart.name}")
        pictures.append(target.with_name(f"{target.stem}-{chart.name}.png"))
        save_png(chart.draw(WIDE), pictures[-1])
    return {
        "page": str(target),
        "png": {chart.name: str(path) for chart, path in zip(charts, pictures, strict=False)},
        "policies": [figures.figures(run) for run in runs],
    }


def page_path(first: Path, out: Path | None) -> Path:
    """Return where the page goes: `out` names a file by its suffix, else a folder."""
    if out is None:
        return first / DEFAULT_NAME
    return out if out.suffix.lower() in (".html", ".htm") else out / DEFAULT_NAME
