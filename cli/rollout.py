"""`markserve models promote|rollback|delete`: which version answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import FAILED, Problem, emit_json, emit_table, err, explained, out
from cli.system import Json
from cli.target import connect_to_stack
from markserve.core.traffic import Served
from markserve.errors import StaleWrite
from markserve.messages import Traffic

if TYPE_CHECKING:
    from rich.status import Status

    from markserve.rollout import RolloutPorts

Model = Annotated[str, typer.Argument(help="Name of the model.")]


@explained()
def promote(
    model: Model,
    version: Annotated[str, typer.Argument(help="Version that is to answer.")],
    canary: Annotated[float | None, typer.Option(help="Give it this share of requests only, such as 0.1.")] = None,
    json: Json = False,
) -> None:
    """Make a version live once every worker has loaded it, or give it a share of the requests."""
    ports = _ports()
    from markserve import rollout

    with _progress(json) as status, _one_at_a_time():
        traffic = rollout.promote(model, version, ports, canary=canary, tell=_teller(status))
    _report(traffic, as_json=json)


@explained()
def rollback(
    model: Model,
    to: Annotated[str | None, typer.Option(help="Default: the end of a canary, else the version that was live before.")] = None,
    json: Json = False,
) -> None:
    """End a canary, or return to the version before: in force everywhere within 10 s, and nothing accepted is lost."""
    ports = _ports()
    from markserve import rollout

    with _one_at_a_time():
        traffic = rollout.rollback(model, ports, to=to)
    _report(traffic, as_json=json)


@explained()
def delete(
    model: Model,
    version: Annotated[str | None, typer.Option(help="Default: the model with all its versions.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also what serves: first nobody asks it, then it answers, then it goes.")] = False,
    json: Json = False,
) -> None:
    """Remove a version, or a model; what serves only with --force, which drains it first."""
    ports = _ports()
    from markserve import rollout

    with _progress(json) as status, _one_at_a_time():
        if version is None:
            rollout.delete_model(model, ports, force=force, tell=_teller(status))
        else:
            rollout.delete_version(model, version, ports, force=force, tell=_teller(status))
    if json:
        emit_json({"deleted": model, "version": version})
    else:
        out.print(f"removed {model}" + (f" version {version}" if version else " and its versions"), highlight=False)


def print_traffic(traffic: Traffic, versions: list[str], served: Mapping[str, Served]) -> None:
    """Print who answers, and how each version did in the last minutes."""
    shares = {traffic.live: 1 - traffic.canary_weight, traffic.canary or "": traffic.canary_weight}
    emit_table(
        "Versions, and how they did in the last 15 minutes",
        ("version", "traffic", "requests", "in time", "errors"),
        [(v, f"{shares.get(v, 0.0):.0%}", *served_cells(served.get(v, Served()))) for v in versions],
    )


def served_cells(served: Served) -> tuple[str, str, str]:
    """Show requests, attainment and error rate."""
    in_time, errors = ("-" if share is None else f"{share:.2%}" for share in (served.attainment, served.error_rate))
    return str(served.requests), in_time, errors


def _report(traffic: Traffic, *, as_json: bool) -> None:
    if as_json:
        emit_json(traffic)
        return
    what = f"{traffic.model}: version {traffic.live} answers"
    if traffic.canary is not None:
        what += f" {1 - traffic.canary_weight:.0%} of requests, version {traffic.canary} {traffic.canary_weight:.0%}"
    out.print(what, highlight=False)
    if traffic.canary is not None:
        out.print(f"next: `markserve models show {traffic.model}`, then promote it in full or roll back", highlight=False, soft_wrap=True)


def _ports() -> RolloutPorts:
    connect_to_stack()
    return rollout_ports()


def rollout_ports() -> RolloutPorts:
    """Build what changing traffic needs of the connected stack."""
    from markserve import wiring
    from markserve.rollout import RolloutPorts

    return RolloutPorts(
        models=wiring.models(),
        instances=wiring.instances(),
        control=wiring.control(),
        windows=wiring.windows(),
        work_queue=wiring.work_queue,
        now_s=time.time,
        sleep=time.sleep,
    )


def _progress(as_json: bool) -> AbstractContextManager[Status | None]:
    return nullcontext() if as_json else err.status("working")


def _teller(status: Status | None) -> Callable[[str], None]:
    return (lambda _: None) if status is None else status.update


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Explain a change that somebody else forestalled."""
    try:
        yield
    except StaleWrite as error:
        raise Problem(str(error), next_step="look with `markserve models show`, then try again", code=FAILED) from error
