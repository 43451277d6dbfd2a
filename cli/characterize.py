"""`markserve characterize`: latency and cost per million requests of everything a model could run on."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from cli.console import BAD_USAGE, Problem, emit_json, emit_table, explained, out
from cli.system import Json
from markserve.messages import ProfilePointRecord

if TYPE_CHECKING:
    from markserve.core.characterization import Economics

MARKERS = {"IaaS": "o", "CaaS": "s", "FaaS": "^"}


class MeasuredProfile(msgspec.Struct, kw_only=True):
    """A profile file, as `markserve profile --out` writes and `markserve simulate` reads it."""

    model: str
    source: str
    max_batch_size: int
    profiles: dict[str, tuple[ProfilePointRecord, ...]]
    lambda_memory_mb: int = 1769


def read_profiles(path: Path) -> MeasuredProfile:
    """Read a profile file; raises `Problem` saying what is wrong with it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=MeasuredProfile)
    except OSError as error:
        raise Problem(
            f"{path} cannot be read: {error.strerror}", next_step="write one with `markserve profile --out`", code=BAD_USAGE
        ) from error
    except msgspec.MsgspecError as error:
        raise Problem(f"{path} is not a profile: {error}", next_step="see docs/characterization.md", code=BAD_USAGE) from error


@explained()
def characterize(
    model: Annotated[str | None, typer.Argument(help="A registered model; or give --profile.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Profile file, measured anywhere.")] = None,
    rt_max: Annotated[float | None, typer.Option(min=0.001, max=29.0, help="Objective in seconds; default: the model's, else 0.2.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a figure: .png, .svg or .pdf.")] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="First launch one instance of each of these types (comma-separated), measure the model on it, and end it. Costs money."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compare instances, containers and functions, CPU and GPU, with and without batching, on AWS and Google Cloud."""
    if (model is None) == (profile is None):
        raise Problem("give either a model or --profile FILE", next_step="see --help", code=BAD_USAGE)
    if measure is not None:
        if model is None:
            raise Problem("--measure needs a registered model", next_step="see `markserve models list`", code=BAD_USAGE)
        from cli.target import connect_to_stack

        connect_to_stack()
        from cli.measuring import measure_on

        measure_on(model, measure.split(","))
    measured, objective_s = _measured(model) if model else (read_profiles(profile or Path()), 0.2)
    found = _characterize(measured, rt_max or objective_s)
    if plot is not None:
        draw(found, plot, title=f"{measured.model}: RT_max {rt_max or objective_s:g} s")
    if json:
        emit_json(found)
        return
    emit_table(f"{measured.model}, RT_max {rt_max or objective_s:g} s, busy machines, cheapest first", _COLUMNS, [_row(e) for e in found])
    _print_sources(measured, plot)


def _measured(model: str) -> tuple[MeasuredProfile, float]:
    from cli.target import connect_to_stack

    connect_to_stack()
    from markserve import wiring

    record = wiring.models().get(model)
    if not record.profiles:
        raise Problem(f"{model} was not measured yet", next_step=f"measure it with `markserve profile {model}`")
    measured = MeasuredProfile(
        model=model,
        source="the profiles stored with the model",
        max_batch_size=record.max_batch_size,
        profiles=dict(record.profiles),
        lambda_memory_mb=wiring.settings().spillover_memory_mb,
    )
    return measured, wiring.parameters().get(model).rt_max_s


def _characterize(measured: MeasuredProfile, rt_max_s: float) -> list[Economics]:
    from markserve.core.characterization import characterize as judge
    from markserve.profiling import batch_profile
    from markserve.rents import rents

    profiles = {name: batch_profile(name, points) for name, points in measured.profiles.items()}
    found = judge(profiles, rents(profiles, lambda_memory_mb=measured.lambda_memory_mb), rt_max_s=rt_max_s)
    if not found:
        known = ", ".join(sorted(profiles))
        raise Problem(f"no price for any of {known}", next_step="name profiles as EC2 or Google Cloud name their machines", code=BAD_USAGE)
    return found


_COLUMNS = ("machine", "kind", "batch", "p50/p98 ms", "per s", "$/million", "in time", "latency")


def _row(entry: Economics) -> tuple[str, ...]:
    rent = entry.rent
    return (
        rent.machine,
        f"{rent.service}{' GPU' if rent.has_gpu else ''}",
        str(entry.batch_size) if entry.is_batched else "none",
        f"{entry.p50_s * 1000:.1f}/{entry.p98_s * 1000:.1f}",
        f"{entry.throughput_rps:.1f}",
        f"{entry.usd_per_million:.3f}",
        "yes" if entry.meets_objective else "no",
        rent.basis,
    )


def _print_sources(measured: MeasuredProfile, plot: Path | None) -> None:
    from markserve.catalog import load_catalog
    from markserve.rents import load_list_prices

    catalog, prices = load_catalog(), load_list_prices()
    sources = [
        f"latencies: {measured.source}; a machine 'as' another one was not measured, but has as many vCPUs",
        f"EC2: {catalog.prices_source}, {catalog.prices_on}; spot savings {catalog.spot_on}",
        f"Fargate: {prices.fargate_source}, {prices.fargate_on}",
        f"Google Cloud: {prices.google_source}, {prices.google_on}",
        *([f"written: {plot}"] if plot is not None else []),
    ]
    for source in sources:
        out.print(source, markup=False, highlight=False, soft_wrap=True)


def draw(found: list[Economics], path: Path, *, title: str) -> None:
    """Plot latency against cost: filled with batching, hollow without."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise Problem("a figure needs matplotlib", next_step="pip install matplotlib, or leave --plot out") from error
    figure, axes = pyplot.subplots(figsize=(9, 6))
    colours = {"AWS": "tab:orange", "Google Cloud": "tab:blue"}
    for provider, colour in colours.items():
        for service, marker in MARKERS.items():
            for batched in (False, True):
                chosen = [e for e in found if (e.rent.provider, e.rent.service, e.is_batched) == (provider, service, batched)]
                if not chosen:
                    continue
                axes.scatter(
                    [e.p98_s * 1000 for e in chosen],
                    [e.usd_per_million for e in chosen],
                    marker=marker,
                    edgecolors=colour,
                    facecolors=colour if batched else "none",
                    label=f"{provider} {service}, {'batched' if batched else 'one by one'}",
                )
                for e in chosen:
                    axes.annotate(
                        e.rent.machine, (e.p98_s * 1000, e.usd_per_million), fontsize=6, xytext=(3, 3), textcoords="offset points"
                    )
    axes.set(xscale="log", yscale="log", xlabel="p98 of a run, ms", ylabel="USD per million requests", title=title)
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(fontsize=7)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise Problem(
            f"{path} was not written: {error}", next_step="name a .png, .svg or .pdf in a folder that exists", code=BAD_USAGE
        ) from error
    finally:
        pyplot.close(figure)
