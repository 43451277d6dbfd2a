"""What an experiment is: a question, cells that answer it, and pictures of their outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from simulator.experiments.cells import Cell, Outcome
from simulator.experiments.workloads import mmpp, write_twitter_like
from simulator.request import Request
from simulator.traces import open_trace

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RT_MAX_S = {"squeezenet": 0.2, "inception-v3": 0.5, "resnet-cifar10": 0.2, "vgg-cifar10": 0.2, "dien": 0.2}
"""Objective by model, of which `simulator/examples` has profiles. Inception on MArk's instances takes over 0.2 s on most."""
QUICK_S = 600.0
GENERATED = "twitter-like"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What the user chose for all experiments.

    Attributes
    ----------
    folder
        Where generated loads are written.
    trace, start_s
        A recorded load instead of the generated one, from that time of it on; None for its start.
    span_s
        How much of each load is replayed.
    scale
        On the recorded or generated load.
    """

    folder: Path
    trace: Path | None = None
    start_s: float | None = None
    span_s: float = 4 * 3600.0
    scale: float = 4.0
    spot_traces: tuple[Path, ...] = ()
    is_quick: bool = False
    seed: int = 1

    @property
    def workload(self) -> str:
        """What the recorded or generated load is called."""
        return GENERATED if self.trace is None else self.trace.name.split(".")[0]

    @property
    def note(self) -> str:
        """What readers must know about the load."""
        span = f"{self.span_s / 3600:g} h" if self.span_s >= 3600 else f"{self.span_s / 60:g} min"
        if self.trace is not None:
            return f"load: {span} of {self.trace.name} x {self.scale:g}"
        return (
            f"load: no --trace was given, so {span} of a generated load that resembles Twitter's "
            f"(daily swing, slow noise, surges) x {self.scale:g}"
        )

    def recorded(self, model: str, policy: str, *, spot: bool = True) -> Request:
        """Ask for the recorded or generated load."""
        if self.trace is None:
            path, start_s = self.folder / "loads" / f"twitter-like-{self.span_s:g}s-seed{self.seed}.csv", 0.0
            if not path.is_file():
                write_twitter_like(path, duration_s=self.span_s, seed=self.seed)
        else:
            path, start_s = self.trace, open_trace(self.trace, start_s=self.start_s).start_s
        return self.request(model, policy, trace=str(path), scale=self.scale, start_s=start_s, end_s=start_s + self.span_s, spot=spot)

    def modulated(self, model: str, policy: str) -> Request:
        """Ask for the MMPP."""
        return self.request(model, policy, trace=mmpp(self.span_s), spot=True)

    def request(
        self,
        model: str,
        policy: str,
        *,
        trace: str,
        scale: float = 1.0,
        start_s: float | None = None,
        end_s: float | None = None,
        spot: bool = False,
        launch_delay: str | None = None,
        surges: tuple[str, ...] = (),
        interrupts: tuple[str, ...] = (),
    ) -> Request:
        """Ask for any load."""
        return Request(
            trace=trace,
            profile=EXAMPLES / f"{model}.json",
            rt_max_s=RT_MAX_S[model],
            sl_min=0.98,
            policies=policy,
            scale=scale,
            start_s=start_s,
            end_s=end_s,
            spot=spot,
            spot_traces=self.spot_traces if spot else (),
            launch_delay=launch_delay,
            surges=surges,
            interrupts=interrupts,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """An experiment by name."""

    name: str
    question: str
    cells: Callable[[Setup], list[Cell]]
    charts: Callable[[Sequence[Outcome]], Iterator[tuple[str, Figure]]]
    uses_load: bool
    """Whether it replays the recorded or generated load."""
