"""A cell is one run of an experiment: what is simulated, under which policy, and what is looked at afterwards."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from simulator.experiments.variations import AS_IS, Variation
from simulator.request import Request
from simulator.summary import Summary

EVENT_FOR_S = 600.0
"""What happens in an event is judged over this long from its start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run of an experiment.

    Attributes
    ----------
    experiment, group
        The experiment; what is set side by side in one picture of it, such as a workload and a model.
    value
        What varies within the group besides the policy, as text; empty where only the policy does.
    request
        The simulation, as `markserve simulate` would be asked for it, with one policy.
    event_at_s
        Start of the event whose `EVENT_FOR_S` seconds are judged; None where there is none.
    records_latency
        Whether the latency of every request is written and looked at.
    """

    experiment: str
    group: str
    request: Request
    value: str = ""
    variation: Variation = AS_IS
    event_at_s: float | None = None
    records_latency: bool = False

    @property
    def policy(self) -> str:
        """Name of the policy."""
        return self.request.policies

    @property
    def title(self) -> str:
        """What people are shown: group, value and policy."""
        return ", ".join(part for part in (self.group, self.value, self.policy) if part)

    @property
    def file_name(self) -> str:
        """Name of the cell's file, without a suffix; unlike for unlike cells of one experiment."""
        return re.sub(r"[^a-z0-9.+]+", "-", self.title.lower()).strip("-")

    def described(self) -> dict[str, Any]:
        """Everything that the result depends on but the code and the content of the files, as JSON would have it."""
        parts = {
            "request": asdict(self.request),
            "variation": asdict(self.variation),
            "event_at_s": self.event_at_s,
            "records_latency": self.records_latency,
        }
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(parts, enc_hook=str))
        return plain


class Curve(msgspec.Struct, frozen=True):
    """Points of a line."""

    x: list[float]
    y: list[float]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a cell gave.

    `summary` is None where the policy cannot be used at all; `refused` then says why. `latency` is the share of all requests
    answered within each latency; `latency_over_time` has curves by quantile, None where nothing was answered.
    """

    experiment: str
    group: str
    value: str
    policy: str
    described: dict[str, Any]
    summary: Summary | None = None
    refused: str = ""
    event_requests: int | None = None
    event_attainment: float | None = None
    """Share of the requests that arrived within the event's time that were answered within RT_max."""
    latency: Curve | None = None
    latency_over_time: dict[str, Curve] = {}
