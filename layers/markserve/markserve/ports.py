"""The interfaces the use cases need; adapters implement them, policies never see them.

Each method says what it raises beyond `Transient`, which any of them may raise. `adapters.memory` holds every
port in memory and is held to the same contract tests as the AWS adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from markserve.core.backtest import History, Rates
from markserve.core.spillover import FleetView, PublishedView
from markserve.core.tunables import Tunables
from markserve.core.types import CapacityType, Instance, InstanceState, ObservedInstance, WorkerStats
from markserve.errors import Transient
from markserve.messages import (
    Answer,
    ClientRecord,
    DecisionRecord,
    ForecastRecord,
    InferenceRequest,
    LaunchInstances,
    Message,
    MetricsBatch,
    ModelRecord,
    OutcomeCounts,
    PlanRecord,
    Stack,
    StoredResult,
    Traffic,
)


class ModelStore(Protocol):
    """Registered models and their versions."""

    def get(self, model: str, version: str | None = None) -> ModelRecord:
        """Return a version (default: the live one). Raises `UnknownModel`."""

    def versions(self, model: str) -> list[str]:
        """Versions of a model, oldest first; empty when unknown."""

    def removed(self, model: str) -> list[str]:
        """Names of the versions that were removed, whatever has become of the model, sorted."""

    def list(self) -> list[ModelRecord]:
        """Return the live version of every model, by name."""

    def put(self, record: ModelRecord) -> None:
        """Store a version and make it the live one, with all traffic."""

    def store(self, record: ModelRecord) -> None:
        """Store a version and leave traffic as it is. Raises `StaleWrite` when traffic moved meanwhile."""

    def traffic(self, model: str) -> Traffic:
        """Return who answers a model's requests. Raises `UnknownModel`."""

    def route(self, traffic: Traffic) -> None:
        """Change who answers, as the successor of change `number - 1`.

        Raises `UnknownModel` for a version that is not stored, `StaleWrite` when another change came first.
        """

    def delete_version(self, model: str, version: str) -> None:
        """Remove a version that gets no traffic; unknown is fine. Raises `StaleWrite` for the live one or the canary."""

    def delete(self, model: str) -> None:
        """Remove every version; unknown is fine."""

    def withdraw(self, model: str) -> None:
        """Make a model unknown to new requests, its versions staying for those under way; unknown is fine."""


class ResultStore(Protocol):
    """One answer per request: the first writer wins."""

    def put_pending(
        self,
        request_id: str,
        *,
        body_sha256: str,
        accepted_at_s: float,
        deadline_at_s: float | None,
        expires_at_s: float,
        owner: str = "",
        model: str = "",
        model_version: str = "",
    ) -> bool:
        """Record that a request was accepted, and for whom; False when the id is already known."""

    def put_answer(self, answer: Answer, *, expires_at_s: float, accepted_as: str = "") -> bool:
        """Record the answer unless there is one already; True when this one is now *the* answer.

        With `accepted_as`, the digest of a body, an answer is kept only beside the record that this body was accepted: one that outlives it
        would be nobody's, or taken for the answer to what the same key was used for since.
        """

    def put_answers(self, answers: Sequence[Answer], *, expires_at_s: float, accepted_as: Sequence[str] = ()) -> list[bool | Transient]:
        """Record several answers, each by itself as `put_answer` does, in as few calls as it takes.

        Parameters
        ----------
        accepted_as
            For each answer, as in `put_answer`; none for all.

        Returns
        -------
        For each answer
            Whether it is now *the* answer; or why it could not be written, which may be tried again.
        """

    def get(self, request_id: str) -> StoredResult | None:
        """Read consistently; None when nothing is known of the id."""


class WindowStore(Protocol):
    """Arrival windows, outcome windows and the liveness ticks of the pipeline."""

    def apply(self, batches: Sequence[MetricsBatch], *, expires_at_s: float) -> list[bool | Transient]:
        """Add the counts of batches to their windows, in as few writes as it takes.

        Returns
        -------
        For each batch
            True; False (and no change) when its batch_id was already applied; or why it could not be written, which may be tried again.
        """

    def arrivals(self, model: str, *, since_s: float, until_s: float) -> dict[float, int]:
        """Return counts by window start for windows with arrivals, `since_s <= start < until_s`."""

    def ticks(self, *, since_s: float, until_s: float) -> list[float]:
        """Liveness ticks in the interval, ascending."""

    def outcomes(self, model: str, *, since_s: float, until_s: float) -> list[OutcomeCounts]:
        """Outcome counts per (window, tier) in the interval, by window."""


class ControlStore(Protocol):
    """Forecasts, plans and the decision log."""

    def put_forecast(self, forecast: ForecastRecord) -> None: ...

    def latest_forecast(self, model: str) -> ForecastRecord | None: ...

    def forecasts(self, model: str, *, since_s: float, until_s: float) -> list[ForecastRecord]:
        """Forecasts by origin, ascending."""

    def put_plan(self, plan: PlanRecord) -> None:
        """Store a plan as the successor of `plan.version - 1`. Raises `StaleWrite` when another plan came first."""

    def latest_plan(self) -> PlanRecord | None: ...

    def plans(self, *, since_s: float, until_s: float) -> list[PlanRecord]:
        """Plans by creation, ascending."""

    def log(self, record: DecisionRecord) -> None:
        """Append to the decision log."""

    def decisions(self, *, since_s: float, until_s: float) -> list[DecisionRecord]:
        """Decision log in the interval, ascending."""

    def claim(self, name: str, *, now_s: float, for_s: float) -> bool:
        """Take `name` for a while; False while somebody else holds it (an idempotency guard and a rate limit)."""

    def claims(self, prefix: str, *, now_s: float) -> list[str]:
        """Names held at `now_s` that begin with `prefix`, sorted (dry pools, for one)."""


class InstanceRegistry(Protocol):
    """What this system knows of its instances."""

    def put(self, instance: Instance) -> None:
        """Record a new instance; recording the same id again changes nothing."""

    def transition(
        self, instance_id: str, *, expected: Sequence[InstanceState], state: InstanceState, at_s: float, reason: str
    ) -> Instance:
        """Move to `state` if in one of `expected`; stamps the matching `*_at_s`. Raises `StaleWrite`."""

    def heartbeat(self, instance_id: str, *, at_s: float, stats: WorkerStats) -> Instance:
        """Record a sign of life and return the record, so the worker learns of a drain. Raises `StaleWrite` when unknown."""

    def count_evidence(self, instance_id: str, *, missed_cycles: int, unwanted_cycles: int) -> None:
        """Store the reconcile counters."""

    def list(self, model: str | None = None, *, up_to_date: bool = True) -> list[Instance]:
        """Instances not yet forgotten (ended ones stay for a day), by requested_at_s.

        Without `up_to_date`, what is returned may be some milliseconds old, and an instance may be missing for half a minute after
        its put: for readers that ask often, and about instances that serve.
        """

    def publish_view(self, model: str, view: FleetView, *, at_s: float) -> None:
        """Keep a summary of the model's fleet as of `at_s`, for the many who would read all of it."""

    def published_view(self, model: str) -> PublishedView | None:
        """Return the latest summary, perhaps some milliseconds late; None when there never was one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceivedRequest:
    """A message as received: delete it by `receipt` once it is answered."""

    receipt: str
    request: InferenceRequest
    receive_count: int
    """How often it was received, this time included."""


class WorkQueue(Protocol):
    """A model's work queue."""

    def send(self, request: InferenceRequest) -> None:
        """Enqueue. Raises `PayloadTooLarge` when it does not fit inline."""

    def receive(self, *, max_messages: int, wait_s: float) -> list[ReceivedRequest]:
        """Up to 10 messages; unreadable ones go to the dead-letter queue with the reason."""

    def delete(self, receipts: Sequence[str]) -> None:
        """Acknowledge, in batches of 10."""

    def release(self, receipts: Sequence[str]) -> None:
        """Give messages back at once, unprocessed."""

    def extend(self, receipts: Sequence[str], *, for_s: float) -> None:
        """Keep messages hidden for `for_s` from now, in batches of 10; one that is visible again or deleted stays so."""

    def visibility_timeout_s(self) -> float:
        """How long a message stays hidden from its receipt, as last read."""

    def reject(self, received: ReceivedRequest, *, reason: str) -> None:
        """Move a message to the dead-letter queue with the reason, and acknowledge it."""

    def depth(self) -> int:
        """Approximate number of visible messages."""

    @property
    def calls(self) -> int:
        """Calls that were billed so far, empty receives included."""


class WorkQueueAdmin(Protocol):
    """Creates the work queues of newly registered models."""

    def create(self, model: str) -> str:
        """Create the model's work queue, redriving to the stack's dead-letter queue, unless it exists; return its URL."""


class MetricsSink(Protocol):
    """Where fronts report what they saw."""

    def send(self, batch: MetricsBatch) -> None: ...


class Fleet(Protocol):
    """The cloud's instances. The only port that spends money by the hour."""

    def launch(self, command: LaunchInstances) -> list[ObservedInstance]:
        """Buy; may return fewer than asked. Idempotent by `action_id`. Raises `CapacityUnavailable`."""

    def terminate(self, instance_ids: Sequence[str]) -> None:
        """Give back; unknown ids are fine."""

    def describe(self) -> list[ObservedInstance]:
        """Every instance tagged as this stack's, ended ones included while the cloud still lists them."""

    def zones(self) -> Sequence[str]:
        """Zones that this stack may launch in, sorted."""

    def prices_usd_per_hour(self, instance_types: Sequence[str]) -> Mapping[tuple[str, CapacityType, str], float]:
        """Return current spot prices by (type, SPOT, zone); empty where the cloud has no price."""


class SpilloverInvoker(Protocol):
    """The spillover function."""

    def invoke(self, request: InferenceRequest) -> Answer:
        """Compute now, synchronously. Raises `Throttled` at the concurrency limit, `DependencyUnavailable` on failure."""

    def warm(self, *, model: str, environments: int) -> None:
        """Ask for `environments` concurrent environments; returns at once."""


class EventPublisher(Protocol):
    """The event bus."""

    def publish(self, event: Message) -> None:
        """Publish with detail-type = the class name."""


class ParameterSource(Protocol):
    """Operator parameters with the last good value kept."""

    def get(self, model: str | None = None) -> Tunables:
        """Return the current parameters; `model` applies that model's overrides."""


class ParameterWriter(Protocol):
    """Where operators' tools write parameters."""

    def put(self, name: str, text: str, *, model: str | None = None) -> None:
        """Set a parameter by its operator's name (`rt-max-s`); `model` sets that model's override of it."""


class ClientStore(Protocol):
    """Clients of the API, their keys' digests and what they used."""

    def find(self, key_sha256: str) -> ClientRecord | None:
        """Return whose key has this digest; None when nobody's."""

    def count(self, client: str, *, window_at_s: float) -> int:
        """Count one more request in a window, atomically, and return how many that makes."""

    def put(self, record: ClientRecord) -> bool:
        """Add a client; False when the name is taken."""

    def list(self) -> list[ClientRecord]:
        """Return every client, by name."""

    def remove(self, client: str) -> bool:
        """Withdraw a client's key; False when there is no such client."""


class BlobStore(Protocol):
    """Model artefacts, forecaster weights and large payloads."""

    def get(self, key: str) -> bytes:
        """Read an object. Raises `InvalidRequest` when there is none."""

    def put(self, key: str, data: bytes) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedForecaster:
    """Weights of a trained forecaster and how they came about."""

    weights: bytes
    """safetensors"""
    epochs: int
    samples: int
    parameters: int
    validation_loss: float
    """Loss that chose the epoch, in the forecaster's own scale."""


def _go_on() -> bool:
    return True


def _keep_nothing(checkpoint: bytes) -> None:
    del checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """What a training begins with, and how it may be interrupted and gone on with."""

    start: bytes | None = None
    """Weights to refine; None begins with random ones."""
    checkpoint: bytes | None = None
    """Last state saved by an earlier invocation of the same run."""
    save: Callable[[bytes], None] = _keep_nothing
    """Called with the state after each epoch."""
    keep_going: Callable[[], bool] = _go_on
    """Asked before each epoch; False ends the invocation, not the run."""


class LearnedForecaster(Protocol):
    """A forecaster with weights, as a challenger to the simple ones of `core.forecasting`.

    `history` is the highest rate of each past step, None where unknown; an origin `o` has seen `history[:o]`.
    """

    @property
    def name(self) -> str: ...

    def train(self, history: History, *, horizon_steps: int, seed: int, training: TrainingRun | None = None) -> TrainedForecaster | None:
        """Fit, deterministically by seed; None when told to stop before the end.

        Raises `InvalidRequest` with nothing to learn from, `InferenceFailed` on divergence.
        """

    def forecast(self, weights: bytes, history: History, *, origins: Sequence[int], horizon_steps: int) -> dict[int, Rates]:
        """Rates by origin; origins it cannot forecast from are absent. Raises `InferenceFailed`."""


class TraceSink(Protocol):
    """Where a process without a tracing daemon sends its part of a trace."""

    def send(self, segments: Sequence[str]) -> None:
        """Send finished segments, as JSON documents."""


class InterruptionNotice(Protocol):
    """What the instance is told of its own end."""

    def pending(self) -> float | None:
        """Instant at which the instance will be interrupted, if a notice is out."""


class ModelRunner(Protocol):
    """A loaded model."""

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        """One entry per request, in order; a request's own failure is its entry, not an exception."""


class StackRunner(ModelRunner, Protocol):
    """A loaded model that also takes rows already stacked, so that a batch can come from another process."""

    @property
    def record(self) -> ModelRecord:
        """What is loaded; inputs and outputs that were not declared are the artefact's own, where it states them."""

    def compute(self, inputs: Sequence[Stack]) -> Sequence[Stack]:
        """One forward pass. Raises `InvalidRequest` for inputs the model cannot take, `InferenceFailed` when it raised."""

    def use_threads(self, threads: int) -> None:
        """CPU threads of one forward pass from now on."""
