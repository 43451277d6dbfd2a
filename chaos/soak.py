"""Load without faults for as long as one likes, and whether anything grows that should not.

Sampled from outside: memory (PSS, shared pages counted once), descriptors and processes of the whole system, rows of the
tables, messages in the queues. What ends by its own rules (windows, results, decisions expire by TTL) may grow with the load
for hours; it is reported, and judged by rows per request. Everything else must not have a slope.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import boto3
import psutil
from rich.console import Console
from rich.table import Table

from chaos.invariants import doubled
from chaos.ledger import Ledger
from chaos.session import work_dir
from chaos.stage import MAX_HOURLY_COST_USD, PARAMETERS, WORKERS, Stage, questions_for
from cli.traffic import messages_in
from local.model_setup import MODEL
from local.system import LocalSystem, SystemConfig
from markserve import wiring

RT_MAX_S = 2.0
SL_MIN = 0.98
STAY_S = 2.5
WARM_MARGIN = 1.5
ALLOWED_SETUP_S = 600.0
"""Environments are kept for all of the run, as provisioned concurrency does: those that a steady load needs only now and then would be
reaped after five minutes, and a dozen started at once take both cores from everything else for half a minute. AWS's take nobody's."""
SCALE_IN_CYCLES = "60"
"""Five minutes, as cycles last 5 s and not a minute. A worker's start takes as many seconds of the shared cores as ever, so that
a fleet which follows every 10 s of a steady load is busy starting workers."""
WARM_UP_SHARE = 0.25
"""Of the time: caches fill, environments and workers start; growth there is no leak."""
SAMPLE_EVERY_S = 10.0
READY_WITHIN_S = 120.0
MIB = 2**20
MOST_GROWTH = {"memory_mib": 0.10, "descriptors": 0.10, "processes": 0.10}
"""Growth over the judged time, as a share of the level, that is still noise."""
MOST_QUEUED = 20
"""Messages waiting at the end that are still a queue in use, not a growing one."""


@dataclass(frozen=True, kw_only=True)
class SoakSample:
    """The system at one instant."""

    at_s: float
    memory_mib: float
    descriptors: int
    processes: int
    queued: int
    rows: dict[str, int] | None = None
    """By table; None where they were not counted. The embedded tables count by reading everything, which takes seconds of the
    system that is measured, so they are counted twice only: when the judged time begins, and at its end."""


@dataclass(frozen=True, kw_only=True)
class SoakResult:
    """What a soak found."""

    minutes: float
    rate_rps: float
    requests: int
    lost: int
    wrong: int
    doubled: int
    attainment: float
    slopes_per_hour: dict[str, float]
    """Growth of each figure by the hour, over the judged part."""
    growth: dict[str, float]
    """Growth over the judged part, as a share of the level."""
    rows_per_request: dict[str, float]
    shortfalls: tuple[str, ...]
    samples: tuple[SoakSample, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing grew, nothing was lost, and the objective was kept."""
        return not self.shortfalls


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope by unit of the first coordinate; 0 for fewer than two points.

    >>> slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)])
    2.0
    """
    if len({x for x, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def run_soak(*, minutes: float, rate_rps: float, seed: int, note: Callable[[str], None]) -> SoakResult:
    """Keep a fresh local system under steady load and watch what grows."""
    config = SystemConfig(
        work_dir=work_dir(),
        rt_max_s=RT_MAX_S,
        sl_min=SL_MIN,
        cycle_s=5.0,
        max_hourly_cost_usd=MAX_HOURLY_COST_USD,
        warm_api_environments=max(16, round(WARM_MARGIN * rate_rps * STAY_S)),
        warm_lambda_ttl_s=ALLOWED_SETUP_S + 60 * minutes,
        parameters=PARAMETERS | {"scale-in-cycles": SCALE_IN_CYCLES},
    )
    with LocalSystem(config=config, note=note) as system:
        questions = questions_for(system, wiring.models().get(MODEL), system.model.artefact)
        ledger = Ledger(endpoint=system.deployment.api_url, model=MODEL, questions=questions, rate_rps=rate_rps, seed=seed)
        stage = Stage(system=system, ledger=ledger)
        stage.wait(f"{WORKERS} workers serve", lambda: len(stage.serving()) >= WORKERS, within_s=READY_WITHIN_S)
        started_at_s = time.time()
        ledger.start()
        samples: list[SoakSample] = []
        rows_due_at_s = started_at_s + WARM_UP_SHARE * 60 * minutes
        while time.time() - started_at_s < 60 * minutes:
            time.sleep(SAMPLE_EVERY_S)
            samples.append(sample(stage, with_rows=time.time() >= rows_due_at_s))
            last = samples[-1]
            if last.rows is not None:
                rows_due_at_s = math.inf
            timed = [e for e in ledger.entries if e.kind != "async"]
            in_time = sum(e.in_time(RT_MAX_S) for e in timed) / max(1, len(timed))
            note(
                f"{(last.at_s - started_at_s) / 60:5.1f} min: {len(ledger.entries)} requests, {in_time:.2%} answered in time so far, "
                f"{last.memory_mib:.0f} MiB, {last.descriptors} descriptors, {last.processes} processes, {last.queued} queued"
            )
        ledger.stop()
        samples.append(sample(stage, with_rows=True))
        return judge(stage, samples, minutes=minutes, rate_rps=rate_rps, started_at_s=started_at_s)


def sample(stage: Stage, *, with_rows: bool) -> SoakSample:
    """Look at everything once, at the tables only when asked to."""
    own = psutil.Process()
    memory = descriptors = processes = 0
    for process in own.children(recursive=True):  # not this process: it is the client, and keeps every answer
        try:
            memory += getattr(process.memory_full_info(), "pss", 0)
            descriptors += process.num_fds()
            processes += 1
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return SoakSample(
        at_s=time.time(),
        memory_mib=memory / MIB,
        descriptors=descriptors,
        processes=processes,
        queued=messages_in(stage.system.record.queue_url) + messages_in(wiring.settings().metrics_queue_url),
        rows=table_rows() if with_rows else None,
    )


def table_rows() -> dict[str, int]:
    """Count the items of every table of the stack."""
    settings = wiring.settings()
    names = {
        field.removesuffix("_table"): getattr(settings, field)
        for field in ("models_table", "windows_table", "control_table", "instances_table", "results_table")
    }
    dynamodb = boto3.client("dynamodb")
    counts: dict[str, int] = {}
    for short, name in names.items():
        pages: Any = dynamodb.get_paginator("scan").paginate(TableName=name, Select="COUNT")
        counts[short] = sum(page["Count"] for page in pages)
    return counts


def judge(stage: Stage, samples: Sequence[SoakSample], *, minutes: float, rate_rps: float, started_at_s: float) -> SoakResult:
    """Judge by the slopes after the warm-up, and by the ledger."""
    judged_from_s = started_at_s + WARM_UP_SHARE * 60 * minutes
    judged = [s for s in samples if s.at_s >= judged_from_s]
    entries = [e for e in stage.ledger.entries if e.scheduled_at_s >= judged_from_s]
    timed = [e for e in entries if e.kind != "async"]
    slopes = {name: 3600 * slope([(s.at_s, float(getattr(s, name))) for s in judged]) for name in (*MOST_GROWTH, "queued")}
    hours = (judged[-1].at_s - judged[0].at_s) / 3600 if len(judged) > 1 else 0.0
    growth = {name: slopes[name] * hours / max(1.0, statistics.fmean(float(getattr(s, name)) for s in judged)) for name in MOST_GROWTH}
    answered = max(1, len(entries))
    counted = [s.rows for s in judged if s.rows is not None]
    rows = {name: (counted[-1][name] - counted[0][name]) / answered for name in counted[0]} if counted else {}
    lost, wrong = sum(stage.ledger.is_lost(e) for e in stage.ledger.entries), sum(e.right is False for e in stage.ledger.entries)
    twice = doubled(entries)
    attainment = sum(e.in_time(RT_MAX_S) for e in timed) / max(1, len(timed))
    shortfalls = [f"{name} grew by {share:.0%} in {60 * hours:.0f} minutes" for name, share in growth.items() if share > MOST_GROWTH[name]]
    shortfalls += [f"{judged[-1].queued} messages wait at the end"] if judged[-1].queued > MOST_QUEUED else []
    shortfalls += [f"{attainment:.2%} in time; the objective is {SL_MIN:.0%}"] if attainment < SL_MIN else []
    shortfalls += [f"{count} {what}" for count, what in ((lost, "lost"), (wrong, "wrong"), (len(twice), "answered twice")) if count]
    return SoakResult(
        minutes=minutes,
        rate_rps=rate_rps,
        requests=len(stage.ledger.entries),
        lost=lost,
        wrong=wrong,
        doubled=len(twice),
        attainment=attainment,
        slopes_per_hour=slopes,
        growth=growth,
        rows_per_request=rows,
        shortfalls=tuple(shortfalls),
        samples=tuple(samples),
    )


def emit_soak(result: SoakResult, console: Console) -> None:
    """Print the verdict for people."""
    table = Table(title=f"{result.minutes:g} minutes at {result.rate_rps:g} requests/s", title_justify="left")
    for column in ("what", "first judged", "last", "per hour", "growth"):
        table.add_column(column)
    judged = result.samples[len(result.samples) // 4 :]
    for name, per_hour in result.slopes_per_hour.items():
        share = result.growth.get(name)
        first, last = (float(getattr(s, name)) for s in (judged[0], judged[-1]))
        table.add_row(name, f"{first:.0f}", f"{last:.0f}", f"{per_hour:+.1f}", "" if share is None else f"{share:+.1%}")
    counted = [s.rows for s in judged if s.rows is not None]
    for name, per_request in result.rows_per_request.items():
        table.add_row(f"rows of {name}", str(counted[0][name]), str(counted[-1][name]), "", f"{per_request:.2f} a request")
    console.print(table)
    console.print(
        f"{result.requests} requests: {result.lost} lost, {result.doubled} doubled, {result.wrong} wrong; {result.attainment:.2%} in time",
        highlight=False,
    )
    console.print("; ".join(result.shortfalls) or "nothing grew", highlight=False, soft_wrap=True)
