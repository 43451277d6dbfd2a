"""The one logger, tracer and metrics of a process, and the names of the metrics.

Metrics are written as log lines in the embedded metric format: no call, no latency. Names are a contract with the
dashboard and the alarms, so they are constants here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aws_lambda_powertools import Logger, Metrics, Tracer

from markserve.settings import is_tracing, service_name

NAMESPACE = "markserve"

# Request path, by model.
REQUESTS = "Requests"
REQUESTS_REJECTED = "RequestsRejected"
REQUESTS_FAILED = "RequestsFailed"
REQUESTS_WITHIN_SLO = "RequestsWithinSlo"
RESPONSE_TIME = "ResponseTime"
QUEUE_DELAY = "QueueDelay"
BATCH_SIZE = "BatchSize"
BATCH_LATENCY = "BatchLatency"
SPILLED = "RequestsSpilled"
SPILLS_FAILED = "SpillsFailed"
MESSAGES_DROPPED = "MessagesDropped"
MESSAGES_REJECTED = "MessagesRejected"
COLD_STARTS = "SpilloverColdStarts"

# Control path.
ARRIVALS = "Arrivals"
SLO_ATTAINMENT = "SloAttainment"
BURN_RATE = "SloBurnRate"
WORST_BURN_RATE = "SloBurnRateWorst"
"""Of all models, without a model's dimension: CloudWatch alarms cannot search for models."""
BATCHES_APPLIED = "MetricsBatchesApplied"
BATCHES_REPEATED = "MetricsBatchesRepeated"
MESSAGES_UNREADABLE = "MessagesUnreadable"
FORECASTS_PRODUCED = "ForecastsProduced"
FORECAST_HISTORY_AGE = "ForecastHistoryAge"
FORECAST_CALIBRATION_ERROR = "ForecastCalibrationError"
FORECASTERS_TRAINED = "ForecastersTrained"
PLANS_STORED = "PlansStored"
PLANS_STALE = "PlansStale"
DEMAND = "PlannedDemand"
CAPACITY = "PlannedCapacity"
HOURLY_COST = "FleetHourlyCost"
HOURLY_COST_SHARE = "FleetHourlyCostShare"
"""Of the operator's ceiling `max-hourly-cost-usd`, in per cent, whatever it is set to."""
INSTANCES_SHARE = "FleetInstancesShare"
"""Of the operator's ceiling `max-instances`, in per cent."""
INSTANCES_SERVING = "InstancesServing"
INSTANCES_STUCK = "InstancesStuck"
INSTANCES_ORPHANED = "InstancesOrphaned"
MODELS_QUARANTINED = "ModelsQuarantined"
"""Not launched for, since their instances never come to serve."""
INSTANCES_FAILED = "InstancesFailed"
"""Given up for a reason of their own: never ready, crashed, silent."""
INSTANCES_LAUNCHED = "InstancesLaunched"
INSTANCES_INTERRUPTED = "InstancesInterrupted"
INSTANCES_TERMINATED = "InstancesTerminated"
CAPACITY_UNAVAILABLE = "CapacityUnavailable"
PARAMETERS_REFUSED = "ParametersRefused"


class _NoTracing:
    """Record nothing: the provider of a process that is not traced, and its segments.

    Powertools' own way of not tracing imports the X-Ray SDK first, which costs every cold start some 0.1 s.
    """

    @contextmanager
    def in_subsegment(self, name: str | None = None, **kwargs: Any) -> Generator[_NoTracing, None, None]:  # noqa: ARG002  # Powertools' signature
        yield self

    @asynccontextmanager
    async def in_subsegment_async(self, name: str | None = None, **kwargs: Any) -> AsyncGenerator[_NoTracing, None]:  # noqa: ARG002
        yield self

    def put_annotation(self, key: str, value: object) -> None:
        """Record no annotation."""

    def put_metadata(self, key: str, value: object, namespace: str = "default") -> None:
        """Record no metadata."""

    def add_exception(self, exception: BaseException, stack: object, remote: bool = False) -> None:
        """Record no exception."""

    def patch(self, modules: object) -> None:
        """Patch no module."""

    def patch_all(self) -> None:
        """Patch no module."""


def _tracer() -> Tracer:
    if is_tracing():
        return Tracer(service=service_name())
    provider: Any = _NoTracing()
    return Tracer(service=service_name(), disabled=True, auto_patch=False, provider=provider)


logger = Logger(service=service_name())
metrics = Metrics(namespace=NAMESPACE, service=service_name())
tracer = _tracer()
