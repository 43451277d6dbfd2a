"""`markserve forecast train`: refine the shipped LSTM on a trace, or on what a model of the stack recorded."""

from __future__ import annotations

import importlib.util
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cli.console import FAILED, Problem, emit_json, emit_table, err, explained
from cli.system import Json
from cli.target import connect_to_stack
from markserve.errors import InvalidRequest

if TYPE_CHECKING:
    from markserve.core.backtest import History

WINDOW_S, STEP_S = 5.0, 60.0
TRAINING_SHARE = 0.7
"""The rest of a trace judges what was trained; it is never trained on."""
JUDGED_ORIGINS_MAX = 2000
REPORTED_STEPS = (1, 3, 10, 60)
TRAINING_STEPS_MIN = 120


class TraceTraining(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a training on a trace."""

    trace: str
    steps: int
    missing_steps: int
    trained_steps: int
    best_epoch: int
    seconds: float
    started_from: str
    losses_rps: dict[str, dict[str, float]]
    """Pinball loss on the last 30 % by weights, then by minutes ahead and over all."""
    weights: str | None


@explained()
def train(
    trace: Annotated[Path | None, typer.Option(help="CSV of t_s,count or of one row per request; gzip or not.")] = None,
    model: Annotated[str | None, typer.Option(help="Instead of a trace: a model of the stack, on what it recorded.")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Write the refined weights here (safetensors).")] = None,
    epochs: Annotated[int, typer.Option(min=1, max=200, help="At most this many; it stops early where more do not help.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and history give the same weights.")] = 0,
    json: Json = False,
) -> None:
    """Refine the LSTM that ships, and judge it on steps kept from training."""
    if (trace is None) == (model is None):
        raise InvalidRequest("give either --trace or --model")
    if importlib.util.find_spec("torch") is None:
        raise Problem("training needs torch", next_step="pip install -e 'layers/markserve[torch]'")
    if model is not None:
        _train_model(model, json=json)
    elif trace is not None:
        result = _train_on_trace(trace, out_file, epochs=epochs, seed=seed)
        if json:
            emit_json(result)
        else:
            _show(result)


def read_history(path: Path) -> list[float | None]:
    """Read a trace as the highest 5-second rate of each minute; a trace of longer rows has only their mean rates.

    Raises
    ------
    InvalidRequest
        If it is no trace, or its rows are longer than a minute.
    """
    from simulator.steps import read_steps
    from simulator.traces import open_trace

    return [None if math.isnan(rate) else float(rate) for rate in read_steps(open_trace(path)).rates_rps]


def _train_on_trace(path: Path, out_file: Path | None, *, epochs: int, seed: int) -> TraceTraining:
    from markserve.adapters.lstm import LstmForecaster
    from markserve.adapters.lstm_features import HORIZON_MAX
    from markserve.ports import TrainingRun
    from markserve.pretrained import load_pretrained

    history = read_history(path)
    split = round(TRAINING_SHARE * len(history))
    if split < TRAINING_STEPS_MIN:
        raise InvalidRequest(f"{path}: {len(history)} minutes; training on {TRAINING_SHARE:.0%} of them needs {TRAINING_STEPS_MIN}")
    card, shipped = load_pretrained()
    began_s = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("epoch {task.completed} of at most {task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=err, transient=True) as progress:
        task = progress.add_task(f"training on {split} minutes", total=epochs)
        training = TrainingRun(start=shipped, save=lambda _: progress.advance(task))
        trained = LstmForecaster(epochs_max=epochs).train(history[:split], horizon_steps=HORIZON_MAX, seed=seed, training=training)
    if trained is None:
        raise Problem("the training ended before its last epoch", next_step="run it again", code=FAILED)
    if out_file is not None:
        try:
            out_file.write_bytes(trained.weights)
        except OSError as error:
            raise InvalidRequest(f"cannot write {out_file}: {error.strerror}", field="out") from error
    return TraceTraining(
        trace=str(path),
        steps=len(history),
        missing_steps=sum(rate is None for rate in history),
        trained_steps=split,
        best_epoch=trained.epochs,
        seconds=round(time.monotonic() - began_s, 1),
        started_from=card.version,
        losses_rps={
            "as shipped": _losses(shipped, history, split, horizon_steps=HORIZON_MAX),
            "refined": _losses(trained.weights, history, split, horizon_steps=HORIZON_MAX),
        },
        weights=None if out_file is None else str(out_file),
    )


def _losses(weights: bytes, history: History, split: int, *, horizon_steps: int) -> dict[str, float]:
    from markserve.adapters.lstm import LstmForecaster
    from markserve.core.backtest import backtest_origins, pinball_by_step_rps

    origins = backtest_origins(split, len(history), JUDGED_ORIGINS_MAX)
    made = LstmForecaster().forecast(weights, history, origins=origins, horizon_steps=horizon_steps)
    by_step = pinball_by_step_rps(made, history)
    known = [loss for loss in by_step if loss is not None]
    reported = {f"{step} min": loss for step in REPORTED_STEPS if step <= len(by_step) and (loss := by_step[step - 1]) is not None}
    return reported | ({"all": sum(known) / len(known)} if known else {})


def _show(result: TraceTraining) -> None:
    columns = list(next(iter(result.losses_rps.values())))
    emit_table(
        f"Pinball loss on the last {1 - TRAINING_SHARE:.0%} of {result.trace}, requests/s",
        ("weights", *columns),
        [(name, *(f"{losses[column]:.4g}" for column in columns)) for name, losses in result.losses_rps.items()],
    )
    epoch = f"best epoch {result.best_epoch}" if result.best_epoch else "no epoch was better than the weights that ship"
    err.print(
        f"{result.trained_steps} of {result.steps} minutes trained on ({result.missing_steps} missing): {epoch}; {result.seconds:g} s"
        + (f"; {result.weights}" if result.weights else ""),
        highlight=False,
        soft_wrap=True,
    )


def _train_model(model: str, *, json: bool) -> None:
    connect_to_stack()
    from markserve import wiring
    from markserve.history import StepGrid
    from markserve.training import train_models

    wiring.models().get(model)
    with Progress(TextColumn("training {task.description}"), TimeElapsedColumn(), console=err, transient=True) as progress:
        progress.add_task(model)
        (report,) = train_models(
            [model],
            windows=wiring.windows(),
            blobs=wiring.blobs(),
            control=wiring.control(),
            forecaster=wiring.learned_forecaster(),
            grid=StepGrid.of(wiring.settings()),
            now_s=time.time(),
        )
    if json:
        emit_json(asdict(report))
    else:
        emit_table("Training", ("model", "version", "promoted", "why"), [(report.model, report.version, report.promoted, report.reason)])
    if report.version is None:
        raise typer.Exit(FAILED)
