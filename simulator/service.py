"""What runs batches how fast: the profile file, and its latencies as tables by batch size.

A profile file is JSON:

    {"model": "inception-v3", "source": "where measured", "max_batch_size": 8, "lambda_memory_mb": 3008,
     "profiles": {"c5.2xlarge": [{"batch_size": 1, "p50_s": 0.078, "p98_s": 0.078, "p99_s": 0.078, "samples": 1}],
                  "lambda": [{"batch_size": 1, "p50_s": 0.25, "p98_s": 0.3, "p99_s": 0.31, "samples": 1}]}}

`profiles` has one entry per instance type, in the form that `markserve profile` measures, and `lambda` for the spillover
function at `lambda_memory_mb`; without that entry nothing can spill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from markserve.core.batch_limits import BatchLimits
from markserve.core.profiles import LatencyEstimate
from markserve.core.types import BatchProfile, ProfilePoint, require
from markserve.errors import InvalidRequest
from markserve.messages import ModelRecord, ProfilePointRecord
from markserve.plan_inputs import LAMBDA
from markserve.profiling import batch_profile
from simulator.assumptions import Z98

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class ProfileFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model's measured latencies."""

    model: str
    source: str
    max_batch_size: int
    profiles: dict[str, tuple[ProfilePointRecord, ...]]
    lambda_memory_mb: int = 1769
    prices_usd_per_hour: dict[str, float] = {}
    """On demand, by type; used for types that the catalog does not know."""

    @property
    def instance_types(self) -> list[str]:
        """Types with a profile, sorted."""
        return sorted(name for name in self.profiles if name != LAMBDA)

    @property
    def can_spill(self) -> bool:
        """Whether the spillover function was profiled."""
        return LAMBDA in self.profiles

    def profile(self, name: str) -> BatchProfile:
        """Latencies on one instance type, or of the spillover function; SageMaker's `ml.X` is the hardware of X."""
        return batch_profile(name, self.profiles[name.removeprefix("ml.")])

    def record(self) -> ModelRecord:
        """Return the model as the control plane would hold it."""
        return ModelRecord(
            model=self.model,
            version="1",
            inputs=(),
            outputs=(),
            artefact_key="",
            artefact_sha256="",
            max_batch_size=self.max_batch_size,
            profiles=dict(self.profiles),
        )


def read_profile(path: Path) -> ProfileFile:
    """Read a profile file.

    Raises
    ------
    InvalidRequest
        Naming the file and what is wrong with it.
    """
    try:
        read = msgspec.json.decode(path.read_bytes(), type=ProfileFile)
        for name in read.profiles:
            read.profile(name)
        for name, price in read.prices_usd_per_hour.items():
            require(0 < price < math.inf, f"price of {name} must be positive and finite, got {price}")
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidRequest(f"{path}: {error}") from error
    if not read.instance_types:
        raise InvalidRequest(f"{path}: no instance type has a profile")
    if read.max_batch_size < 1:
        raise InvalidRequest(f"{path}: max_batch_size must be at least 1, got {read.max_batch_size}")
    return read


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One instance type as the queue sees it."""

    instance_type: str
    limits: BatchLimits
    estimate: LatencyEstimate
    p98_s: Floats
    """T(b) by b, from 0 (unused) to the batch limit."""
    p50_s: Floats
    sigma: Floats
    """Log-standard deviation of the execution time by b."""

    def execution_s(self, batch_size: int, z: float) -> float:
        """Draw the execution time of a batch whose luck is the standard normal deviate `z`."""
        return float(self.p50_s[batch_size]) * math.exp(float(self.sigma[batch_size]) * z)

    def mean_s(self, batch_size: int) -> float:
        """Mean execution time of a batch."""
        return float(self.p50_s[batch_size]) * math.exp(0.5 * float(self.sigma[batch_size]) ** 2)


def make_kind(profile: BatchProfile, limits: BatchLimits) -> Kind:
    """Tabulate T(b), and the lognormal law that has the profile's median and p98.

    Two measured quantiles determine a lognormal, the usual shape of a latency: bounded below, skewed above. Where the
    profile's median and p98 agree, execution takes exactly that.
    """
    sizes = range(1, limits.max_batch_size + 1)
    tail, median = LatencyEstimate(profile), LatencyEstimate(_medians(profile))
    p98_s = np.array([0.0, *(tail.batch_latency_s(b) for b in sizes)])
    p50_s = np.minimum(p98_s, np.array([0.0, *(median.batch_latency_s(b) for b in sizes)]))
    sigma = np.zeros_like(p98_s)
    sigma[1:] = np.log(p98_s[1:] / p50_s[1:]) / Z98
    return Kind(instance_type=profile.instance_type, limits=limits, estimate=tail, p98_s=p98_s, p50_s=p50_s, sigma=sigma)


def _medians(profile: BatchProfile) -> BatchProfile:
    points = tuple(
        ProfilePoint(batch_size=p.batch_size, p50_s=p.p50_s, p98_s=p.p50_s, p99_s=p.p50_s, samples=p.samples) for p in profile.points
    )
    return BatchProfile(instance_type=profile.instance_type, points=points)
