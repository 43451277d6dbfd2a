"""`markserve forecast ...`: judge forecasters on a recorded load before trusting them, and look at what they expect."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cli import forecast_train
from cli.console import BAD_USAGE, Problem, emit_json, emit_table, err, explained, out
from cli.system import Json
from cli.target import connect_to_stack
from markserve.core.backtest import QUANTILES
from markserve.errors import InvalidRequest

if TYPE_CHECKING:
    from markserve.forecasters.rolling import Judgement, Rolled
    from markserve.messages import ForecastRecord
    from simulator.steps import StepTrace

app = typer.Typer(help="Judge forecasters on a recorded load, show what they expect, and train the LSTM.", no_args_is_help=True)
app.command("train", epilog="Example: `markserve forecast train --trace weeks.csv.gz --out lstm.safetensors`")(forecast_train.train)

HORIZON_STEPS = 60
BUYING_QUANTILE = 0.9
SHOWN_STEPS = (1, 2, 3, 5, 10, 15, 30, 60)
PROGRESS_EVERY = 60

TraceFile = Annotated[Path, typer.Option(help="CSV of t_s,count or of one row per request (arrival_s or t_s); gzip or not.")]
OptionalTrace = Annotated[Path | None, typer.Option(help="As for back-tests; default: the live stack's latest forecast.")]


@app.command("backtest", epilog="Example: `markserve forecast backtest --trace day.csv.gz --forecasters linear,persistence --out runs/day`")
@explained()
def backtest(
    trace: TraceFile,
    forecasters: Annotated[str, typer.Option(help="NAME[,NAME...] to show, such as champion,linear; default: all.")] = "",
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder for backtest.json and backtest.png.")] = None,
    split: Annotated[
        float, typer.Option(min=0.05, max=0.95, help="Judge from this share of the trace on; what comes before only teaches.")
    ] = 0.5,
    quantile: Annotated[
        float, typer.Option(min=0.5, max=0.99, help="Buying quantile that costs are at, and that chooses the champion.")
    ] = 0.9,
    json: Json = False,
) -> None:
    """Go through a trace as the product would, minute by minute, and compare what each forecaster said with what came."""
    _require_numpy()
    from markserve.forecasters.rolling import judge, known_names

    names = [name.strip() for name in forecasters.split(",") if name.strip()]
    if strangers := known_names(names):
        raise Problem(f"there is no forecaster {strangers[0]!r}", next_step=f"known: {', '.join(_all_names())}", code=BAD_USAGE)
    steps = _read(trace)
    rolled = _roll(steps, split=split, quantile=quantile)
    judged = judge(rolled, steps.rates_rps, quantiles=[quantile], names=names or None)
    if not judged:
        raise InvalidRequest(f"{trace}: none of its later minutes is known, so nothing can be judged")
    if out_dir is not None:
        _write(out_dir, judged, quantile)
    if json:
        emit_json(judged)
        return
    _show_judged(judged, rolled, quantile, steps)
    if out_dir is not None:
        out.print(f"files: {out_dir}/backtest.json, {out_dir}/backtest.png", highlight=False, soft_wrap=True)


@app.command(
    "show", epilog="Example: `markserve forecast show --trace day.csv.gz --at 43200 --out runs/day    |    markserve forecast show digits`"
)
@explained()
def show(
    model: Annotated[str | None, typer.Argument(help="Model of the live stack; default: the only one.")] = None,
    trace: OptionalTrace = None,
    at: Annotated[float | None, typer.Option(help="Forecast from this time of the trace; default: its end.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder for forecast.png.")] = None,
    json: Json = False,
) -> None:
    """Show a forecast: what is expected of the coming hour, by quantile, and who says so."""
    if trace is None:
        history: list[float] = []
        record = _live(model)
    else:
        _require_numpy()
        record, history = _forecast_of(trace, at)
    if out_dir is not None:
        from cli.forecast_plots import fan_chart

        out_dir.mkdir(parents=True, exist_ok=True)
        fan_chart(record, history, out_dir / "forecast.png")
    if json:
        emit_json(record)
        return
    out.print(f"{record.forecaster}: {record.reason}", markup=False, highlight=False, soft_wrap=True)
    columns = ("ahead", *(f"{q:.0%}" for q in QUANTILES))
    rows = [
        (_distance(step * record.step_s), *(f"{record.rates_rps[str(q)][step - 1]:.2f}" for q in QUANTILES))
        for step in SHOWN_STEPS
        if step <= len(record.rates_rps["0.5"])
    ]
    emit_table(f"Highest rate expected from {record.origin_at_s:.0f} s on, requests/s by quantile", columns, rows)
    if out_dir is not None:
        out.print(f"file: {out_dir}/forecast.png", highlight=False, soft_wrap=True)


def _require_numpy() -> None:
    if importlib.util.find_spec("numpy") is None:
        raise Problem("forecasting a trace needs numpy", next_step="pip install -e '.[simulate]'")


def _all_names() -> list[str]:
    from markserve.forecasters.bank import OWN
    from markserve.forecasters.rolling import CHAMPION

    return [CHAMPION, *OWN]


def _read(trace: Path, end_s: float | None = None) -> StepTrace:
    from simulator.steps import read_steps
    from simulator.traces import open_trace

    with err.status("reading the trace"):
        return read_steps(open_trace(trace, end_s=end_s))


def _roll(steps: StepTrace, *, split: float, quantile: float) -> Rolled:
    from markserve.forecasters.bank import Terms
    from markserve.forecasters.rolling import roll
    from simulator.assumptions import STEP_S, WINDOW_S
    from simulator.forecasting import DAY_STEPS

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("going through the trace", total=len(steps.rates_rps))

        def tell(origin: int) -> None:
            if origin % PROGRESS_EVERY == 0:
                progress.update(task, completed=origin)

        return roll(
            steps.rates_rps,
            terms=Terms(day=DAY_STEPS, window_s=WINDOW_S, step_s=STEP_S, horizon_steps=HORIZON_STEPS),
            since_s=steps.since_s,
            quantile=quantile,
            first_kept=math.floor(split * len(steps.rates_rps)),
            progress=tell,
        )


def _write(out_dir: Path, judged: list[Judgement], quantile: float) -> None:
    from cli.forecast_plots import cost_chart

    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "backtest.json").write_bytes(msgspec.json.format(msgspec.json.encode(judged), indent=2) + b"\n")
    cost_chart(judged, quantile, out_dir / "backtest.png")


def _show_judged(judged: list[Judgement], rolled: Rolled, quantile: float, steps: StepTrace) -> None:
    by_name: dict[str, dict[str, Judgement]] = {}
    for one in judged:
        by_name.setdefault(one.forecaster, {})[one.ahead] = one
    distances = list(dict.fromkeys(one.ahead for one in judged if one.ahead != "launch"))
    columns = ("forecaster", "cost 3-10", *distances, "pinball", f"≤ {quantile:.0%}", "≤ 98%", "sMAPE")
    rows = []
    for name, found in sorted(by_name.items(), key=lambda item: _launch(item[1]).newsvendor_rps[quantile]):
        one = _launch(found)
        costs = [f"{found[ahead].newsvendor_rps[quantile]:.3f}" if ahead in found else None for ahead in distances]
        nearest = min(QUANTILES, key=lambda q: abs(q - quantile))
        shown = (f"{one.coverage[nearest]:.1%}", f"{one.coverage[0.98]:.1%}", f"{one.smape:.1%}")
        rows.append((name, f"{one.newsvendor_rps[quantile]:.3f}", *costs, f"{one.pinball_rps:.3f}", *shown))
    emit_table(f"{len(rolled.origins):,} origins; costs in requests/s at the {quantile:.0%} quantile, by minutes ahead", columns, rows)
    served = {name: rolled.served_by.count(name) / len(rolled.served_by) for name in dict.fromkeys(rolled.served_by)}
    shares = ", ".join(f"{name} {share:.0%}" for name, share in sorted(served.items(), key=lambda item: -item[1]))
    out.print(f"champion: {shares}", highlight=False, soft_wrap=True)
    if steps.row_s is not None and steps.row_s > 5.0:
        out.print(f"a row covers {steps.row_s:g} s: its rate stands for that of its 5 s windows, whose peaks it hides", soft_wrap=True)


def _launch(found: dict[str, Judgement]) -> Judgement:
    return found.get("launch") or next(iter(found.values()))


def _forecast_of(trace: Path, at_s: float | None) -> tuple[ForecastRecord, list[float]]:
    from markserve.forecasters.bank import Terms, replay, step
    from markserve.messages import ForecastRecord
    from simulator.assumptions import STEP_S, WINDOW_S
    from simulator.forecasting import DAY_STEPS

    steps = _read(trace, at_s)
    rates = steps.rates_rps
    if at_s is not None:
        rates = rates[: max(0, math.floor((at_s - steps.since_s) / STEP_S))]
    if not len(rates):
        raise InvalidRequest(f"{trace}: no whole minute lies before --at {at_s:g}" if at_s is not None else f"{trace}: no whole minute")
    until_s = steps.since_s + len(rates) * STEP_S
    terms = Terms(day=DAY_STEPS, window_s=WINDOW_S, step_s=STEP_S, horizon_steps=HORIZON_STEPS)
    with err.status("going through the last hours"):
        state = replay(rates, terms=terms, quantile=BUYING_QUANTILE, until_s=until_s)
        made = step(state, rates, terms=terms, quantile=BUYING_QUANTILE, until_s=until_s)
    record = ForecastRecord(
        model=trace.name,
        origin_at_s=until_s,
        step_s=STEP_S,
        rates_rps={str(q): path for q, path in made.rates_rps.items()},
        forecaster=made.forecaster,
        reason=made.reason,
        scores=dict(made.costs),
        calibration_error=made.calibration_error,
    )
    return record, [float(rate) for rate in rates[-2 * HORIZON_STEPS :]]


def _live(model: str | None) -> ForecastRecord:
    connect_to_stack()
    from markserve import wiring

    names = [record.model for record in wiring.models().list()]
    if model is None and len(names) != 1:
        raise Problem("which model?", next_step=f"registered: {', '.join(names) or 'none'}", code=BAD_USAGE)
    record = wiring.control().latest_forecast(model or names[0])
    if record is None:
        raise Problem(f"there is no forecast of {model or names[0]} yet", next_step="one comes with the first control cycle")
    return record


def _distance(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"
