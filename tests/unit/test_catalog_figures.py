"""Every figure of the shipped catalog against the developers' price files."""

import csv
from pathlib import Path

import pytest

from markserve.catalog import load_catalog

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
PRICES = DATA / "prices" / "ec2_us-east-1_linux.csv"
ADVISOR = DATA / "spot" / "aws_spot_advisor_us-east-1_linux.csv"


def rows(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        pytest.skip("the developers' price files are not here")
    with path.open(newline="") as lines:
        return {row["instance_type"]: row for row in csv.DictReader(lines)}


def test_shipped_catalog_restates_the_price_list() -> None:
    listed = rows(PRICES)

    for entry in load_catalog().entries:
        row = listed[entry.instance_type]
        assert entry.price_usd_per_hour == float(row["od_2026_07"]), entry.instance_type
        assert (entry.vcpu, entry.memory_gib, entry.arch) == (int(row["vcpu"]), float(row["memory_gib"]), row["arch"]), entry.instance_type
        assert entry.gpu_count == int(float(row["gpu_count"] or 0)), entry.instance_type


def test_shipped_catalog_restates_the_spot_advisor() -> None:
    listed = rows(ADVISOR)

    for entry in load_catalog().entries:
        row = listed[entry.instance_type]
        assert entry.spot_saving == pytest.approx(int(row["savings_pct_over_ondemand"]) / 100), entry.instance_type
        assert entry.interruption_band == row["interruption_label"], entry.instance_type
