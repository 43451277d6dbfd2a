"""What can be bought and at what price: instance types turned into offerings.

Prices and interruption frequencies come in as values; where they were read is not this module's business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markserve.core.types import CapacityType, Offering, require

CATEGORIES = ("general", "compute", "memory", "burstable", "gpu", "inferentia")
CATEGORY_BY_SERIES: Mapping[str, str] = {
    "a": "general",
    "m": "general",
    "c": "compute",
    "r": "memory",
    "u": "memory",
    "x": "memory",
    "z": "memory",
    "t": "burstable",
}
"""By the letters that an instance type's name starts with."""
HOURS_PER_MONTH = 730.0
INTERRUPTED_PER_MONTH: Mapping[str, float] = {"<5%": 0.025, "5-10%": 0.075, "10-15%": 0.125, "15-20%": 0.175, ">20%": 0.25}
"""Share of spot instances interrupted within a month, by the band that AWS publishes: the middle of the band, and
25 % for the open one, which AWS does not bound."""
UNKNOWN_BAND = ">20%"
"""Assumed where AWS publishes no band: the worst, so that an unknown pool is never preferred for its steadiness."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """One instance type: what it is, what it costs, and how its spot capacity behaves."""

    instance_type: str
    category: str
    """general, compute, memory, burstable, gpu or inferentia."""
    vcpu: int
    memory_gib: float
    arch: str
    price_usd_per_hour: float
    """On demand."""
    spot_saving: float
    """Typical discount over on demand, 0 to 1; used where no live spot price is known."""
    interruption_band: str
    gpu: str | None = None
    gpu_count: int = 0

    def __post_init__(self) -> None:
        require(self.price_usd_per_hour > 0, f"{self.instance_type}: price_usd_per_hour must be positive, got {self.price_usd_per_hour}")
        require(0 <= self.spot_saving < 1, f"{self.instance_type}: spot_saving must lie in [0, 1), got {self.spot_saving}")
        require(
            self.interruption_band in INTERRUPTED_PER_MONTH,
            f"{self.instance_type}: interruption_band {self.interruption_band!r} is none of {', '.join(INTERRUPTED_PER_MONTH)}",
        )

    @property
    def typical_spot_usd_per_hour(self) -> float:
        """Price of a spot hour at the typical saving."""
        return self.price_usd_per_hour * (1 - self.spot_saving)


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceSpec:
    """What an instance type is, whatever it costs."""

    instance_type: str
    vcpu: int
    memory_gib: float
    arch: str
    gpu: str | None = None
    """NVIDIA's; no other is counted as a GPU."""
    gpu_count: int = 0
    has_inferentia: bool = False


def category_of(spec: InstanceSpec) -> str | None:
    """Sort an instance type into the catalog's categories; None where it fits none of them.

    An accelerator decides, else the letters that the name starts with. Storage-optimised, HPC, FPGA, media, Trainium and
    Mac types have no category: they cost more for what no model server here uses.

    >>> category_of(InstanceSpec(instance_type="c7g.large", vcpu=2, memory_gib=4, arch="arm64"))
    'compute'
    >>> category_of(InstanceSpec(instance_type="trn1.2xlarge", vcpu=8, memory_gib=32, arch="x86_64")) is None
    True
    """
    if spec.gpu is not None:
        return "gpu"
    if spec.has_inferentia:
        return "inferentia"
    letters = spec.instance_type[: next((i for i, c in enumerate(spec.instance_type) if not c.isalpha()), None)]
    return CATEGORY_BY_SERIES.get(letters)


def interruption_rate_per_hour(band: str) -> float:
    """Hazard rate that leads to the band's monthly share of interrupted instances.

    >>> round(interruption_rate_per_hour(">20%"), 6)
    0.000394
    """
    return -math.log1p(-INTERRUPTED_PER_MONTH[band]) / HOURS_PER_MONTH


def offerings(
    entries: Sequence[CatalogEntry],
    *,
    instance_types: Sequence[str],
    zones: Sequence[str],
    spot_prices: Mapping[tuple[str, CapacityType, str], float],
    launch_overhead_s: float,
) -> tuple[tuple[Offering, ...], tuple[str, ...]]:
    """List every pool that may be bought: type x capacity type x zone, at the live price where one is known.

    Parameters
    ----------
    spot_prices
        Live spot prices by (type, SPOT, zone). A type with live prices in some zones has no spot capacity in the
        others, so it is offered on spot only where a price is known; without any live price the typical saving counts.

    Returns
    -------
    (offerings, refusals)
        Offerings sorted by key, and one sentence per instance type that the catalog does not know.

    Examples
    --------
    >>> entry = CatalogEntry(instance_type="c5.large", category="compute", vcpu=2, memory_gib=4, arch="x86_64",
    ...                      price_usd_per_hour=0.085, spot_saving=0.6, interruption_band="<5%")
    >>> pools, refused = offerings([entry], instance_types=["c5.large", "c9.huge"], zones=["us-east-1a"], spot_prices={},
    ...                            launch_overhead_s=180.0)
    >>> [(pool.key, round(pool.price_usd_per_hour, 4)) for pool in pools]
    [('c5.large/on_demand/us-east-1a', 0.085), ('c5.large/spot/us-east-1a', 0.034)]
    >>> refused
    ('c9.huge: not in the catalog, so its price is unknown',)
    """
    known = {entry.instance_type: entry for entry in entries}
    wanted = sorted(set(instance_types))
    refusals = tuple(f"{name}: not in the catalog, so its price is unknown" for name in wanted if name not in known)
    pools: list[Offering] = []
    for entry in (known[name] for name in wanted if name in known):
        live = {zone: price for (name, _, zone), price in spot_prices.items() if name == entry.instance_type}
        spot = {zone: live[zone] for zone in zones if zone in live} if live else dict.fromkeys(zones, entry.typical_spot_usd_per_hour)
        for zone in sorted(set(zones)):
            pools.append(
                Offering(
                    instance_type=entry.instance_type,
                    capacity_type=CapacityType.ON_DEMAND,
                    zone=zone,
                    price_usd_per_hour=entry.price_usd_per_hour,
                    launch_overhead_s=launch_overhead_s,
                )
            )
            if zone in spot:
                pools.append(
                    Offering(
                        instance_type=entry.instance_type,
                        capacity_type=CapacityType.SPOT,
                        zone=zone,
                        price_usd_per_hour=spot[zone],
                        launch_overhead_s=launch_overhead_s,
                        interruption_rate_per_hour=interruption_rate_per_hour(entry.interruption_band),
                    )
                )
    return tuple(sorted(pools, key=lambda pool: pool.key)), refusals
