"""The loads that policies are compared on: the developers' traces, of which none is part of this repository, and an MMPP."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from simulator.experiments.workloads import mmpp

DAY_S = 86400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One load by name: a file below the traces' folder, scaled, from `start_s` to `end_s` of its own time.

    `column` names the column of a table with one load in each, a row per second; `generated` is what `--trace` takes.
    """

    name: str
    file: str = ""
    scale: float = 1.0
    start_s: float | None = None
    end_s: float | None = None
    column: str = ""
    generated: str = ""

    def trace(self, data: Path, folder: Path) -> str | None:
        """Return what `--trace` takes, None where the file is not there; a table's column is written below `folder`."""
        if self.generated:
            return self.generated
        path = data / "traces" / self.file
        if not path.is_file():
            return None
        return str(_column(path, self.column, folder / f"{self.name}.csv")) if self.column else str(path)


LOADS = (
    Load(name="twitter-may25", file="twitter_may25_1s.csv.gz", scale=4),
    Load(name="twitter-2021", file="twitter_2021-08_first15d_1s.csv.gz", scale=4, start_s=2 * DAY_S, end_s=3 * DAY_S),
    Load(name="berkeley", file="berkeley_1s.csv.gz", scale=10, start_s=0.0, end_s=DAY_S),
    Load(name="wits", file="wits_1s.csv.gz"),
    Load(name="nasa-1995", file="nasa_http_1995_1min.csv.gz", scale=100, start_s=3 * DAY_S, end_s=4 * DAY_S),
    Load(name="twitter-seasonal", file="twitter_anomalydetection_1min.csv.gz", scale=50, start_s=2 * DAY_S, end_s=3 * DAY_S),
    *(
        Load(name=f"autothrottle-{column}", file="autothrottle_1h_1s.csv", column=column)
        for column in ("diurnal", "diurnal-2", "noisy", "bursty")
    ),
    Load(name="azure-llm-code", file="azure_llm_2023_code_requests.csv.gz", scale=30),
    Load(name="azure-llm-conv", file="azure_llm_2023_conv_requests.csv.gz", scale=30),
    Load(name="mmpp", generated=mmpp(4 * 3600.0)),
)
"""Left out: Alibaba's diffusion requests. 0.013 a second would have to be multiplied by thousands, so that every request
became thousands at once, every minute or two: a load that nobody has."""
SPOT_PRICES = Path("spot") / "aws_spot_price_us-east-1_2021-03_to_2021-05_linux.csv.gz"


def _column(table: Path, column: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with table.open(encoding="utf-8", newline="") as source, path.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(("t_s", "count"))
        writer.writerows((second, row[column]) for second, row in enumerate(csv.DictReader(source)))
    return path
