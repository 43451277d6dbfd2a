"""The worker process of one instance: load the model, warm up, serve until drained; exit non-zero on any failure."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from markserve import wiring
from markserve.core.profiles import LatencyEstimate
from markserve.core.types import Tier
from markserve.errors import ConfigurationError, InferenceFailed
from markserve.messages import ModelRecord
from markserve.plan_inputs import model_spill_reserve
from markserve.ports import ModelRunner
from markserve.profiling import batch_profile, profile_runner, sample_request
from markserve.settings import Settings
from markserve.telemetry import logger
from worker.engine import Engine
from worker.intake import Intake, Work
from worker.lifeline import Lifeline
from worker.mailbox import Mailbox
from worker.measure import measure
from worker.pacing import Pacing
from worker.threads import serve
from worker.tracing import Tracing
from worker.versions import Versions

STARTUP_BATCH_SIZES = (1, 2, 4, 8)
STARTUP_SAMPLES = 10
"""A quick profile where nobody has profiled this instance type; refitted online from then on."""

SERVE = "serve"

Wrap = Callable[[ModelRunner], ModelRunner]


def main(wrap: Wrap = lambda runner: runner, *, threads: int | None = None) -> None:
    """Serve `settings.model` until drained, or measure it if that is this instance's purpose.

    Parameters
    ----------
    wrap
        Put around every loaded runner; the local system emulates instance sizes with it.
    threads
        Of torch; default: all cores.
    """
    settings = wiring.settings()
    _check(settings)
    logger.append_keys(model=settings.model, instance_id=settings.instance_id)
    cores = threads or os.cpu_count() or 1
    if settings.purpose not in ("", SERVE):
        measure(settings, wrap, threads=cores)
        return

    def load(record: ModelRecord) -> ModelRunner:
        return wrap(wiring.model_runner(record, tier=Tier.WORKER, threads=cores))

    versions = Versions(settings.model, models=wiring.models(), load=load)
    record = wiring.models().get(settings.model)
    pacing = prepare(record, versions.get(record.version), settings.instance_type)
    versions.follow_traffic()
    receivers = max(settings.receivers, pacing.receivers_wanted)
    pause = threading.Event()
    queue = wiring.work_queue(record.queue_url)
    tracing = Tracing(wiring.traces(), name=f"{settings.stack_name}-worker")
    mailbox = Mailbox(queue=queue, results=wiring.results(), blobs=wiring.blobs(), clock=time.time, pause=pause.wait, tracing=tracing)
    engine = Engine(
        instance_id=settings.instance_id,
        queue=queue,
        mailbox=mailbox,
        intake=Intake(instance_id=settings.instance_id, blobs=wiring.blobs(), mailbox=mailbox, runner_for=versions.get, pause=pause.wait),
        pacing=pacing,
        runner_for=versions.get,
        receive_wait_s=settings.receive_wait_s,
        clock=time.time,
        receivers=receivers,
    )
    lifeline = Lifeline(
        engine,
        model=settings.model,
        instance_id=settings.instance_id,
        instances=wiring.instances(),
        parameters=wiring.parameters(),
        events=wiring.events(),
        interruption=wiring.interruption_notice(),
        clock=time.time,
        versions=versions.loaded,
    )
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda number, _frame: engine.drain(signal.Signals(number).name))
    # Everything loaded so far lives as long as the process; a full collection over it would stall a batch by 200 ms.
    gc.collect()
    gc.freeze()
    lifeline.announce_ready(patience_s=settings.heartbeat_timeout_s, pause=pause.wait)
    serve(engine, lifeline, receivers=receivers, heartbeat_s=settings.heartbeat_s, follow_traffic=versions.follow_traffic)
    lifeline.conclude()


def prepare(record: ModelRecord, runner: ModelRunner, instance_type: str) -> Pacing[Work]:
    """Warm the model up and pace it by its profile on this instance type, measuring one if there is none."""
    points = record.profiles.get(instance_type)
    if points is None:
        sizes = [size for size in STARTUP_BATCH_SIZES if size <= record.max_batch_size]
        points = profile_runner(runner, [sample_request(record)], batch_sizes=sizes, samples=STARTUP_SAMPLES)
        logger.warning("no profile of %s on %s; measured one: %s", record.model, instance_type, points)
    tunables = wiring.parameters().get(record.model)
    pacing: Pacing[Work] = Pacing(
        estimate=LatencyEstimate(batch_profile(instance_type, points)),
        tunables=tunables,
        max_batch_size=record.max_batch_size,
        spill_reserve_s=model_spill_reserve(record, tunables).reserve_s,
    )
    for size in (1, 1, pacing.limits.max_batch_size):
        for result in runner.run([sample_request(record)] * size):
            if isinstance(result, Exception):
                raise InferenceFailed(f"{record.model} version {record.version} fails on zeros in a batch of {size}: {result}") from result
    logger.info("%s version %s on %s: %s", record.model, record.version, instance_type, pacing.limits.reason)
    return pacing


def _check(settings: Settings) -> None:
    missing = [name for name in ("model", "instance_id", "instance_type") if not getattr(settings, name)]
    if missing:
        raise ConfigurationError("; ".join(f"MARKSERVE_{name.upper()} is not set" for name in missing))


def run_process(wrap: Wrap = lambda runner: runner, *, threads: int | None = None) -> NoReturn:
    """Run `main` as the whole process: exit 0 after a drain, 1 on any failure."""
    code = 0
    try:
        main(wrap, threads=threads)
    except Exception:  # noqa: BLE001  # the process's entry point: logged below
        logger.exception("the worker failed")
        code = 1
    logging.shutdown()
    # Not sys.exit: it would join threads, and one stuck in a call or a batch must not keep a failed worker alive.
    os._exit(code)


if __name__ == "__main__":
    run_process()
