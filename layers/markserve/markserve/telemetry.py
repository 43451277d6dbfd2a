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
"""Requests for inference, however they ended."""
REQUESTS_REJECTED = "RequestsRejected"
"""Of those, answered with a 4xx."""
REQUESTS_FAILED = "RequestsFailed"
"""Of those, answered with a 5xx."""
RESPONSE_TIME = "ResponseTime"
"""From the API's clock to the answer."""
SPILLED = "RequestsSpilled"
"""Answered by the spillover function."""

# Control path.
ARRIVALS = "Arrivals"
"""Requests that arrived, by model, as ingestion counts them."""
SLO_ATTAINMENT = "SloAttainment"
"""Share of requests within the objective, over the sliding window."""
BURN_RATE = "SloBurnRate"
"""How many times faster than allowed the error budget is spent."""
WORST_BURN_RATE = "SloBurnRateWorst"
"""Of all models, without a model's dimension: CloudWatch alarms cannot search for models."""
BATCHES_APPLIED = "MetricsBatchesApplied"
"""Reports of fronts that were added to their windows."""
BATCHES_REPEATED = "MetricsBatchesRepeated"
"""Reports that came again, and were not counted again."""
MESSAGES_UNREADABLE = "MessagesUnreadable"
"""Reports of fronts, and events of functions, that could not be read."""
FORECASTS_PRODUCED = "ForecastsProduced"
"""Forecasts written, one per model and cycle."""
FORECAST_HISTORY_AGE = "ForecastHistoryAge"
"""Age of the newest count that a forecast knew of."""
FORECAST_CALIBRATION_ERROR = "ForecastCalibrationError"
"""Largest distance of a quantile's coverage from its level, beyond chance."""
FORECASTERS_TRAINED = "ForecastersTrained"
"""Trainings that came to an end."""
PLANS_STORED = "PlansStored"
"""Plans that were made and stored."""
PLANS_STALE = "PlansStale"
"""Plans dropped, because another one came first."""
DEMAND = "PlannedDemand"
"""Rate that the plan buys for, at the step its launches reach."""
CAPACITY = "PlannedCapacity"
"""Rate that the plan's instances carry then."""
HOURLY_COST = "FleetHourlyCost"
"""Price per hour of what the plan keeps and launches, US dollars."""
HOURLY_COST_SHARE = "FleetHourlyCostShare"
"""Of the operator's ceiling `max-hourly-cost-usd`, in per cent, whatever it is set to."""
INSTANCES_SHARE = "FleetInstancesShare"
"""Of the operator's ceiling `max-instances`, in per cent."""
INSTANCES_SERVING = "InstancesServing"
"""Instances that serve, all models together."""
INSTANCES_STUCK = "InstancesStuck"
"""Instances that a plan ended, because they did not come up or fell silent."""
INSTANCES_ORPHANED = "InstancesOrphaned"
"""Instances with this stack's tag that nobody registered."""
MODELS_QUARANTINED = "ModelsQuarantined"
"""Not launched for, since their instances never come to serve."""
CANARIES_ROLLED_BACK = "CanariesRolledBack"
"""Canaries that lost their traffic, since they did worse than the live version."""
INSTANCES_FAILED = "InstancesFailed"
"""Given up for a reason of their own: never ready, crashed, silent."""
INSTANCES_LAUNCHED = "InstancesLaunched"
"""Instances bought."""
INSTANCES_INTERRUPTED = "InstancesInterrupted"
"""Interruption notices and rebalance recommendations."""
INSTANCES_TERMINATED = "InstancesTerminated"
"""Instances given back."""
CAPACITY_UNAVAILABLE = "CapacityUnavailable"
"""Launches that found their pool dry."""
PARAMETERS_REFUSED = "ParametersRefused"
"""Bad values of operator parameters, once an hour each."""


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
