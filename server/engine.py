"""One model behind the front: admit, batch by deadline, have it computed, reply.

Everything here runs on the event loop and takes microseconds; computing happens in the model's process. The next batch
fills while one runs, and is closed only after every socket that was readable has been read.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from markserve.core.batch_limits import SERVE_RATE_TOLERANCE
from markserve.core.estimators import RateEstimate
from markserve.core.profiles import LatencyEstimate
from markserve.core.tunables import Tunables
from markserve.errors import InferenceFailed, InvalidRequest, Overloaded
from markserve.messages import ModelRecord, Stack, Tensor
from markserve.padding import Signature, cut, signature, stacked, widths
from markserve.profiling import batch_profile
from markserve.telemetry import logger
from server.channel import FromModel, Group, GroupResult, Load, Progress, Ran, Ready, Refused, Run, StackHead
from server.counters import Counters
from server.manifest import ServedModel
from server.measuring import HERE, LARGEST_BATCH
from server.model_link import ModelLink
from worker.pacing import Pacing

MAX_HELD_BYTES = 256 * 1024 * 1024
"""Tensor bytes that may wait for one model."""
HANG_FACTOR, HANG_FLOOR_S = 20.0, 30.0
"""A batch that takes this many times its p98, and at least this long, will not come back."""

Reply = Callable[["tuple[Tensor, ...] | Exception", int], None]
"""Gets the outputs, or why there are none, and the size of the batch."""


@dataclass(slots=True, eq=False)
class Held:
    """A request that waits or is being computed."""

    inputs: tuple[Tensor, ...]
    rows: int
    size_bytes: int
    arrival_at_s: float
    reply: Reply


@dataclass(frozen=True, slots=True)
class Pass:
    """Requests computed together, and how long their padded inputs are in it."""

    members: list[Held]
    width_of: Mapping[str, int]


class Engine:
    """A served model's requests.

    Parameters
    ----------
    clock
        Monotonic time.
    """

    def __init__(
        self,
        model: ServedModel,
        load: Load,
        *,
        rt_max_s: float,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self.record: ModelRecord = model.record
        self.counters = Counters()
        self.refusal: str | None = None
        self.ready = asyncio.Event()
        self.reason = ""
        self.threads = 0
        self._rt_max_s = rt_max_s
        self._loop = loop
        self._clock = clock
        self._say = say
        self._link = ModelLink(load, self, loop=loop)
        self._pacing: Pacing[Held] | None = None
        self._is_up = False
        self._running: list[Pass] | None = None
        self._running_rows = 0
        self._started_at_s = 0.0
        self._busy_until_s = 0.0
        self._arrived = 0
        self._held_rows = 0
        self._held_bytes = 0
        self._is_scheduled = False
        self._timer: asyncio.TimerHandle | None = None

    # --- life -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the model's process; `ready` is set once it serves, or `refusal` says why it never will."""
        await self._link.start()

    async def close(self) -> None:
        """End the model's process."""
        await self._link.close()

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded, measured and warm."""
        return self._is_up

    @property
    def wants_restart(self) -> bool:
        """A model that was refused would be refused again."""
        return self.refusal is None

    @property
    def pacing(self) -> Pacing[Held] | None:
        """Estimates and limits, once measured."""
        return self._pacing

    @property
    def held(self) -> int:
        """Requests that wait or are being computed."""
        waiting = len(self._pacing.accumulator) if self._pacing else 0
        return waiting + sum([len(one.members) for one in self._running or ()])

    @property
    def held_bytes(self) -> int:
        """Tensor bytes that wait or are being computed."""
        return self._held_bytes

    # --- requests ---------------------------------------------------------------------------------------------

    def admit(self, now_s: float, deadline_at_s: float) -> None:
        """Refuse a request that cannot be answered in time, before anything is spent on reading it.

        Raises
        ------
        Overloaded
            With the time after which trying again makes sense.
        """
        if not self._is_up or self._pacing is None:
            raise Overloaded(f"model '{self.record.model}' is not ready: {self.refusal or 'starting'}", retry_after_s=1.0, status=503)
        limits = self._pacing.limits
        accumulator = self._pacing.accumulator
        wait_s = max(0.0, self._busy_until_s - now_s) if self._running is not None else 0.0
        full, rest = divmod(self._held_rows + 1, limits.max_batch_size)
        wait_s += full * limits.batch_latency_s + (accumulator.estimate.batch_latency_s(rest) if rest else 0.0)
        late_s = now_s + wait_s + self._pacing.reply_overhead_s - deadline_at_s
        if late_s > 0:
            self.counters.shed += 1
            raise Overloaded(
                f"{self._held_rows} rows wait before this one, which would be {late_s:.3f} s late", retry_after_s=1.0, status=503
            )
        if self._held_bytes >= MAX_HELD_BYTES:
            self.counters.shed += 1
            raise Overloaded(f"{self._held_bytes} bytes of tensors wait", retry_after_s=1.0, status=503)

    def submit(self, inputs: tuple[Tensor, ...], *, arrival_at_s: float, deadline_at_s: float, reply: Reply) -> None:
        """Hold a request for its batch."""
        pacing = self._pacing
        if pacing is None:
            raise Overloaded("not ready", retry_after_s=1.0, status=503)
        rows = inputs[0].shape[0]
        size_bytes = sum([len(tensor.data) for tensor in inputs])
        held = Held(inputs, rows, size_bytes, arrival_at_s, reply)
        now_s = self._clock()
        pacing.accumulator.add(held, size=rows, answer_by_s=deadline_at_s, reply_overhead_s=pacing.reply_overhead_s, now_s=now_s)
        self._arrived += 1
        self._held_rows += rows
        self._held_bytes += size_bytes
        if self._running is None:
            self._schedule()

    def _schedule(self) -> None:
        """Choose a batch after the sockets that are readable now have been read."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pacing = self._pacing
        if pacing is None or not self._is_up or self._running is not None:
            return
        now_s = self._clock()
        pacing.observe_arrivals(self._arrived, now_s=now_s)
        self._arrived = 0
        rate_rps = pacing.arrival_rate_rps(now_s)
        batch = pacing.accumulator.take(now_s=now_s, runner_idle=True, arrival_rate_rps=rate_rps)
        self._shed(pacing.accumulator.hopeless(now_s))
        if batch is not None:
            self._held_rows -= batch.size
            self._run(list(batch.items), batch.size, now_s)
            return
        due_s = pacing.accumulator.due_at_s(now_s=now_s, runner_idle=True, arrival_rate_rps=rate_rps)
        if due_s is not None:
            self._timer = self._loop.call_later(max(0.0, due_s - now_s), self._dispatch)

    def _shed(self, hopeless: list[Held]) -> None:
        for held in hopeless:
            self._held_rows -= held.rows
            self._held_bytes -= held.size_bytes
            self.counters.shed += 1
            held.reply(Overloaded("could not be answered in time", retry_after_s=1.0, status=503), 0)

    def _run(self, items: list[Held], rows: int, now_s: float) -> None:
        record = self.record
        groups: dict[Signature, list[Held]] = {}
        for held in items:
            groups.setdefault(signature(held.inputs, record), []).append(held)
        self._running = [Pass(members, widths([held.inputs for held in members], record)) for members in groups.values()]
        self._running_rows = rows
        self._started_at_s = now_s
        assert self._pacing is not None  # noqa: S101  # only called when it is
        self._busy_until_s = now_s + self._pacing.accumulator.estimate.batch_latency_s(rows)
        buffers: list[bytes | memoryview] = []
        heads = []
        for one in self._running:
            stacks = []
            for parts in stacked([held.inputs for held in one.members], record, one.width_of):
                buffers += parts.data
                stacks.append(StackHead(parts.datatype, parts.shape, sum(map(len, parts.data))))
            heads.append(Group(tuple([held.rows for held in one.members]), tuple(stacks)))
        self._link.run(Run(groups=tuple(heads)), buffers)

    # --- the model's process ----------------------------------------------------------------------------------

    def heard(self, message: FromModel, data: memoryview) -> None:
        """Take what the model's process says."""
        if isinstance(message, Ran):
            self._ran(message, data)
        elif isinstance(message, Progress):
            self._say(f"{self.record.model}: {message.doing}")
        elif isinstance(message, Ready):
            self._became_ready(message)
        elif isinstance(message, Refused):
            self.refusal = message.message
            self.ready.set()

    def died(self, reason: str) -> None:
        """Answer what was being computed, and wait for the restart."""
        logger.error("%s: the model's process ended: %s", self.record.model, reason)
        self._is_up = False
        self.counters.deaths += 1
        lost, self._running = self._running or [], None
        for one in lost:
            for held in one.members:
                self._held_bytes -= held.size_bytes
                held.reply(Overloaded("the model's process ended while computing", retry_after_s=1.0, status=503), 0)

    def check(self, now_s: float) -> None:
        """Look, now and then, whether the model hangs, and let go of what waits in vain while it is down."""
        if self._pacing is None:
            return
        if self._running is not None:
            patience_s = max(HANG_FLOOR_S, HANG_FACTOR * (self._busy_until_s - self._started_at_s))
            if now_s - self._started_at_s > patience_s:
                logger.error("%s: no answer from the model for %.0f s; ending its process", self.record.model, patience_s)
                self._link.kill()
        self._shed(self._pacing.accumulator.hopeless(now_s))

    def _became_ready(self, message: Ready) -> None:
        limit = message.record.max_batch_size or LARGEST_BATCH
        self.record = msgspec.structs.replace(message.record, max_batch_size=limit)
        self.threads = message.threads
        self.reason = message.reason
        estimate = LatencyEstimate(batch_profile(HERE, message.points))
        tunables = Tunables(rt_max_s=self._rt_max_s, spillover_max_concurrency=0)
        if self._pacing is None:
            self._pacing = Pacing[Held](
                estimate=estimate,
                tunables=tunables,
                max_batch_size=message.max_batch_size,
                spill_reserve_s=0.0,
                # Whether waiting brings more is asked for spans up to RT_max, and a burst that is over says nothing about them. Requests
                # arrive here one by one, so a memory that short is steady enough.
                rate=RateEstimate(time_constant_s=self._rt_max_s),
                rate_tolerance=SERVE_RATE_TOLERANCE,
            )
        self._is_up = True
        self.ready.set()
        self._schedule()

    def _ran(self, message: Ran, data: memoryview) -> None:
        finished_at_s = self._clock()
        groups, self._running = self._running or [], None
        assert self._pacing is not None  # noqa: S101  # it ran
        self.counters.batches += 1
        self.counters.rows += self._running_rows
        self.counters.compute_s += message.compute_s
        rows = self._running_rows
        if len(groups) == 1 and not message.groups[0].failures:
            self._pacing.observe_batch(rows=rows, compute_s=finished_at_s - self._started_at_s)
        self._link.proven()
        # In this order: read sockets, start the next batch, then write replies while it computes.
        self._schedule()
        self._loop.call_soon(self._reply, groups, message.groups, data, finished_at_s, rows)

    def _reply(self, passes: list[Pass], results: tuple[GroupResult, ...], data: memoryview, finished_at_s: float, rows: int) -> None:
        offset = 0
        for one, result in zip(passes, results, strict=True):
            failures = {failure.index: failure for failure in result.failures}
            stacks = []
            for head in result.outputs:
                stacks.append(Stack(head.datatype, head.shape, data[offset : offset + head.data_bytes]))
                offset += head.data_bytes
            row = 0
            for index, held in enumerate(one.members):
                self._held_bytes -= held.size_bytes
                failure = failures.get(index)
                if failure is not None:
                    held.reply(_failure(failure.status, failure.message), rows)
                    continue
                held.reply(self._outputs(stacks, row, held, one.width_of), rows)
                row += held.rows
        if self._pacing is not None:
            self._pacing.observe_reply(max(0.0, self._clock() - finished_at_s))

    def _outputs(self, stacks: list[Stack], row: int, held: Held, width_of: Mapping[str, int]) -> tuple[Tensor, ...] | Exception:
        """Return a request's own part of a pass's outputs."""
        tensors = []
        try:
            for spec, stack in zip(self.record.outputs, stacks, strict=True):
                own = cut(stack.rows(row, held.rows), spec, held.inputs, self.record, width_of)
                tensors.append(Tensor(name=spec.name, datatype=own.datatype, shape=own.shape, data=bytes(own.data)))
        except InferenceFailed as error:
            return ModelFailed(str(error))
        return tuple(tensors)


class ModelFailed(Exception):
    """The model raised on a request's own input."""


def _failure(status: int, message: str) -> Exception:
    return InvalidRequest(message) if status < 500 else ModelFailed(message)


def retry_after_text(seconds: float) -> str:
    """Whole seconds, at least one."""
    return str(max(1, math.ceil(seconds)))
