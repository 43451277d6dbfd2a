"""Pre-train the LSTM on generated workloads and write the weights that ship: `python -m benchmarks.pretrain_lstm`.

Sees no recorded trace. Takes about 3 minutes on one core; the same seed and version of torch give the same weights.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.generated_workloads import DAY, Workload, draw_workload
from benchmarks.lstm_baselines import Floats, forecast_naively, mean_pinball
from markserve.adapters.lstm import LstmForecaster
from markserve.adapters.lstm_features import HORIZON_MAX, Lookback, Samples, Season
from markserve.adapters.lstm_network import QuantileLstm
from markserve.adapters.lstm_training import BATCH_SAMPLES, STEPS_PER_SAMPLE, pinball, single_thread, step_optimiser
from markserve.core.backtest import QUANTILES
from markserve.messages import encode
from markserve.pretrained import PretrainedCard

DATA = Path(__file__).resolve().parents[1] / "layers/markserve/markserve/data"
SERIES, MINUTES, ORIGINS = 1200, 9 * DAY, 160
HELD_OUT_SERIES, HELD_OUT_SEED = 60, 1_000_000
EPOCHS = 10
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 100
CHANGE_STEPS = 15
SHORT_SHARE = 0.5
"""Share of the workloads whose record begins late, so that every amount of history is learned."""
YOUNG_SHARE = 0.35
"""Share of the workloads looked at mostly near the start of the record."""
REPORTED_STEPS = (1, 3, 10, 60)
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Pool:
    """Samples, and the unit of each one's loss."""

    samples: Samples
    unit: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Tensor) -> Pool:
        return Pool(self.samples[index], self.unit[index])


def draw_pool(series: int, seed: int) -> Pool:
    """Draw workloads and look at each from many origins."""
    rng = np.random.default_rng(seed)
    drawn = [look_at(draw_workload(rng, MINUTES), rng) for _ in range(series)]
    pool = Pool(Samples.join([samples for samples, _ in drawn]), torch.cat([unit for _, unit in drawn]))
    targets = ~pool.samples.target.isnan().all(dim=1)
    return pool[((pool.samples.scale > 0) & targets & pool.unit.isfinite()).nonzero().flatten()]


def look_at(workload: Workload, rng: np.random.Generator) -> tuple[Samples, Tensor]:
    """Choose origins, more of them where the load has just moved: chosen by the past alone, so no quantile is biased.

    The unit of the loss is how much the series changes in a quarter of an hour: each series then counts alike.
    """
    start = int(rng.integers(MINUTES - 200)) if rng.random() < SHORT_SHARE else 0
    lookback = Lookback(workload.history()[start:], Season.of(60.0))
    origins = MINUTES - start - HORIZON_MAX
    chances = 0.5 + lookback.moved(torch.arange(1, origins + 1)).numpy()
    if rng.random() < YOUNG_SHARE:
        chances /= np.arange(1, origins + 1)
    chosen = 1 + rng.choice(origins, ORIGINS, p=chances / chances.sum())
    ahead = rng.integers(HORIZON_MAX, size=(ORIGINS, STEPS_PER_SAMPLE))
    ahead[:, 0], ahead[:, 1] = 0, rng.integers(1, 6, size=ORIGINS)
    roots = np.sqrt(workload.maxima_rps[start:])
    known = np.abs(roots[CHANGE_STEPS:] - roots[:-CHANGE_STEPS])
    unit = np.nanmean(known) + 0.02 * np.nanmean(roots) if (~np.isnan(known)).any() else np.nan
    return lookback.samples(torch.from_numpy(chosen), torch.from_numpy(ahead)), torch.full((ORIGINS,), float(unit), dtype=torch.float64)


def mean_loss(network: QuantileLstm, pool: Pool) -> float:
    """Return the mean loss of a pool."""
    with torch.no_grad():
        parts = [pool[index] for index in torch.arange(len(pool)).split(1024)]
        return sum(float(pinball(network, part.samples, part.unit)) * len(part) for part in parts) / len(pool)


def fit(pool: Pool, held_out: Pool, *, epochs: int, seed: int) -> QuantileLstm:
    """Train, with a learning rate that falls by half a cosine."""
    torch.manual_seed(seed)
    network = QuantileLstm()
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    steps, step = epochs * math.ceil(len(pool) / BATCH_SAMPLES), 0
    for epoch in range(1, epochs + 1):
        for index in torch.randperm(len(pool)).split(BATCH_SAMPLES):
            share = 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps))
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * share * min(1.0, (step + 1) / WARM_UP_STEPS)
            batch = pool[index]
            step_optimiser(network, optimiser, pinball(network, batch.samples, batch.unit))
            step += 1
        console.print(f"epoch {epoch} of {epochs}: loss {mean_loss(network, held_out):.5f} on workloads held out", highlight=False)
    return network.eval()  # type: ignore[no-any-return]


def judge(weights: bytes, seed: int) -> dict[str, dict[str, float]]:
    """Return the pinball loss over the mean rate by forecaster and step ahead, on the last days of workloads held out."""
    rng = np.random.default_rng(seed)
    losses: dict[str, list[Floats]] = {}
    for _ in range(HELD_OUT_SERIES):
        workload = draw_workload(rng, MINUTES)
        rates, level = workload.maxima_rps, float(np.nanmean(workload.maxima_rps))
        origins = np.arange(MINUTES - 2 * DAY, MINUTES - HORIZON_MAX, 29)
        made = LstmForecaster().forecast(weights, workload.history(), origins=origins.tolist(), horizon_steps=HORIZON_MAX)
        common = np.array([origin for origin in origins.tolist() if origin in made])
        if not level or not len(common):
            continue
        forecasts = {
            "lstm": np.array([[made[origin][q] for q in QUANTILES] for origin in common.tolist()]).transpose(0, 2, 1),
            "persistence": forecast_naively(rates, common, "persistence"),
            "seasonal-naive": forecast_naively(rates, common, "seasonal-naive"),
        }
        for name, forecast in forecasts.items():
            losses.setdefault(name, []).append(mean_pinball(rates, common, forecast) / level)
    return {
        name: {str(step): round(float(np.nanmean([loss[step - 1] for loss in found])), 5) for step in REPORTED_STEPS}
        for name, found in losses.items()
    }


def main() -> None:
    """Read the command line, train and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--series", type=int, default=SERIES, help=f"generated workloads of {MINUTES // DAY} days each")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=DATA, help="folder for lstm.safetensors and lstm.card.json")
    arguments = parser.parse_args()
    started_s = time.process_time()
    with single_thread():
        console.print(f"drawing {arguments.series} workloads", highlight=False)
        pool = draw_pool(arguments.series, arguments.seed)
        held_out = draw_pool(HELD_OUT_SERIES, HELD_OUT_SEED + arguments.seed)
        network = fit(pool, held_out, epochs=arguments.epochs, seed=arguments.seed)
    weights = network.to_bytes()
    digest = sha256(weights).hexdigest()
    card = PretrainedCard(
        version=f"pretrained-{digest[:8]}",
        forecaster="lstm",
        weights_sha256=digest,
        data=f"{arguments.series} generated workloads of {MINUTES // DAY} days, no recorded trace: benchmarks/generated_workloads.py",
        step_s=60.0,
        horizon_steps=HORIZON_MAX,
        seed=arguments.seed,
        epochs=arguments.epochs,
        samples=len(pool),
        parameters=network.parameter_count,
        torch_version=version("torch").split("+")[0],
        judged_on=f"the last 2 days of {HELD_OUT_SERIES} generated workloads of another seed",
        losses=judge(weights, HELD_OUT_SEED + arguments.seed + 1),
    )
    (arguments.out / "lstm.safetensors").write_bytes(weights)
    (arguments.out / "lstm.card.json").write_bytes(encode(card))
    console.print(f"{card.version}: {len(weights)} bytes after {time.process_time() - started_s:.0f} s of CPU", highlight=False)


if __name__ == "__main__":
    main()
