"""What a run looks like while it runs: a live panel in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from local.load import RequestRecord
from markserve.core.types import Instance, Slo
from markserve.errors import Transient
from markserve.messages import DecisionRecord, ForecastRecord, PlanRecord

RATE_WINDOW_S = 5.0
REFRESH_S = 1.0
"""How often a terminal is redrawn."""
LINE_EVERY_S = 5.0
"""How often a line is printed where there is no terminal."""
SHOWN_DECISIONS = 4


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A moment of a run."""

    now_s: float
    phase: str
    elapsed_s: float
    total_s: float
    slo: Slo
    records: Sequence[RequestRecord] = ()
    instances: Sequence[Instance] = ()
    forecast: ForecastRecord | None = None
    plan: PlanRecord | None = None
    queue_depth: int = 0
    decisions: Sequence[DecisionRecord] = ()


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a snapshot amounts to."""

    sent: int
    answered: int
    rate_rps: float
    attainment: float | None
    """Of the requests that have ended; None before the first."""
    tiers: dict[str, int]


def figures(snapshot: Snapshot) -> Figures:
    """Add up a snapshot."""
    ended = [record for record in snapshot.records if record.finished_at_s > 0]
    answered = [record for record in ended if record.is_answered]
    in_time = sum(record.latency_s <= snapshot.slo.latency_s for record in answered)
    recent = sum(record.sent_at_s > snapshot.now_s - RATE_WINDOW_S for record in snapshot.records)
    return Figures(
        sent=len(snapshot.records),
        answered=len(answered),
        rate_rps=recent / min(RATE_WINDOW_S, max(snapshot.elapsed_s, 1.0)),
        attainment=in_time / len(ended) if ended else None,
        tiers=dict(Counter(record.tier for record in answered)),
    )


def plain_line(snapshot: Snapshot) -> str:
    """Put a snapshot on one line."""
    now = figures(snapshot)
    fleet = Counter(str(instance.state) for instance in snapshot.instances if instance.is_alive)
    return (
        f"{snapshot.elapsed_s:5.0f} s {snapshot.phase:<8} sent {now.sent:5d} answered {now.answered:5d}  rate {now.rate_rps:5.1f}/s"
        f"  forecast {_forecast_text(snapshot)}  instances {_counts_text(fleet)}  queue {snapshot.queue_depth:3d}"
        f"  in time {_share_text(now.attainment)}  {_tier_text(now)}"
    )


def panel(snapshot: Snapshot) -> Panel:
    """Draw a snapshot."""
    now = figures(snapshot)
    fleet = Counter(str(instance.state) for instance in snapshot.instances if instance.is_alive)
    pools = Counter(instance.offering.key for instance in snapshot.instances if instance.is_alive)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("requests", f"{now.sent} sent, {now.answered} answered, {now.sent - now.answered} open or failed")
    table.add_row("rate", f"{now.rate_rps:.1f} requests/s")
    table.add_row("forecast", _forecast_text(snapshot, long=True))
    table.add_row("plan", _plan_text(snapshot.plan))
    table.add_row("instances", f"{_counts_text(fleet)}   {', '.join(f'{count} x {pool}' for pool, count in sorted(pools.items()))}")
    table.add_row("queue", f"{snapshot.queue_depth} messages waiting")
    table.add_row("in time", _attainment_text(now.attainment, snapshot.slo))
    table.add_row("answered by", _tier_text(now))
    bar = Table.grid(expand=True)
    bar.add_row(ProgressBar(total=snapshot.total_s, completed=min(snapshot.elapsed_s, snapshot.total_s)))
    log = [Text(f"{decision.event}: {decision.reason}", style="dim", overflow="ellipsis", no_wrap=True) for decision in snapshot.decisions]
    title = f"markserve demo - {snapshot.phase} - {snapshot.elapsed_s:.0f} of {snapshot.total_s:.0f} s"
    return Panel(Group(bar, table, *log[-SHOWN_DECISIONS:]), title=title, title_align="left")


@dataclass
class LiveView:
    """Shows `take()` about once a second until the block ends."""

    take: Callable[[], Snapshot]
    console: Console
    _done: Event = field(default_factory=Event, init=False)
    _thread: Thread | None = field(default=None, init=False)

    def __enter__(self) -> LiveView:
        show = self._redraw if self.console.is_terminal else self._print_lines
        self._thread = Thread(target=show, name="view", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _redraw(self) -> None:
        with Live(console=self.console, auto_refresh=False) as live:
            ended = False
            while not ended:
                ended = self._done.wait(REFRESH_S)  # and once more at the end, so that the last picture is complete
                with suppress(Transient):
                    live.update(panel(self.take()), refresh=True)

    def _print_lines(self) -> None:
        next_at_s = time.monotonic() + LINE_EVERY_S
        while not self._done.wait(max(0.0, next_at_s - time.monotonic())):
            with suppress(Transient):
                self.console.print(plain_line(self.take()), markup=False, highlight=False, soft_wrap=True)
            next_at_s += LINE_EVERY_S


def _forecast_text(snapshot: Snapshot, *, long: bool = False) -> str:
    forecast = snapshot.forecast
    if forecast is None:
        return "none yet"
    ahead = {float(q): max(rates) for q, rates in forecast.rates_rps.items()}
    low, high = min(ahead, key=lambda q: abs(q - 0.5)), max(ahead)
    text = f"{ahead[low]:.1f}-{ahead[high]:.1f}/s"
    if not long:
        return text
    return f"{text} highest rate ahead, median to {high:.0%} quantile, by {forecast.forecaster}"


def _plan_text(plan: PlanRecord | None) -> str:
    if plan is None:
        return "none yet"
    demand_rps, capacity_rps = sum(plan.demand_rps.values()), sum(plan.capacity_rps.values())
    return f"demand {demand_rps:.1f}/s, capacity {capacity_rps:.1f}/s, {plan.hourly_cost_usd:.3f} USD/h ({plan.trigger})"


def _counts_text(counts: Counter[str]) -> str:
    return " ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none"


def _tier_text(now: Figures) -> str:
    if not now.answered:
        return "nobody yet"
    return " ".join(f"{tier or 'unknown'} {count / now.answered:.0%}" for tier, count in sorted(now.tiers.items()))


def _share_text(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _attainment_text(attainment: float | None, slo: Slo) -> Text:
    met = attainment is None or attainment >= slo.percentile
    return Text(f"{_share_text(attainment)} within {slo.latency_s:g} s, objective {slo.percentile:.1%}", style="green" if met else "red")
