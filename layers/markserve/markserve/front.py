"""The front's use case: accept a request, have it computed by whoever is in time, return the one answer.

Knows neither HTTP nor any protocol; time, sleep and ids come from outside.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from markserve.attempt import GRACE_S, KEPT_TTL_S, POLL_MIN_S, RETRY_AFTER_S, Attempt
from markserve.core.lot import lot_of
from markserve.core.slo_class import SloClass, class_objective
from markserve.core.spillover import ADMIT_ALL, Admission, AdmissionAction, admit, poll_delays_s
from markserve.core.traffic import choose_version
from markserve.core.types import Slo, Tier
from markserve.errors import IdempotencyMismatch, InvalidRequest, Overloaded, Transient, UnknownModel
from markserve.front_view import FrontView
from markserve.messages import Answer, InferenceRequest, ModelRecord, StoredResult, Tensor
from markserve.payloads import fetch_outputs, offload_inputs
from markserve.ports import BlobStore, InstanceRegistry, MetricsSink, ModelStore, ParameterSource, ResultStore, SpilloverInvoker, WorkQueue
from markserve.reporting import MetricsBuffer

MARGIN_SHARE = 0.05
MARGIN_MIN_S = 0.01
"""Slack for what is not measured (clocks, scheduling): a share of the objective, at least a scheduler's time slice."""
KEY_MAX_CHARACTERS = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontPorts:
    """What the front needs of the outside."""

    models: ModelStore
    results: ResultStore
    instances: InstanceRegistry
    work_queue: Callable[[str], WorkQueue]
    """By queue URL."""
    spillover: SpilloverInvoker
    parameters: ParameterSource
    metrics: MetricsSink
    blobs: BlobStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Which version answers a request, before anybody looks at its body."""

    record: ModelRecord
    request_id: str
    reason: str = ""
    """Why this version, where there was a choice."""
    stored: StoredResult | None = None
    """What an earlier attempt under the same idempotency key left behind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One checked request for inference."""

    chosen: Chosen
    inputs: tuple[Tensor, ...]
    output_names: tuple[str, ...]
    arrival_at_s: float
    client: str
    body_sha256: str
    """Of everything that decides the answer."""
    idempotency_key: str | None = None
    asynchronous: bool = False
    slo_class: SloClass = SloClass.INTERACTIVE
    trace_id: str | None = None

    @property
    def record(self) -> ModelRecord:
        """The version that answers."""
        return self.chosen.record

    @property
    def is_deferred(self) -> bool:
        """Whether the answer is fetched later, by wish or by class."""
        return self.asynchronous or self.slo_class is SloClass.BATCH


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """The answer of a request, outputs inline, and how it came about."""

    answer: Answer
    reason: str
    timings_s: tuple[tuple[str, float], ...] = ()
    """Where the time went, in order; empty for an answer given before."""
    model_version: str = ""
    """Version that the answer is of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """Accepted, to be asked for later."""

    request_id: str


class Front:
    """One front environment: serves one request at a time and keeps what it learns between them."""

    def __init__(
        self,
        ports: FrontPorts,
        *,
        window_s: float,
        heartbeat_timeout_s: float,
        reads_summaries: bool = False,
        now_s: Callable[[], float],
        sleep: Callable[[float], None],
        new_id: Callable[[], str],
    ) -> None:
        self._ports = ports
        self._now_s = now_s
        self._sleep = sleep
        self._new_id = new_id
        self.view = FrontView(
            models=ports.models,
            instances=ports.instances,
            heartbeat_timeout_s=heartbeat_timeout_s,
            reads_summaries=reads_summaries,
            now_s=now_s,
        )
        self.metrics = MetricsBuffer(ports.metrics, window_s=window_s, new_id=new_id)

    def choose(self, model: str, version: str | None, *, client: str, idempotency_key: str | None) -> Chosen:
        """Choose the version that answers a request, the same for every attempt under one idempotency key.

        Raises
        ------
        UnknownModel
            If there is no such model, or no such version of it.
        InvalidRequest
            If the idempotency key is malformed.
        """
        traffic = self.view.traffic(model)
        request_id = self._request_id(model, client, idempotency_key)
        stored = self._ports.results.get(request_id) if idempotency_key is not None else None
        if stored is not None and stored.model_version and version in (None, stored.model_version):
            try:  # traffic may have moved on since
                return Chosen(record=self.view.record(model, stored.model_version), request_id=request_id, stored=stored)
            except UnknownModel:
                pass  # removed since; whoever answers now can still repeat what was answered then
        if version is not None:
            return Chosen(record=self.view.record(model, version), request_id=request_id, stored=stored)
        choice = choose_version(
            model=model,
            live=traffic.live,
            canary=traffic.canary,
            weight=traffic.canary_weight,
            key=request_id,
            is_canary_ready=traffic.canary is None or self.view.is_loaded(model, traffic.canary),
        )
        return Chosen(record=self.view.record(model, choice.version), request_id=request_id, reason=choice.reason, stored=stored)

    def infer(self, call: Call) -> Served | Pending:
        """Have a request answered, or accept it for later.

        Raises
        ------
        InvalidRequest
            If the idempotency key was used with another body.
        Overloaded
            If nothing was accepted.
        """
        request_id = call.chosen.request_id
        if call.chosen.stored is not None and (known := self._known(call, call.chosen.stored)) is not None:
            return known
        admission = self._admit(call)
        request = InferenceRequest(
            request_id=request_id,
            model=call.record.model,
            model_version=call.record.version,
            arrival_at_s=call.arrival_at_s,
            inputs=call.inputs,
            output_names=call.output_names,
            deadline_at_s=admission.deadline_at_s,
            spill_at_s=admission.spill_at_s,
            reply_overhead_s=self.view.measured(call.record).reply_s.value,
            trace_id=call.trace_id,
            body_sha256=call.body_sha256 if call.is_deferred or call.idempotency_key is not None else "",
        )
        if request.body_sha256 and not self._put_pending(call, request):
            # Another attempt under this key was accepted meanwhile, or one was and its deadline passed unanswered.
            stored = self._ports.results.get(request_id)
            known = None if stored is None else self._known(call, stored)
            if known is not None:
                return known
        request = offload_inputs(request, self._ports.blobs)
        if call.is_deferred:
            self._enqueue_async(call, request)
            return Pending(request_id=request_id)
        return self._serve(call, request, admission)

    def result(self, request_id: str, *, client: str) -> tuple[StoredResult, Answer | None]:
        """Look up an accepted request for the client that made it.

        Raises
        ------
        InvalidRequest
            With status 404 if there is no such request of this client; whose it is, is not told.
        """
        stored = self._ports.results.get(request_id)
        if stored is None or not stored.owner or stored.owner != client:
            raise UnknownModel(f"no request {request_id[:80]!r}", field="id")
        return stored, None if stored.answer is None else fetch_outputs(stored.answer, self._ports.blobs)

    def warm_up(self) -> None:
        """Read what requests will need, and report what is held; there is time for both."""
        for record in self._ports.models.list():
            self.view.record(record.model)
            self.view.fleet(record.model)
            self._ports.parameters.get(record.model)
        self.metrics.report(now_s=self._now_s())

    def has_models(self) -> bool:
        """Whether there is anything to serve."""
        return bool(self._ports.models.list())

    def versions(self, model: str) -> list[str]:
        """Versions of a model, oldest first."""
        return self._ports.models.versions(model)

    def is_model_ready(self, record: ModelRecord) -> bool:
        """Whether a request for the model would be computed by anyone."""
        return self.view.fleet(record.model).serving_instances > 0 or self._spill_available(record.model)

    def _serve(self, call: Call, request: InferenceRequest, admission: Admission) -> Served:
        attempt = Attempt(
            request=request,
            deadline_at_s=admission.deadline_at_s or self._now_s(),
            may_retry=call.idempotency_key is not None,
            queue=self._ports.work_queue(call.record.queue_url),
            results=self._ports.results,
            spillover=self._ports.spillover,
            metrics=self.metrics,
            measured=self.view.measured(call.record),
            now_s=self._now_s,
            sleep=self._sleep,
        )
        try:
            answer, reason = attempt.run(admission)
        except Overloaded:
            self._count(call, tier=None, succeeded=False)
            raise
        timings_s = attempt.timings_s(answer, now_s=self._now_s())
        self._count(call, tier=answer.tier, succeeded=answer.error is None)
        reason = f"{reason}; {call.chosen.reason}" if call.chosen.reason else reason
        version = answer.model_version or call.record.version
        return Served(answer=fetch_outputs(answer, self._ports.blobs), reason=reason, timings_s=timings_s, model_version=version)

    def _request_id(self, model: str, client: str, key: str | None) -> str:
        if key is None:
            return self._new_id()
        if not 0 < len(key) <= KEY_MAX_CHARACTERS:
            raise InvalidRequest(f"must have 1 to {KEY_MAX_CHARACTERS} characters", field="Idempotency-Key")
        # The client is part of the id: nobody can reach another's answer by guessing a key.
        return str(uuid.uuid5(uuid.NAMESPACE_URL, msgspec.json.encode([client, model, key]).decode()))

    def _known(self, call: Call, stored: StoredResult) -> Served | Pending | None:
        """Return what an earlier attempt under the same key led to; None when this one has to compute."""
        if stored.body_sha256 != call.body_sha256:
            raise IdempotencyMismatch("was used with a different request", field="Idempotency-Key")
        if stored.answer is None and stored.deadline_at_s is None:
            # It may have been recorded and never sent; should it run twice, the first answer counts.
            return Pending(request_id=stored.request_id) if not call.is_deferred else None
        answer = stored.answer or self._wait_for_other(stored.request_id, until_s=(stored.deadline_at_s or 0.0) + GRACE_S)
        if answer is None:
            return None
        return Served(
            answer=fetch_outputs(answer, self._ports.blobs),
            reason="answered before under the same idempotency key",
            model_version=answer.model_version or stored.model_version or call.record.version,
        )

    def _wait_for_other(self, request_id: str, *, until_s: float) -> Answer | None:
        for delay_s in poll_delays_s(first_s=POLL_MIN_S, total_s=until_s - self._now_s()):
            self._sleep(delay_s)
            stored = self._ports.results.get(request_id)
            if stored is not None and stored.answer is not None:
                return stored.answer
        return None

    def _admit(self, call: Call) -> Admission:
        record, now_s = call.record, self._now_s()
        slo = self._objective(call)
        measured = self.view.measured(record)
        spill_available = self._spill_available(record.model)
        if spill_available and not call.is_deferred and not self.view.is_loaded(record.model, record.version):
            # A worker would first have to load it, and other requests would wait for that, too.
            admission = Admission(
                action=AdmissionAction.SPILL,
                deadline_at_s=call.arrival_at_s + slo.latency_s,
                spill_at_s=now_s,
                predicted_wait_s=0.0,
                reason=f"spilled: not every worker has loaded version {record.version}",
            )
        else:
            tunables = self._ports.parameters.get(record.model)
            keeps_reserve = self.view.keeps_reserve(record, tunables)
            admission = admit(
                fleet=self.view.fleet(record.model),
                slo=slo,
                arrival_at_s=call.arrival_at_s,
                now_s=now_s,
                spill_latency_s=measured.spill_s.value,
                reply_overhead_s=measured.reply_s.value,
                margin_s=max(MARGIN_MIN_S, MARGIN_SHARE * slo.latency_s),
                spill_available=spill_available,
                keeps_reserve=keeps_reserve,
                asynchronous=call.is_deferred,
                admitted=ADMIT_ALL if keeps_reserve or not spill_available else self.view.admitted(record, tunables.slo),
                lot=lot_of(call.chosen.request_id),
            )
        self.metrics.arrival(record.model, at_s=call.arrival_at_s)
        if admission.action is AdmissionAction.REJECT:
            self._count(call, tier=None, succeeded=False)
            self.metrics.report_if_due(now_s=now_s, slack_s=float("inf"))
            raise Overloaded(admission.reason, retry_after_s=admission.retry_after_s or RETRY_AFTER_S, status=admission.status)
        return admission

    def _put_pending(self, call: Call, request: InferenceRequest) -> bool:
        return self._ports.results.put_pending(
            request.request_id,
            body_sha256=call.body_sha256,
            accepted_at_s=call.arrival_at_s,
            deadline_at_s=request.deadline_at_s,
            expires_at_s=self._now_s() + KEPT_TTL_S,
            owner=call.client,
            model=request.model,
            model_version=request.model_version,
        )

    def _enqueue_async(self, call: Call, request: InferenceRequest) -> None:
        try:
            self._ports.work_queue(call.record.queue_url).send(request)
        except Transient as error:
            raise Overloaded(f"not accepted: {error}", retry_after_s=RETRY_AFTER_S, status=503) from error
        self.metrics.report_if_due(now_s=self._now_s(), slack_s=float("inf"))

    def _objective(self, call: Call) -> Slo:
        """Objective of the request's class; a deferred request has none, and any does for admitting it."""
        tunables = self._ports.parameters.get(call.record.model)
        return class_objective(call.slo_class, tunables) or tunables.slo

    def _spill_available(self, model: str) -> bool:
        return self._ports.parameters.get(model).spillover_max_concurrency > 0

    def _count(self, call: Call, *, tier: Tier | None, succeeded: bool) -> None:
        self.metrics.outcome(
            call.record.model,
            arrival_at_s=call.arrival_at_s,
            tier=tier,
            latency_s=self._now_s() - call.arrival_at_s,
            succeeded=succeeded,
            objective_s=self._objective(call).latency_s,
            slo_class=call.slo_class,
            model_version=call.record.version,
        )
