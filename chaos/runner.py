"""Plays scenarios against one running system and judges each by what its clients saw."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import boto3

from chaos.attainment import shortfall
from chaos.invariants import FleetWatch, breaches, doubled
from chaos.ledger import Entry, Ledger, Question
from chaos.scenario import Scenario
from chaos.stage import MAX_HOURLY_COST_USD, MAX_INSTANCES, PARAMETERS, RT_MAX_S, WORKERS, NotInTime, Stage, questions_for
from local.model_setup import MODEL
from local.system import LocalSystem
from markserve import wiring

RATE_RPS = 3.0
LEAD_S = 3.0
"""Of load before the fault."""
QUIET_S = 3.0
"""Stretch of load without a miss that counts as recovered."""
QUIET_WITHIN_S = 12.0
LEAST_QUIET = 4
"""Requests in that stretch."""
READY_WITHIN_S = 90.0

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a scenario did to the clients, and whether all that must hold did."""

    name: str
    family: int
    summary: str
    requests: int
    answered: int
    refused: int
    """Explicitly: 429, 503 or 504 with a reason."""
    lost: int
    doubled: int
    wrong: int
    attainment: float
    """Share of the requests with an objective that were answered in time, from just before the fault to recovery."""
    floor: float | None
    """Least share, but for chance; None where it is not judged."""
    unjudged: str
    """Why it is not."""
    recovery_s: float
    """From the fault until requests are in time and as many workers serve as before."""
    seconds: float
    breaches: tuple[str, ...]
    """What did not hold; empty for a pass."""
    notes: tuple[str, ...] = ()
    lost_reasons: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether everything that must hold did."""
        return not self.breaches


@dataclass(kw_only=True)
class Runner:
    """Plays scenarios, one after the other, on one system."""

    system: LocalSystem
    note: Note
    seed: int = 1
    _questions: Sequence[Question] = field(default=(), init=False)

    def play(self, scenario: Scenario) -> Outcome:
        """Put the system under load, break something, wait for recovery, and judge."""
        self._prepare()
        stage = self._stage()
        watch = FleetWatch(stage=stage)
        started_at_s = time.time()
        stage.ledger.start()
        watch.start()
        time.sleep(LEAD_S)
        fault_at_s = time.time()
        failures = self._act(scenario, stage)
        stage.ledger.stop()
        watch.stop()
        if not stage.is_gone:
            self._restore(stage)
            failures += breaches(stage, watch)
        write_requests(stage.ledger.entries, self.system.config.work_dir / f"requests-{scenario.name}.csv", started_at_s=started_at_s)
        return judge(scenario, stage, watch, failures, fault_at_s=fault_at_s, started_at_s=started_at_s)

    def _act(self, scenario: Scenario, stage: Stage) -> list[str]:
        """Inject the fault, heal it, and wait for recovery; return what went otherwise than expected."""
        acting = scenario.act(stage)
        try:
            next(acting)
            time.sleep(scenario.hold_s)
            next(acting, None)
            if not stage.is_gone:
                self._await_recovery(stage, within_s=scenario.recover_within_s)
        except Exception as error:  # noqa: BLE001  # what surprises one scenario fails that one; the others still have to be played
            return [str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"]
        finally:
            acting.close()
        return []

    def _stage(self) -> Stage:
        ledger = Ledger(endpoint=self.system.deployment.api_url, model=MODEL, questions=self._questions, rate_rps=RATE_RPS, seed=self.seed)
        return Stage(system=self.system, ledger=ledger)

    def _prepare(self) -> None:
        """Start from a whole fleet, an empty dead-letter queue, and pools that nobody remembers as dry."""
        self.system.reconnect()
        if not self._questions:
            self._questions = questions_for(self.system, wiring.models().get(MODEL), self.system.model.artefact)
        boto3.client("sqs").purge_queue(QueueUrl=wiring.settings().dead_letter_queue_url)
        forget_dry_pools()
        stage = self._stage()
        self._restore(stage)
        stage.wait(f"{WORKERS} workers serve", lambda: len(stage.serving()) >= WORKERS, within_s=READY_WITHIN_S)

    def _await_recovery(self, stage: Stage, *, within_s: float) -> None:
        until_s = time.monotonic() + within_s
        stage.wait(f"{WORKERS} workers serve, and those that ended are written off", stage.is_whole, within_s=within_s)
        quiet_by_s = min(until_s - time.monotonic(), QUIET_WITHIN_S)
        try:
            stage.wait(
                "requests are answered in time", lambda: is_quiet(stage.ledger.entries, now_s=time.time()), within_s=max(1.0, quiet_by_s)
            )
        except NotInTime:  # a busy machine is slow without any fault: a figure, not a failure
            stage.note(f"requests were still late {QUIET_WITHIN_S:.0f} s after the fleet was whole")

    @staticmethod
    def _restore(stage: Stage) -> None:
        stage.heal()
        stage.put_parameters(
            {
                **PARAMETERS,
                "rt-max-s": f"{RT_MAX_S:g}",
                "max-instances": str(MAX_INSTANCES),
                "max-hourly-cost-usd": f"{MAX_HOURLY_COST_USD:g}",
            }
        )


def is_quiet(entries: Sequence[Entry], *, now_s: float) -> bool:
    """Whether every request of the last stretch that has an objective was answered in time."""
    settled_s = now_s - RT_MAX_S
    recent = [e for e in entries if e.kind != "async" and settled_s - QUIET_S <= e.scheduled_at_s <= settled_s]
    return len(recent) >= LEAST_QUIET and all(entry.in_time(RT_MAX_S) for entry in recent)


def write_requests(entries: Sequence[Entry], path: Path, *, started_at_s: float) -> None:
    """Leave every request and what became of it, for whoever asks why."""
    columns = ("index", "kind", "status", "tier", "batch_size", "version", "right", "request_id", "reason", "timing", "error")
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("scheduled_s", "latency_s", *columns))
        for entry in entries:
            times = (f"{entry.scheduled_at_s - started_at_s:.3f}", f"{entry.latency_s:.3f}")
            rows.writerow((*times, *(getattr(entry, column) for column in columns)))


def forget_dry_pools() -> None:
    """Have the planner see every pool again: in AWS the three minutes for which it does not are shorter than the time between faults."""
    table = boto3.resource("dynamodb").Table(wiring.settings().control_table)
    now_s = time.time()
    for name in wiring.control().claims("unavailable/", now_s=now_s):
        table.delete_item(Key={"pk": "claims", "sk": name})


def judge(
    scenario: Scenario, stage: Stage, watch: FleetWatch, failures: Sequence[str], *, fault_at_s: float, started_at_s: float
) -> Outcome:
    """Sum a scenario up."""
    entries = list(stage.ledger.entries)
    lost, wrong = [e for e in entries if stage.ledger.is_lost(e)], [e for e in entries if e.right is False]
    twice = [] if stage.is_gone else doubled(entries, refuses_records=scenario.refuses_records)
    timed = [e for e in entries if e.kind != "async"]
    missed = [e for e in timed if not e.in_time(RT_MAX_S) and e.finished_at_s >= fault_at_s]
    late_until_s = max([fault_at_s, watch.short_until_s(), *(e.finished_at_s for e in missed)])
    found = [*failures, *twice, *(f"request {e.index}: a wrong result from the {e.tier} tier" for e in wrong)]
    # With nobody there to accept it, only a request that was accepted, or repeated until somebody is, must be answered.
    unexcused = [e for e in lost if not scenario.outage or e.is_accepted or e.kind == "keyed"]
    found += [f"request {e.index} ({e.kind}) was lost: {e.status} {e.error}" for e in unexcused]
    in_time = sum(e.in_time(RT_MAX_S) for e in timed)
    if scenario.floor is not None and (short := shortfall(in_time=in_time, judged=len(timed), floor=scenario.floor)):
        found.append(short)
    return Outcome(
        name=scenario.name,
        family=scenario.family,
        summary=scenario.summary,
        requests=len(entries),
        answered=sum(e.status == 200 for e in entries),
        refused=sum(not stage.ledger.is_lost(e) and e.status != 200 for e in entries),
        lost=len(lost),
        doubled=len(twice),
        wrong=len(wrong),
        attainment=in_time / len(timed) if timed else 1.0,
        floor=scenario.floor,
        unjudged=scenario.unjudged,
        recovery_s=late_until_s - fault_at_s,
        seconds=time.time() - started_at_s,
        breaches=tuple(found),
        notes=tuple(dict.fromkeys(stage.notes)),
        lost_reasons=tuple(sorted({f"{e.status} {e.error}"[:160] for e in lost})),
    )
