"""The demo: the whole loop under load, with a spot interruption, watched live and judged at the end."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from rich.console import Console

from local.arrivals import Phase, poisson_arrivals
from local.evidence import gather, read_meters
from local.load import LoadProgress, LoadTarget, RequestRecord, replay
from local.memory import MemoryWatch
from local.model_setup import MODEL, held_out_samples
from local.report import Report, build_report, write_report
from local.supervisor import state_dir
from local.system import LocalSystem, SystemConfig
from local.view import LiveView, Snapshot
from markserve import wiring
from markserve.core.types import Slo
from markserve.errors import Transient

QUIET_SHARE = 0.3
BURST_FACTOR = 3.0
"""The burst's rate over the ramp's end: the planner buys for the forecast, which cannot know of it."""
LONGEST_STAY_S = 2.5
"""Of a request, however generous the objective: environments are made ready for as many as may be under way at once."""
WARM_MARGIN = 1.25
"""Over what Little's law asks for at the burst's rate, since a burst is Poisson too."""
INTERRUPTED_PHASE = "steady"
TRAINED_PHASE = "calm"
RETRY_FOR_S = 30.0
"""For how long a request is sent again that was refused with 429 or 503, as a client would."""
DIRECTOR_POLL_S = 0.5
DECISIONS_SHOWN_S = 30.0
SEED = 1


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What a user may set; the defaults were chosen by measurement on two cores, see README."""

    rt_max_s: float = 2.0
    sl_min: float = 0.98
    rate_rps: float = 5.0
    """Rate at the end of the ramp."""
    seconds: float = 120.0
    """Length of the load, all phases together."""
    seed: int = SEED
    notice_s: float = 8.0
    """Notice before the spot interruption; two minutes in AWS."""
    cycle_s: float = 5.0
    work_dir: Path = field(default_factory=lambda: state_dir() / "demo")

    def phases(self) -> tuple[Phase, ...]:
        """Lay out the load: quiet, ramp, steady (with the interruption), burst, calm."""
        quiet_rps = QUIET_SHARE * self.rate_rps
        shares = {"quiet": 0.2, "ramp": 0.25, INTERRUPTED_PHASE: 0.25, "burst": 0.1, "calm": 0.2}
        length_s = {name: share * self.seconds for name, share in shares.items()}
        return (
            Phase(name="quiet", duration_s=length_s["quiet"], rate_rps=quiet_rps),
            Phase(name="ramp", duration_s=length_s["ramp"], rate_rps=quiet_rps, end_rate_rps=self.rate_rps),
            Phase(name=INTERRUPTED_PHASE, duration_s=length_s[INTERRUPTED_PHASE], rate_rps=self.rate_rps),
            Phase(name="burst", duration_s=length_s["burst"], rate_rps=BURST_FACTOR * self.rate_rps),
            Phase(name="calm", duration_s=length_s["calm"], rate_rps=quiet_rps),
        )

    def system(self) -> SystemConfig:
        """Settle the local system that the demo runs on."""
        return SystemConfig(
            work_dir=self.work_dir,
            rt_max_s=self.rt_max_s,
            sl_min=self.sl_min,
            cycle_s=self.cycle_s,
            # Each request holds an environment while it waits. One that has to be started takes a second of a core, which
            # in a burst would starve all others.
            warm_api_environments=math.ceil(WARM_MARGIN * BURST_FACTOR * self.rate_rps * min(self.rt_max_s, LONGEST_STAY_S)),
            parameters={"scale-in-cycles": "2", "warm-environments-max": "8"},
        )


@dataclass(kw_only=True)
class Director:
    """Makes things happen while the load runs: trains the forecaster on what it has seen, and takes a spot worker back."""

    system: LocalSystem
    progress: LoadProgress
    notice_s: float
    interrupted: dict[str, float] = field(default_factory=dict)
    """The interrupted instance and the instant of its notice."""
    _trained: bool = field(default=False, init=False)
    _done: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Direct in a thread of its own."""
        self._thread = threading.Thread(target=self._direct, name="director", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave what has not happened yet."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _direct(self) -> None:
        while not self._done.wait(DIRECTOR_POLL_S):
            if self.progress.phase == INTERRUPTED_PHASE and not self.interrupted:
                with suppress(Transient):
                    self._interrupt_one()
            if self.progress.phase == TRAINED_PHASE and not self._trained:
                self._train()

    def _interrupt_one(self) -> None:
        serving = {i.instance_id for i in wiring.instances().list(MODEL) if i.serving_at_s is not None and i.drain_at_s is None}
        for instance in self.system.fleet.instances():
            if instance.state == "running" and instance.capacity_type == "spot" and instance.instance_id in serving:
                now_s = time.time()
                self.system.fleet.interrupt(instance.instance_id, notice_s=self.notice_s, now_s=now_s)
                self.interrupted[instance.instance_id] = now_s
                return

    def _train(self) -> None:
        self._trained = True
        function = self.system.deployment.outputs["ForecastFunctionName"]
        payload = msgspec.json.encode({"action": "train", "model": MODEL})
        self.system.client("lambda").invoke(FunctionName=function, InvocationType="Event", Payload=payload)


def run_demo(
    settings: DemoSettings, console: Console, *, keep: bool = False, show: Callable[[Report, Console], None] | None = None
) -> Report:
    """Set the system up, put it under load, and report.

    Parameters
    ----------
    console
        Where progress goes.
    keep
        Keep the system running after the report until the user interrupts.
    show
        Shows the report as soon as it is there.
    """
    began_at_s = time.monotonic()
    memory = MemoryWatch()
    memory.start()

    def note(step: str) -> None:
        console.print(f"{time.monotonic() - began_at_s:5.1f} s  {step}", highlight=False)

    with LocalSystem(config=settings.system(), note=note) as system:
        setup_s = time.monotonic() - began_at_s
        note(f"ready: {system.deployment.api_url}")
        report, records = load_and_report(system, settings, console)
        memory.stop()
        report = msgspec.structs.replace(report, setup_s=setup_s, peak_memory_mb=memory.peak_bytes / 1e6)
        write_report(report, records, settings.work_dir)
        if show is not None:
            show(report, console)
        if keep:
            console.print(f"still running at {system.deployment.api_url}; press Ctrl-C to stop")
            _until_interrupted()
    return report


def load_and_report(system: LocalSystem, settings: DemoSettings, console: Console) -> tuple[Report, Sequence[RequestRecord]]:
    """Replay the demo's load against a running system and add up what came of it."""
    slo = Slo(latency_s=settings.rt_max_s, percentile=settings.sl_min)
    phases = settings.phases()
    arrivals = poisson_arrivals(phases, seed=settings.seed)
    target = LoadTarget(
        endpoint=system.deployment.api_url,
        model=MODEL,
        input_name=system.record.inputs[0].name,
        output_name=system.record.outputs[0].name,
        samples=held_out_samples(system.model),
        retry_for_s=RETRY_FOR_S,
    )
    progress = LoadProgress()
    before = read_meters(system)
    started_at_s = time.time()
    director = Director(system=system, progress=progress, notice_s=settings.notice_s)
    director.start()

    def take() -> Snapshot:
        return take_snapshot(system, progress, slo=slo, started_at_s=started_at_s, total_s=settings.seconds)

    with LiveView(take=take, console=console):
        records = asyncio.run(replay(arrivals, target, seed=settings.seed, progress=progress))
    ended_at_s = time.time()
    director.stop()
    evidence = gather(
        system,
        slo=slo,
        seed=settings.seed,
        started_at_s=started_at_s,
        ended_at_s=ended_at_s,
        records=records,
        before=before,
        interrupted=director.interrupted,
    )
    return build_report(evidence), records


def take_snapshot(system: LocalSystem, progress: LoadProgress, *, slo: Slo, started_at_s: float, total_s: float) -> Snapshot:
    """Read the state of a running system for the view."""
    now_s = time.time()
    control, model = wiring.control(), system.record.model
    return Snapshot(
        now_s=now_s,
        phase=progress.phase,
        elapsed_s=now_s - started_at_s,
        total_s=total_s,
        slo=slo,
        records=tuple(progress.records),
        instances=wiring.instances().list(model),
        forecast=control.latest_forecast(model),
        plan=control.latest_plan(),
        queue_depth=wiring.work_queue(system.record.queue_url).depth(),
        decisions=control.decisions(since_s=now_s - DECISIONS_SHOWN_S, until_s=now_s),
    )


def _until_interrupted() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return
