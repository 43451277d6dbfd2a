"""Everything the simulator takes for granted that neither trace, profile nor price list says, with its source.

What the product's own policy assumes (transport, reply, spill overhead, margins) is imported from where the product
states it, so that both change together.
"""

from __future__ import annotations

from markserve.plan_inputs import (
    MARGIN_SHARE,
    REPLY_OVERHEAD_S,
    SPILL_MARGIN_MIN_S,
    SPILL_MARGIN_SHARE,
    SPILL_OVERHEAD_S,
    TRANSPORT_PRIOR_S,
)

__all__ = ["MARGIN_SHARE", "REPLY_OVERHEAD_S", "SPILL_MARGIN_MIN_S", "SPILL_MARGIN_SHARE", "SPILL_OVERHEAD_S", "TRANSPORT_PRIOR_S"]

# --- time -------------------------------------------------------------------------------------------------------

WINDOW_S = 5.0
"""Counting window; MArk's prototype, and `Settings.window_s`."""
STEP_S = 60.0
"""Control cycle; MArk's prototype, and `Settings.step_s`."""
HORIZON_STEPS = 15
"""Steps ahead that are forecast. Assumption: the product's setting is 60, but a step beyond the launch delay and the
six cycles of scale-in hysteresis changes no decision made now, and the simulator plans 1,440 times a day."""

BUYING_QUANTILE = 0.9
"""Quantile by which the champion forecaster is chosen. The product takes the one that its last plan bought for; 0.9 is what it
takes before there is a plan."""

# --- instances --------------------------------------------------------------------------------------------------

LAUNCH_DELAY_S = 180.0
"""Median from the launch request to the first answer. MArk's prototype charges 180 s of a type's price per launch."""
LAUNCH_DELAY_SIGMA = 0.1
"""Log-standard deviation of that delay: 98 % lie within +23 %. Assumption; policies are told the median, or what they
have measured."""
MAX_INSTANCES, MAX_HOURLY_COST_USD = 1000, 10_000.0
"""Ceilings out of the way: what a policy would buy is what is asked."""

# --- the spillover function -------------------------------------------------------------------------------------

COLD_START_S = 3.0
"""Of an environment: image start, framework import and model load. Assumption, at the low end of what container images
with a deep-learning framework need. Billed, as AWS bills initialisation since 2025-08."""
ENVIRONMENT_IDLE_S = 600.0
"""An idle environment is reclaimed after this. Assumption: AWS does not state it; 5 to 15 minutes are commonly seen."""
LAMBDA_CONCURRENCY = 1000
"""Invocations at once: the default quota of an account and region (AWS documentation). Beyond it they are refused."""
PING_S = 0.001
"""Billed duration of a warm-up ping: the least there is."""

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
