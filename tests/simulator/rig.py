"""Small scenarios for the simulator's tests."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

from markserve.catalog import load_catalog
from markserve.core.batching import BatchLimits
from markserve.core.types import BatchProfile, ProfilePoint, Slo
from markserve.messages import ProfilePointRecord
from simulator.market import spot_market
from simulator.registry import on_demand_offerings
from simulator.service import Kind, ProfileFile, make_kind
from simulator.simulation import Scenario
from simulator.state import Terms
from simulator.traces import open_trace


def points(*measured: tuple[int, float, float]) -> tuple[ProfilePointRecord, ...]:
    """Points from (batch size, p50, p98)."""
    return tuple(ProfilePointRecord(batch_size=b, p50_s=p50, p98_s=p98, p99_s=p98 * 1.05, samples=100) for b, p50, p98 in measured)


def a_profile(**overrides: Any) -> ProfileFile:
    values: dict[str, Any] = {
        "model": "m",
        "source": "made up",
        "max_batch_size": 8,
        "lambda_memory_mb": 1769,
        "profiles": {
            "c5.large": points((1, 0.020, 0.024), (8, 0.070, 0.080)),
            "c5.xlarge": points((1, 0.012, 0.014), (8, 0.036, 0.042)),
            "lambda": points((1, 0.040, 0.050)),
        },
    }
    return ProfileFile(**(values | overrides))


def a_kind(*, service_s: float, sigma: float = 0.0, max_batch_size: int = 1, name: str = "c5.large") -> Kind:
    """A kind of instance that serves one at a time."""
    profile = BatchProfile(
        instance_type=name, points=(ProfilePoint(batch_size=1, p50_s=service_s, p98_s=service_s, p99_s=service_s, samples=1),)
    )
    limits = BatchLimits(
        max_batch_size=max_batch_size, max_queue_delay_s=1.0, service_rate_rps=1 / service_s, batch_latency_s=service_s, reason=""
    )
    kind = make_kind(profile, limits)
    kind.sigma[1:] = sigma
    return kind


def terms(**overrides: Any) -> Terms:
    values: dict[str, Any] = {
        "slo": Slo(latency_s=0.2),
        "transport_s": 0.02,
        "reply_overhead_s": 0.02,
        "spill_latency_s": 0.1,
        "spill_margin_s": 0.01,
        "spill_available": True,
        "worker_margin_s": 0.004,
    }
    return Terms(**(values | overrides))


def write_trace(path: Path, rows: list[tuple[float, float]]) -> Path:
    text = "t_s,count\n" + "".join(f"{t:g},{count:g}\n" for t, count in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def a_spot_scenario(folder: Path, **overrides: Any) -> Scenario:
    """A scenario with spot at the catalog's typical savings in three zones."""
    scenario = a_scenario(folder, **overrides)
    market = spot_market(scenario.profile, load_catalog(), (), scenario.trace, launch_delay_s=scenario.launch_delay_s)
    return replace(scenario, market=market)


def a_scenario(
    folder: Path, *, rows: list[tuple[float, float]] | None = None, profile: ProfileFile | None = None, **overrides: Any
) -> Scenario:
    profile = profile or a_profile()
    trace = write_trace(folder / "trace.csv", rows or [(float(t), 40.0 + 30 * (t // 120 % 2)) for t in range(480)])
    values: dict[str, Any] = {
        "trace": open_trace(trace),
        "profile": profile,
        "offerings": on_demand_offerings(profile, None, launch_delay_s=60.0),
        "slo": Slo(latency_s=0.2),
        "launch_delay_s": 60.0,
    }
    return Scenario(**(values | overrides))
