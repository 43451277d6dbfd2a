"""A day's control plane on ports in memory, and what it is held to."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

import functions.forecast.app as forecast
import functions.ingest.app as ingest
import functions.lifecycle.app as lifecycle
import functions.plan.app as plan
from benchmarks.control_day_cloud import RATE_RPS, Cloud
from benchmarks.control_day_load import MINUTE_S, WINDOW_S
from markserve.adapters.lstm import LstmForecaster
from markserve.adapters.memory import (
    MemoryBlobStore,
    MemoryControlStore,
    MemoryEventPublisher,
    MemoryInstanceRegistry,
    MemoryMetricsSink,
    MemoryModelStore,
    MemoryParameterSource,
    MemorySpilloverInvoker,
    MemoryWindowStore,
    MemoryWorkQueue,
)
from markserve.core.tunables import Tunables
from markserve.core.types import CapacityType, Tier
from markserve.errors import Transient
from markserve.history import StepGrid
from markserve.lifecycle_events import Notification
from markserve.messages import (
    Action,
    ArrivalCounts,
    InstanceInterrupted,
    MetricsBatch,
    ModelRecord,
    OutcomeCounts,
    ProfilePointRecord,
    SloAtRisk,
    encode,
)
from markserve.settings import Settings
from markserve.telemetry import metrics
from markserve.triggers import QueueMessage

BEGIN_S = 1_700_006_400.0
"""Midnight, UTC."""
MODEL = "digits"
SETTINGS = Settings(stack_name="day", instance_types="c5.large")
TUNABLES = Tunables(launches_enabled=True, rt_max_s=0.5, max_instances=24, max_hourly_cost_usd=1.9)
ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")
LEAK_CYCLES = 12
"""A launch that hangs is given up after three launch overheads, nine minutes; nothing may be in doubt for longer than this."""


def _points(latency_s: float) -> tuple[ProfilePointRecord, ...]:
    return (ProfilePointRecord(batch_size=1, p50_s=latency_s, p98_s=latency_s, p99_s=latency_s, samples=200),)


RECORD = ModelRecord(
    model=MODEL,
    version="1",
    inputs=(),
    outputs=(),
    artefact_key="",
    artefact_sha256="",
    max_batch_size=1,
    profiles={"c5.large": _points(1 / RATE_RPS), "lambda": _points(0.3)},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DayReport:
    """What a day came to."""

    cycles: int
    plans: int
    forecasts_failed: int
    arrivals: int
    reports: int
    reports_repeated: int
    launched: int
    interrupted: int
    never_booted: int
    most_instances: int
    served_by_workers: tuple[float, ...]
    """Share of the arrivals that the running workers had room for, by quarter of the day."""
    instance_hours: float
    urgent_plans: int
    events_followed: int
    seconds: float
    peak_mb: float
    state_kb: float
    """What the forecaster carries from cycle to cycle."""
    violations: tuple[str, ...]


class Day:
    """Runs one minute after another."""

    def __init__(self, load: Mapping[float, int], *, seed: int, has_mishaps: bool) -> None:
        self._load = load
        self._learned = LstmForecaster(step_s=MINUTE_S)
        self._rng = random.Random(seed)  # noqa: S311 - mishaps, not secrets
        self._has_mishaps = has_mishaps
        self.now_s = BEGIN_S
        self.windows, self.control, self.blobs = MemoryWindowStore(), MemoryControlStore(), MemoryBlobStore()
        self.instances, self.events, self.sink = MemoryInstanceRegistry(), MemoryEventPublisher(), MemoryMetricsSink()
        self.spillover, self.models, self.parameters = MemorySpilloverInvoker(), MemoryModelStore(RECORD), MemoryParameterSource(TUNABLES)
        self.cloud = Cloud(
            clock=lambda: self.now_s,
            registry=self.instances,
            notify=self._follow,
            rng=self._rng,
            has_mishaps=has_mishaps,
            zones=ZONES,
            prices={("c5.large", CapacityType.SPOT, zone): price for zone, price in zip(ZONES, (0.034, 0.036, 0.039), strict=True)},
        )
        self._delayed: deque[tuple[int, QueueMessage]] = deque()
        self._truth: Counter[float] = Counter()
        self._doubtful: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._served: list[tuple[int, int]] = []
        self._cycles = 0
        self._most = 0
        self._violations: list[str] = []
        forecast.DAYS.clear()

    def cycle(self) -> None:
        """One minute of load and mishaps, and the control cycle at its end."""
        minute = self._cycles
        self._cycles += 1
        self._ingest(minute)
        self.cloud.advance(self.now_s + MINUTE_S, self._set_clock)
        self.cloud.minute()
        if self._has_mishaps:
            pools = [f"c5.large/{kind}/{zone}" for zone in ZONES for kind in ("spot", "on_demand")]
            self.cloud.dry_pools = {pool for pool in pools if self._rng.random() < 0.1}
        self._forecast()
        self._plan("schedule")
        urgent = [e for e in self.events.events if isinstance(e, (SloAtRisk, InstanceInterrupted))]
        self.events.events.clear()
        if urgent:
            self._counts["urgent"] += 1
            self._plan("interruption" if any(isinstance(e, InstanceInterrupted) for e in urgent) else "slo_at_risk")
        self._check()

    def settle(self) -> None:
        """Deliver what is late, and give the controller as long without mishaps as it may take to put all in order."""
        self._has_mishaps = self.cloud.has_mishaps = False
        self.cloud.dry_pools = set()
        self._deliver([report for _, report in self._delayed])
        self._delayed.clear()
        for _ in range(LEAK_CYCLES + 1):
            self.cloud.advance(self.now_s + MINUTE_S, self._set_clock)
            self.cloud.minute()
            self._plan("schedule")
            self._check()
        counted = self.windows.arrivals(MODEL, since_s=0.0, until_s=self.now_s)
        wrong = [at_s for at_s in {*counted, *self._truth} if counted.get(at_s, 0) != self._truth[at_s]]
        if wrong:
            self._violations.append(f"{len(wrong)} windows not counted exactly once, the first at {min(wrong) - BEGIN_S:.0f} s")
        plans = self.control.plans(since_s=0.0, until_s=self.now_s + 1)
        if [record.version for record in plans] != list(range(1, len(plans) + 1)):
            self._violations.append("plans are not numbered without a gap")

    def report(self, *, seconds: float, peak_mb: float) -> DayReport:
        """Sum up."""
        quarter = max(1, len(self._served) // 4)
        shares = [
            sum(served for served, _ in part) / max(1, sum(asked for _, asked in part))
            for part in (self._served[at : at + quarter] for at in range(0, 4 * quarter, quarter))
        ]
        return DayReport(
            cycles=self._cycles,
            plans=len(self.control.plans(since_s=0.0, until_s=self.now_s + 1)),
            forecasts_failed=self._counts["forecast failed"],
            arrivals=sum(self._truth.values()),
            reports=self._counts["reports"],
            reports_repeated=self._counts["repeated"],
            launched=len(self.instances.list()),
            interrupted=self.cloud.interrupted,
            never_booted=self.cloud.never_booted,
            most_instances=self._most,
            served_by_workers=tuple(round(share, 4) for share in shares),
            instance_hours=round(self._counts["instance minutes"] / 60, 1),
            urgent_plans=self._counts["urgent"],
            events_followed=self._counts["events"],
            seconds=round(seconds, 1),
            peak_mb=round(peak_mb, 1),
            state_kb=round(len(self.blobs.get(f"forecasters/{MODEL}/bank.npz")) / 1000, 1),
            violations=tuple(self._violations),
        )

    # --- a minute ---------------------------------------------------------------------------------------------

    def _set_clock(self, now_s: float) -> None:
        self.now_s = now_s

    def _ingest(self, minute: int) -> None:
        """Two fronts report each window; some reports come twice, some an hour late, none in order."""
        room = len(self.cloud.serving) * RATE_RPS * WINDOW_S
        reports = []
        for number in range(round(MINUTE_S / WINDOW_S)):
            since_begin_s = minute * MINUTE_S + number * WINDOW_S
            count = self._load.get(since_begin_s)
            if count is None:
                continue
            at_s = BEGIN_S + since_begin_s
            served = min(count, int(room))
            self._served.append((served, count))
            self._truth[at_s] += count
            reports += [self._report(at_s, front, part, front_served) for front, part, front_served in _split(count, served)]
        self._rng.shuffle(reports)
        on_time = []
        for report in reports:
            if self._has_mishaps and self._rng.random() < 0.01:
                self._delayed.append((minute + self._rng.randint(1, 90), report))
            else:
                on_time += [report] * (2 if self._has_mishaps and self._rng.random() < 0.1 else 1)
        late = [report for due, report in self._delayed if due <= minute]
        self._delayed = deque((due, report) for due, report in self._delayed if due > minute)
        self._deliver([*on_time, *late])

    def _report(self, at_s: float, front: int, count: int, served: int) -> QueueMessage:
        spilled = count - served
        batch = MetricsBatch(
            batch_id=f"{front}/{at_s}",
            sent_at_s=at_s + WINDOW_S,
            arrivals=(ArrivalCounts(model=MODEL, window_at_s=at_s, count=count),),
            outcomes=(
                OutcomeCounts(model=MODEL, window_at_s=at_s, tier=Tier.WORKER, ok=served, within_slo=served),
                OutcomeCounts(model=MODEL, window_at_s=at_s, tier=Tier.LAMBDA, ok=spilled, within_slo=spilled),
            ),
        )
        return QueueMessage(message_id=batch.batch_id, body=encode(batch).decode())

    def _deliver(self, reports: list[QueueMessage]) -> None:
        for start in range(0, len(reports), 10):
            done = ingest.run(
                reports[start : start + 10],
                windows=self.windows,
                control=self.control,
                events=self.events,
                parameters=self.parameters,
                judged_at_s={},
                judge_every_s=0.0,
                window_s=WINDOW_S,
                step_s=MINUTE_S,
                now_s=self.now_s + MINUTE_S,
            )
            self._counts["reports"] += done.applied
            self._counts["repeated"] += done.repeated

    def _forecast(self) -> None:
        if self._has_mishaps and self._rng.random() < 0.02:
            self._counts["forecast failed"] += 1
            return
        forecast.run(
            [MODEL],
            windows=self.windows,
            control=self.control,
            blobs=self.blobs,
            metrics_sink=self.sink,
            forecaster=lambda: self._learned,
            grid=StepGrid.of(SETTINGS),
            now_s=self.now_s,
            events=self.events,
        )
        metrics.clear_metrics()  # the handler would print them; nobody watches this day
        for batch in self.sink.batches:
            self._deliver([QueueMessage(message_id=batch.batch_id, body=encode(batch).decode())])
        self.sink.batches.clear()

    def _plan(self, trigger: str) -> None:
        planned = plan.run(
            plan.parse({"trigger": trigger}),
            models=self.models,
            control=self.control,
            windows=self.windows,
            instances=self.instances,
            fleet=self.cloud,
            parameters=self.parameters,
            work_queue=lambda _: MemoryWorkQueue(now=lambda: self.now_s),
            settings=SETTINGS,
            now_s=self.now_s,
        )
        if planned.record is None:
            self._violations.append(f"cycle {self._cycles}: no plan")
            return
        for action in planned.record.actions:
            for _ in range(2 if self._has_mishaps and self._rng.random() < 0.1 else 1):
                self._do(action)

    def _follow(self, notification: Notification) -> None:
        self._counts["events"] += 1
        self._do(notification)

    def _do(self, command: Action | Notification) -> None:
        """As Step Functions and EventBridge do: what fails for now is tried again."""
        self.cloud.unavailable = self._has_mishaps and self._rng.random() < 0.05
        for _ in range(2):
            try:
                lifecycle.run(
                    command,
                    instances=self.instances,
                    control=self.control,
                    fleet=self.cloud,
                    spillover=self.spillover,
                    events=self.events,
                    parameters=self.parameters,
                    now_s=self.now_s,
                )
            except Transient:
                self.cloud.unavailable = False
            else:
                break
        self.cloud.unavailable = False

    # --- what must hold ---------------------------------------------------------------------------------------

    def _check(self) -> None:
        paid_for = self.cloud.paid_for
        self._counts["instance minutes"] += len(paid_for)
        self._most = max(self._most, len(paid_for))
        if len(paid_for) > TUNABLES.max_instances:
            self._violations.append(f"cycle {self._cycles}: {len(paid_for)} instances, the ceiling is {TUNABLES.max_instances}")
        running = {seen.instance_id for seen in paid_for}
        alive = {i.instance_id: i for i in self.instances.list() if i.is_alive}
        spent = sum(alive[instance_id].offering.price_usd_per_hour for instance_id in running & alive.keys())
        if spent > TUNABLES.max_hourly_cost_usd + 1e-9:
            self._violations.append(f"cycle {self._cycles}: {spent:.3f} USD an hour, the ceiling is {TUNABLES.max_hourly_cost_usd}")
        # In doubt: only one side knows of it, or it is paid for and does not serve.
        doubtful = {*(running ^ alive.keys()), *(running - self.cloud.serving)}
        for instance_id in list(self._doubtful):
            if instance_id not in doubtful:
                del self._doubtful[instance_id]
        for instance_id in doubtful:
            self._doubtful[instance_id] += 1
            if self._doubtful[instance_id] == LEAK_CYCLES:
                state = alive[instance_id].state if instance_id in alive else "ended or unknown"
                self._violations.append(
                    f"cycle {self._cycles}: {instance_id} leaked: {state} here, running there: {instance_id in running}"
                )


def _split(count: int, served: int) -> list[tuple[int, int, int]]:
    """Share a window between two fronts."""
    half, half_served = count // 2, served // 2
    return [(1, half, min(half, half_served)), (2, count - half, served - min(half, half_served))]
