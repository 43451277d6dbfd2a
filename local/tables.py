"""Brings the generated tables of docs/ up to date: `python -m local.tables`."""

from __future__ import annotations

import re
from pathlib import Path

from samtranslator.yaml_helper import yaml_parse

from cli.reference import pages
from local.allowed_actions import markdown
from markserve.core.tunables import parameter_table

REPOSITORY = Path(__file__).resolve().parent.parent
_TABLE = re.compile(r"(?<=<!-- generated -->\n).*?(?=<!-- end -->)", re.DOTALL)


def main() -> None:
    """Replace what stands between the markers."""
    template = yaml_parse((REPOSITORY / "template.yaml").read_text(encoding="utf-8"))
    tables = {"parameters.md": parameter_table(), "security.md": markdown(template)}
    tables |= {f"reference/{name}": write() for name, write in pages(template).items()}
    for name, table in tables.items():
        path = REPOSITORY / "docs" / name
        # Backslashes of the table are its own, not the substitution's.
        path.write_text(_TABLE.sub(table.replace("\\", r"\\"), path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
