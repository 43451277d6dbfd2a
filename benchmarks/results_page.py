"""Fills docs/results.md with what was measured: `python -m benchmarks.results_page DIR` takes the experiments' folder.

Text between `<!-- NAME:begin -->` and `<!-- NAME:end -->` is replaced, everything else is left.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

PAGE = Path("docs/results.md")
PICTURES = {
    "macro": ("*-cost.png", "*-missed.png", "*squeezenet-latency.png", "*inception-v3-latency.png"),
    "micro-surge": ("*300-for-a-minute-latency.png", "*300-for-the-whole-event-latency.png"),
    "micro-spot": ("all-of-the-largest-pool-latency.png", "half-*-latency.png"),
    "sensitivity": ("*launch-delay*.png", "*believed*.png", "*forecast-factor*.png"),
}
"""By experiment; the others stay in the experiments' folder."""


def fill(page: Path, sections: Mapping[str, str]) -> None:
    """Put text between the markers of each section.

    Raises
    ------
    ValueError
        If the page has no such markers.
    """
    text = page.read_text(encoding="utf-8")
    for name, body in sections.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{page} has no {begin} ... {end}")
        text = f"{before}{begin}\n{body.strip()}\n{end}{after}"
    page.write_text(text, encoding="utf-8")


def picture(page: Path, path: Path, *, about: str) -> str:
    """Return a picture as Markdown, by its path from the page."""
    return f"![{about}]({path.resolve().relative_to(page.resolve().parent).as_posix()})"


def experiment_section(folder: Path, page: Path) -> str:
    """Return an experiment's table and pictures, which are copied into `img` beside the page in place of what was there."""
    images = page.parent / "img"
    images.mkdir(parents=True, exist_ok=True)
    for old in images.glob(f"{folder.name}-*.png"):
        old.unlink()  # of another load, perhaps
    parts = [(folder / "table.md").read_text(encoding="utf-8")]
    for path in sorted(folder.glob("*.png")):
        if any(fnmatch(path.name, pattern) for pattern in PICTURES[folder.name]):
            copied = images / f"{folder.name}-{path.name}".replace("+", "plus-")
            shutil.copyfile(path, copied)
            parts.append(picture(page, copied, about=path.stem.replace("-", " ")))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill in the experiments that have run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `markserve experiments --out` wrote")
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args(arguments)
    found = [asked.folder / name for name in PICTURES if (asked.folder / name / "table.md").is_file()]
    if not found:
        sys.stderr.write(f"error: no experiment has run in {asked.folder}; run `markserve experiments all --out {asked.folder}`\n")
        return 2
    try:
        fill(asked.page, {folder.name: experiment_section(folder, asked.page) for folder in found})
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
