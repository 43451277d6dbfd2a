"""How good and how fast the LSTM is: `python -m benchmarks.lstm compare|speed`.

`compare` reads the developers' traces beside the repository and judges the shipped weights as they are, the same refined on
the first 70 % of each trace, persistence, the same time yesterday, and MArk's recipe, all on the last 30 %. `speed` times
forecasts on one core, from a new process on.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import mark_recipe
from benchmarks.lstm_baselines import DAY, HORIZON, Floats, coverage, forecast_naively, mean_pinball
from markserve.adapters.lstm import LstmForecaster
from markserve.core.backtest import QUANTILES, History
from markserve.ports import TrainingRun
from markserve.pretrained import load_pretrained

TRACES = Path(__file__).resolve().parents[2] / "shared/data/traces"
FILES = {
    "twitter_2021": "twitter_2021-08_first15d_1s.csv.gz",
    "berkeley": "berkeley_1s.csv.gz",
    "nasa": "nasa_http_1995_1min.csv.gz",
    "twitter_anomaly": "twitter_anomalydetection_1min.csv.gz",
    "twitter_may25": "twitter_may25_1s.csv.gz",
}
TRAINING_SHARE = 0.7
HISTORY_MAX = 14 * DAY
STRIDE = 7
"""Minutes between origins; prime to an hour."""
REPORTED_STEPS = (1, 3, 10, 60)
console = Console(stderr=True)


def minute_maxima(path: Path) -> Floats:
    """Read a trace of counts as the highest 5-second rate of each minute; of a trace of minutes, the mean rate is all there is.

    A window of which less than half is recorded is missing, and so is a minute of which less than half the windows are.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        times, counts = np.array([(float(row["t_s"]), float(row["count"])) for row in rows]).T
    if np.diff(times).min() >= 60:
        at = ((times - times[0]) // 60).astype(int)
        minutes = np.full(at[-1] + 1, np.nan)
        minutes[at] = counts / 60
        return minutes
    at = (times - times[0]).astype(int)
    seconds = np.full((at[-1] + 1) // 60 * 60, np.nan)
    inside = at < len(seconds)
    seconds[at[inside]] = counts[inside]
    windows = _reduced(seconds.reshape(-1, 5), np.nansum) / np.maximum(1, (~np.isnan(seconds)).reshape(-1, 5).sum(axis=1))
    return _reduced(windows.reshape(-1, 12), lambda part, axis: np.asarray(np.where(np.isnan(part), -1.0, part).max(axis=axis)))


def _reduced(parts: Floats, reduce: Callable[..., Floats]) -> Floats:
    whole = 2 * (~np.isnan(parts)).sum(axis=1) >= parts.shape[1]
    return np.where(whole, reduce(parts, axis=1), np.nan)


def compare(rates: Floats, *, stride: int) -> tuple[Floats, NDArray[np.int64], dict[str, Floats]]:
    """Forecast the last 30 % with every method; the rates, the origins in them, and (origins, 60, quantiles) by method."""
    split = round(TRAINING_SHARE * len(rates))
    rates = rates[max(0, split - HISTORY_MAX) :]
    split = min(split, HISTORY_MAX)
    history: History = [None if rate != rate else float(rate) for rate in rates]
    lstm, (_, shipped) = LstmForecaster(), load_pretrained()
    trained = lstm.train(history[:split], horizon_steps=HORIZON, seed=0, training=TrainingRun(start=shipped))
    weights = {"LSTM as shipped": shipped, "LSTM refined": shipped if trained is None else trained.weights}
    if trained is not None:
        console.print(f"  refined: best epoch {trained.epochs} of {trained.samples} origins", highlight=False)
    origins = np.arange(split, len(rates), stride)
    made: dict[str, Floats] = {}
    for name, kept in weights.items():
        forecasts = lstm.forecast(kept, history, origins=origins.tolist(), horizon_steps=HORIZON)
        nothing = dict.fromkeys(QUANTILES, (np.nan,) * HORIZON)
        made[name] = np.array([[forecasts.get(o, nothing)[q] for q in QUANTILES] for o in origins.tolist()]).transpose(0, 2, 1)
    made["persistence"] = forecast_naively(rates, origins, "persistence")
    made["seasonal-naive"] = forecast_naively(rates, origins, "seasonal-naive")
    points = mark_recipe.MarkRecipe.train(history[:split]).forecast(history, origins.tolist(), HORIZON)
    made["MArk's recipe"] = np.repeat(np.array([points[o] for o in origins.tolist()])[:, :, None], len(QUANTILES), axis=2)
    common = origins[np.isfinite(np.stack([forecast[:, 0, 0] for name, forecast in made.items() if name != "seasonal-naive"])).all(axis=0)]
    kept_rows = np.isin(origins, common)
    return rates, common, {name: forecast[kept_rows] for name, forecast in made.items()}


def report(name: str, *, stride: int) -> list[dict[str, object]]:
    """Return one row per method: pinball loss by step ahead, its mean, and coverage at 1 to 10 minutes."""
    rates, origins, made = compare(minute_maxima(TRACES / FILES[name]), stride=stride)
    rows: list[dict[str, object]] = []
    for method, forecast in made.items():
        if np.isnan(forecast).any():  # less than a day of history
            continue
        losses = mean_pinball(rates, origins, forecast)
        covered = coverage(rates, origins, forecast, slice(0, 10))
        rows.append(
            {"trace": name, "method": method, "origins": len(origins), "all": float(losses.mean())}
            | {f"{step} min": float(losses[step - 1]) for step in REPORTED_STEPS}
            | {f"covered {q}": float(share) for q, share in zip(QUANTILES, covered, strict=True)}
        )
    return rows


def print_markdown(rows: list[dict[str, object]]) -> None:
    """Print rows as a table."""
    columns = [name for name in rows[0] if name != "origins"]
    sys.stdout.write("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns) + "\n")
    for row in rows:
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in (row[name] for name in columns)]
        sys.stdout.write("| " + " | ".join(cells) + " |\n")


def speed() -> dict[str, float]:
    """Time a forecast from two weeks of minutes in this process, first call included, a back-test, and a training; of CPU."""
    forecaster, (_, weights) = LstmForecaster(), load_pretrained()
    rng = np.random.default_rng(0)
    history = (50 + 20 * np.sin(np.arange(HISTORY_MAX) * 2 * np.pi / DAY) + rng.normal(0, 3, HISTORY_MAX)).tolist()

    def forecast(origins: range) -> float:
        began_s = time.process_time()
        forecaster.forecast(weights, history, origins=origins, horizon_steps=HORIZON)
        return time.process_time() - began_s

    now = range(len(history), len(history) + 1)
    figures = {"first call, ms": forecast(now) * 1000}
    figures["warm call, ms"] = statistics.median(forecast(now) for _ in range(20)) * 1000
    figures["peak memory of a forecast, MB"] = peak_mb()
    began_s = time.process_time()
    forecaster.train(history, horizon_steps=HORIZON, seed=0, training=TrainingRun(start=weights))
    figures["training, s"] = time.process_time() - began_s
    figures["peak memory of a training, MB"] = peak_mb()
    figures["20,000 origins, s"] = forecast(range(len(history) - 20_000, len(history)))
    return figures


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def import_ms() -> float:
    """Time the import of the forecaster, torch included, in a new process; of CPU."""
    timed = "import time; t = time.process_time(); import markserve.adapters.lstm; print((time.process_time() - t) * 1000)"
    return float(subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True).stdout)  # noqa: S603 - ours


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("compare", "speed"))
    parser.add_argument("--trace", action="append", choices=tuple(FILES), help="may be repeated; default: all")
    parser.add_argument("--stride", type=int, default=STRIDE, help="minutes between origins")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "speed":
        rows: list[dict[str, object]] = [{"import, ms": import_ms(), **speed()}]
    else:
        rows = []
        for name in arguments.trace or FILES:
            if not (TRACES / FILES[name]).exists():
                console.print(f"{name}: not there, passed over ({TRACES / FILES[name]})", highlight=False, soft_wrap=True)
                continue
            console.print(name, highlight=False)
            rows += report(name, stride=arguments.stride)
    if arguments.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    elif rows:
        print_markdown(rows)


if __name__ == "__main__":
    main()
