"""What crosses a process boundary: typed, versioned, JSON on the wire.

Decoding validates; a payload of an unknown `schema_version` or a wrong shape raises `InvalidRequest`, so a
consumer can count it and move on. Raw tensor bytes are little-endian and row-major, whatever the client sent.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from markserve.core.types import Forecast, Offering, Tier
from markserve.errors import InvalidRequest

SCHEMA_VERSION = 1
NAME_MAX_CHARACTERS = 512
"""Of a name that something is stored under: a sort key holds 1,024 bytes."""
REASON_MAX_CHARACTERS = 300
"""Of what is said about a payload that is refused: a decoder's message may quote all of it."""

Name = Annotated[str, msgspec.Meta(max_length=NAME_MAX_CHARACTERS)]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_MAX_CHARACTERS)]
Seconds = Annotated[float, msgspec.Meta(gt=-1e11, lt=1e11)]
"""Of a size at which a clock still tells differences: an absurd one must not become a wait."""
Instant = Annotated[float, msgspec.Meta(ge=0, lt=1e11)]
"""Seconds since the epoch, of at most the eleven digits that sort keys are padded to."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of every payload: carries the schema version."""

    schema_version: int = SCHEMA_VERSION


MessageT = TypeVar("MessageT", bound=Message)


def encode(message: object) -> bytes:
    """Encode a message (or any value object) as JSON."""
    return msgspec.json.encode(message)


def decode(payload: bytes | str, message_type: type[MessageT]) -> MessageT:
    """Decode and validate `payload`.

    Raises
    ------
    InvalidRequest
        If it is not JSON, not of this type, or of another schema version.
    """
    try:
        message = msgspec.json.decode(payload, type=message_type)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _not_valid(message_type, error) from error
    _check_version(message)
    return message


PlainT = TypeVar("PlainT")


def from_plain(value: object, expected_type: type[PlainT]) -> PlainT:
    """Validate plain JSON values, such as a Lambda event.

    Raises
    ------
    InvalidRequest
        Naming the field that is wrong, or the schema version that this build does not read.
    """
    try:
        _check_plain(value)
        converted = msgspec.convert(value, expected_type)
    except (msgspec.ValidationError, ValueError, RecursionError, OverflowError) as error:
        raise _not_valid(expected_type, error) from error
    if isinstance(converted, Message):
        _check_version(converted)
    return converted


def _check_plain(value: object) -> None:
    """Refuse what no JSON text says and Python's decoder lets through: NaN, infinity, half a surrogate pair."""
    pending: list[Any] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if not item.isascii():
                item.encode()
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise ValueError(f"{item} is not a number")
        elif isinstance(item, dict):
            pending += item
            pending += item.values()
        elif isinstance(item, list):
            pending += item


def _not_valid(expected_type: object, error: Exception) -> InvalidRequest:
    return InvalidRequest(f"not a valid {getattr(expected_type, '__name__', 'payload')}: {str(error)[:REASON_MAX_CHARACTERS]}")


def _check_version(message: Message) -> None:
    if message.schema_version != SCHEMA_VERSION:
        told = f"{type(message).__name__} of schema_version {message.schema_version}; this build reads {SCHEMA_VERSION}"
        raise InvalidRequest(told, field="schema_version")


def to_plain(message: object) -> Any:
    """Convert to plain JSON values, such as a Lambda's answer."""
    return msgspec.to_builtins(message)


# --- request path -----------------------------------------------------------------------------------------


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """A named tensor: raw little-endian bytes; BYTES elements are length-prefixed as in the OIP binary form."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


class Stack(msgspec.Struct, frozen=True):
    """Rows of one tensor, of one request or of several, on their way through a model."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a fixed-size datatype."""
        return len(self.data) // self.shape[0]

    def rows(self, start: int, count: int) -> Stack:
        """Return `count` rows from `start` on; nothing is copied."""
        size = self.row_bytes
        return Stack(self.datatype, (count, *self.shape[1:]), memoryview(self.data)[start * size : (start + count) * size])


class InferenceRequest(Message, frozen=True, kw_only=True):
    """One accepted request, on its way to a worker or to the spillover function."""

    request_id: Id
    model: str
    model_version: str
    arrival_at_s: Seconds
    inputs: tuple[Tensor, ...] = ()
    inputs_ref: str | None = None
    """Object key of the inputs when they are too large to travel inline."""
    output_names: tuple[str, ...] = ()
    """Outputs asked for; empty means all."""
    deadline_at_s: Seconds | None = None
    """None for async requests: they are never dropped."""
    spill_at_s: Seconds | None = None
    """When the front stops waiting and spills: no worker should start what cannot finish by then."""
    reply_overhead_s: Seconds = 0.0
    """Time from a finished computation to the client's answer, as the front measures it."""
    trace_id: str | None = None
    suspect: bool = False
    """A worker that held it died: it must run alone. A fresh copy carries this, since its receive count starts anew."""
    body_sha256: str = ""
    """Of what was accepted, where that is recorded for a day: its answer is kept beside that acceptance, or for nobody."""

    def as_suspect(self) -> InferenceRequest:
        """Return a copy that will run alone."""
        return msgspec.structs.replace(self, suspect=True)


class AnswerError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request has no result: HTTP status and a message safe to show."""

    status: int
    message: str


class Answer(Message, frozen=True, kw_only=True):
    """The one answer of a request: outputs or an error, and how it came about."""

    request_id: str
    tier: Tier
    outputs: tuple[Tensor, ...] = ()
    outputs_ref: str | None = None
    error: AnswerError | None = None
    instance_id: str = ""
    batch_size: int = 0
    queued_s: float = 0.0
    """Arrival to receipt by whoever computed it."""
    batch_wait_s: float = 0.0
    """Receipt to start of execution."""
    compute_s: float = 0.0
    finished_at_s: float = 0.0
    cold_start: bool = False
    model_version: str = ""
    """Version that computed it; empty where nothing was computed."""


class StoredResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the results table holds for one request; `answer` is None while it is pending."""

    request_id: str
    answer: Answer | None
    body_sha256: str = ""
    accepted_at_s: float = 0.0
    deadline_at_s: float | None = None
    owner: str = ""
    """Client identity the result belongs to; empty for a request that nobody may ask about later."""
    model: str = ""
    model_version: str = ""


class Padding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That an input may be lengthened: requests of unequal length then share a pass, all as long as a bucket."""

    value: bool | int | float = 0
    """What is filled in."""
    buckets: tuple[int, ...]
    """Lengths that passes have, ascending; more than the last is refused."""


class Follows(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That an output is as long as a padded input along `axis`, so that each request is given its own length of it."""

    input: str
    axis: int


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Declared tensor of a model; -1 in `shape` is a free dimension, the first one is the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    pad: Padding | None = None
    """Of an input with one free dimension beside the batch: how it is padded."""
    mask_of: str = ""
    """A padded input whose own positions this input marks with ones; filled in where a request leaves it out."""
    length_of: str = ""
    """A padded input whose length this input holds, one per row; filled in where a request leaves it out."""
    follows: Follows | None = None
    """Of an output: which padded input it is as long as."""

    @property
    def is_optional(self) -> bool:
        """Whether the server fills this input in."""
        return bool(self.mask_of or self.length_of)

    @property
    def padded_axis(self) -> int | None:
        """Dimension that padding lengthens."""
        return self.shape.index(-1, 1) if self.pad or self.mask_of else None


class ProfilePointRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Measured latency of one batch size, as stored."""

    batch_size: int
    p50_s: float
    p98_s: float
    p99_s: float
    samples: int


ModelFormat = Literal["torchscript", "torch_export", "onnx"]
"""How an artefact is stored; none of them runs code of its own when it is loaded, as a pickle would."""


class ModelRecord(Message, frozen=True, kw_only=True):
    """A registered model version: its tensors, artefact, objective and measured profiles."""

    model: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    artefact_key: str
    artefact_sha256: str
    format: ModelFormat = "torchscript"
    max_batch_size: int = 64
    queue_url: str = ""
    profiles: dict[str, tuple[ProfilePointRecord, ...]] = {}
    """By instance type; the key `lambda` is the spillover function's."""
    created_at_s: float = 0.0


class Traffic(Message, frozen=True, kw_only=True):
    """Which versions of a model answer requests that name none."""

    model: str
    live: str
    canary: str | None = None
    """Loaded by workers ahead of its traffic, also while its weight is 0."""
    canary_weight: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Share of requests that the canary answers."""
    previous: str | None = None
    """Live before `live`: what a rollback returns to; workers keep it loaded."""
    number: int = 0
    """Of changes so far: the next one must know the last."""
    changed_at_s: float = 0.0

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions to keep loaded, the live one first."""
        wanted = (self.live, self.canary, self.previous)
        return tuple(dict.fromkeys(version for version in wanted if version is not None))


class ClientRecord(Message, frozen=True, kw_only=True):
    """A client of the API that proves itself by a key, of which only the digest is known."""

    client: str
    key_sha256: str
    requests_per_minute: int
    created_at_s: float = 0.0
    operator: bool = False
    """Whether the key also opens the console: its data, and the parameters."""


# --- metrics ----------------------------------------------------------------------------------------------

Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
"""Refused when negative, or more than a front could count: counts are added up, so one bad report would spoil a window for good."""


class OutcomeCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Outcomes of one model's requests that arrived in one window, for one tier, class and version."""

    model: Name
    window_at_s: Instant
    tier: Tier | None
    """None for requests that were rejected before any tier saw them."""
    ok: Count = 0
    errors: Count = 0
    within_slo: Count = 0
    model_version: str = ""
    slo_class: str = ""
    """What the request asked for; `within_slo` is judged by its objective."""
    latency_histogram: dict[str, Count] = {}
    """Bucket index (as text) to count; see `core.histogram`."""

    @property
    def group(self) -> tuple[float, str, str, str]:
        """What is counted together, and in which order: window, tier, class and version."""
        return self.window_at_s, self.tier or "", self.slo_class, self.model_version

    def plus(self, other: OutcomeCounts) -> OutcomeCounts:
        """Sum of two counts of the same model and group."""
        histogram = dict(self.latency_histogram)
        for bucket, count in other.latency_histogram.items():
            histogram[bucket] = histogram.get(bucket, 0) + count
        return msgspec.structs.replace(
            self,
            ok=self.ok + other.ok,
            errors=self.errors + other.errors,
            within_slo=self.within_slo + other.within_slo,
            latency_histogram=histogram,
        )


class ArrivalCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Arrivals of one model in one window."""

    model: Name
    window_at_s: Instant
    count: Count


class MetricsBatch(Message, frozen=True, kw_only=True):
    """What one front environment saw since its last report, or a liveness tick of the pipeline.

    `batch_id` makes redelivery harmless: a batch is counted once.
    """

    batch_id: Id
    sent_at_s: Instant
    arrivals: tuple[ArrivalCounts, ...] = ()
    outcomes: tuple[OutcomeCounts, ...] = ()
    tick_at_s: Instant | None = None
    """Set by the control cycle: windows shortly before it are known, so their absence means zero."""


class ArrivalWindow(msgspec.Struct, frozen=True, kw_only=True):
    """Arrivals within `[at_s, at_s + window_s)`; `count` is None when the window is missing, which is not zero."""

    at_s: float
    count: int | None


# --- control path -----------------------------------------------------------------------------------------


class LaunchInstances(msgspec.Struct, frozen=True, kw_only=True, tag="launch_instances", tag_field="action"):
    """Buy `count` instances of an offering for a model."""

    action_id: Id
    model: Name
    offering: Offering
    count: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    plan_id: Name
    reason: str
    purpose: str = ""
    """Empty to serve; else the measurement that the instance is for."""


class DrainInstance(msgspec.Struct, frozen=True, kw_only=True, tag="drain_instance", tag_field="action"):
    """Stop giving an instance work; it finishes what it holds."""

    action_id: Id
    model: Name
    instance_id: Id
    plan_id: Name
    reason: str


class TerminateInstance(msgspec.Struct, frozen=True, kw_only=True, tag="terminate_instance", tag_field="action"):
    """Give an instance back: it has drained, failed, or is an orphan."""

    action_id: Id
    model: Name
    instance_id: Id
    plan_id: Name
    reason: str
    failed: bool = False


class WarmSpillover(msgspec.Struct, frozen=True, kw_only=True, tag="warm_spillover", tag_field="action"):
    """Keep `environments` spillover environments warm for a model."""

    action_id: Id
    model: Name
    environments: Annotated[int, msgspec.Meta(ge=0, le=1000)]
    plan_id: Name
    reason: str


Action = LaunchInstances | DrainInstance | TerminateInstance | WarmSpillover


class _Measurement(msgspec.Struct, frozen=True, kw_only=True, tag_field="measurement"):
    run_id: Id
    """The state machine's execution."""
    model: Name
    instance_type: Name

    @property
    def name(self) -> str:
        """Names this measurement and no other: its instance carries it as a tag, its result in the key."""
        return f"{self.run_id}/{self.instance_type}"


class StartMeasurement(_Measurement, frozen=True, kw_only=True, tag="start"):
    """Launch an instance of a type that measures the model and serves nothing."""


class CheckMeasurement(_Measurement, frozen=True, kw_only=True, tag="check"):
    """See whether the result is there."""


class EndMeasurement(_Measurement, frozen=True, kw_only=True, tag="end"):
    """Give the instance back, whatever became of it."""


class StoreMeasurements(msgspec.Struct, frozen=True, kw_only=True, tag_field="measurement", tag="store"):
    """Make the results of a run the model's profiles."""

    run_id: Id
    model: Name
    instance_types: Annotated[tuple[Name, ...], msgspec.Meta(max_length=100)]


MeasurementStep = StartMeasurement | CheckMeasurement | EndMeasurement | StoreMeasurements


class MeasuredLatencies(Message, frozen=True, kw_only=True):
    """T(b) of a model version on an instance type, as the instance that measured it stores it."""

    model: str
    model_version: str
    instance_type: str
    points: tuple[ProfilePointRecord, ...]


class ForecastRecord(Message, frozen=True, kw_only=True):
    """A forecast as stored and handed to the planner."""

    model: str
    origin_at_s: float
    step_s: float
    rates_rps: dict[str, tuple[float, ...]]
    """Quantile (as text) to one rate per step."""
    forecaster: str
    reason: str
    scores: dict[str, float] = {}
    """Newsvendor cost by forecaster over persistence's, once enough outcomes are known."""
    calibration_error: float | None = None
    """Largest distance of a quantile's coverage from its level, beyond chance."""

    def to_forecast(self) -> Forecast:
        """Convert to the core value object."""
        return Forecast(
            model=self.model,
            origin_at_s=self.origin_at_s,
            step_s=self.step_s,
            rates_rps={float(q): values for q, values in self.rates_rps.items()},
            forecaster=self.forecaster,
            reason=self.reason,
        )

    @classmethod
    def from_forecast(
        cls, forecast: Forecast, scores: dict[str, float] | None = None, calibration_error: float | None = None
    ) -> ForecastRecord:
        """Convert from the core value object."""
        return cls(
            model=forecast.model,
            origin_at_s=forecast.origin_at_s,
            step_s=forecast.step_s,
            rates_rps={str(q): tuple(values) for q, values in forecast.rates_rps.items()},
            forecaster=forecast.forecaster,
            reason=forecast.reason,
            scores=scores or {},
            calibration_error=calibration_error,
        )


class ForecasterCard(Message, frozen=True, kw_only=True):
    """How a trained forecaster was made and judged; stored beside its weights."""

    model: str
    version: str
    forecaster: str
    trained_at_s: float
    weights_sha256: str
    data_since_s: float
    judged_since_s: float
    """Steps from here on were kept from training; the losses are over them."""
    data_until_s: float
    steps: int
    known_steps: int
    step_s: float
    window_s: float
    horizon_steps: int
    seed: int
    epochs: int
    samples: int
    parameters: int
    validation_loss: float
    losses_rps: dict[str, float]
    """Pinball loss by forecaster, over the same held-out origins."""
    losses_by_step_rps: dict[str, tuple[float | None, ...]]
    """The same by step ahead; None where no outcome was known."""
    promoted: bool
    reason: str
    started_from: str = "random"
    """Weights that were refined: random or pretrained (those that ship)."""


class ForecasterRun(Message, frozen=True, kw_only=True):
    """A training that may take several invocations."""

    begun_at_s: float
    """The windows are read as of this instant, whoever goes on."""
    seed: int
    finished: bool = False


class ForecasterPointer(Message, frozen=True, kw_only=True):
    """Which trained version may serve a model."""

    version: str


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """Something the planner considered and did not choose, and why."""

    offering: str
    cost_usd: float | None
    reason: str


class PlanRecord(Message, frozen=True, kw_only=True):
    """One control cycle's decision for the whole stack."""

    plan_id: str
    version: int
    created_at_s: float
    trigger: str
    """schedule, slo_at_risk, interruption or manual."""
    demand_rps: dict[str, float]
    capacity_rps: dict[str, float]
    hourly_cost_usd: float
    actions: tuple[Action, ...]
    alternatives: tuple[Alternative, ...]
    reason: str
    demand_quantiles: dict[str, float] = {}
    """Quantile of its forecast that was bought for, by model; the forecasters are judged by it."""


class DecisionRecord(Message, frozen=True, kw_only=True):
    """One line of the decision log: something happened, and why."""

    at_s: float
    model: str
    subject: str
    """What it is about: an instance id, a plan id, a parameter name."""
    event: str
    """Past tense, snake_case: instance_launched, capacity_unavailable, parameter_refused, ..."""
    reason: str
    detail: dict[str, str | float | int | bool | None] = {}


class SloAtRisk(Message, frozen=True, kw_only=True):
    """Event: attainment fell, or will soon fall, below the objective."""

    model: str
    at_s: float
    attainment: float
    objective: float
    requests: int
    reason: str


class ForecastDrifted(Message, frozen=True, kw_only=True):
    """Event: a model's forecasts have become worse than they were; its forecaster is trained anew."""

    model: str
    at_s: float
    reason: str


class TrainingPaused(Message, frozen=True, kw_only=True):
    """Event: a training ran out of time and goes on with the next invocation."""

    model: str
    at_s: float
    reason: str


class InstanceReady(Message, frozen=True, kw_only=True):
    """Event: a worker has warmed up and serves."""

    model: Name
    instance_id: Id
    at_s: Instant


class InstanceDrained(Message, frozen=True, kw_only=True):
    """Event: a worker finished everything it held and stopped."""

    model: Name
    instance_id: Id
    at_s: Instant
    reason: str


class InstanceInterrupted(Message, frozen=True, kw_only=True):
    """Event: the cloud will take an instance back; a plan should replace it now."""

    model: Name
    instance_id: Id
    at_s: Instant
    notice: str
    """What was said: spot_interruption_warning or rebalance_recommendation."""
