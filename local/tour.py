"""Writes what a tour printed into its page, between the markers: `examples/tours/operator.sh | python -m local.tour PAGE`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from local.supervisor import state_dir
from local.tables import REPOSITORY

_RECORDED = re.compile(r"(?<=<!-- recorded -->\n).*?(?=<!-- end -->)", re.DOTALL)


def as_markdown(printed: str) -> str:
    """Turn a tour's output into sections with what each printed; where it ran is nobody's business."""
    for place, name in ((state_dir(), ".markserve"), (REPOSITORY, ".")):
        printed = printed.replace(str(place), name)
    parts = []
    for section in re.split(r"^(?=## )", printed, flags=re.MULTILINE):
        heading, _, body = section.partition("\n")
        lines = "\n".join(line.rstrip() for line in body.strip().splitlines())
        if heading.startswith("## "):
            parts.append(f"{heading}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts) + "\n"


def main() -> None:
    """Replace what stands between the markers; a tour that failed replaces nothing."""
    page, printed = Path(sys.argv[1]), sys.stdin.read()
    if "$ markserve logs" not in printed:
        raise SystemExit("the tour did not come to its end; the page is as it was")
    sys.stdout.write(printed)
    page.write_text(_RECORDED.sub(lambda _: as_markdown(printed), page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
