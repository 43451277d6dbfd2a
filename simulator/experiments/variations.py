"""What the sensitivity experiment changes besides the options of `markserve simulate`: prices, and what policies get wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from markserve.core.types import Offering
from markserve.messages import ProfilePointRecord
from markserve.plan_inputs import LAMBDA
from simulator.service import ProfileFile
from simulator.simulation import Scenario


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    """Factors, all 1 where nothing is changed.

    Attributes
    ----------
    instance_price
        On prices on demand and, where no price history says otherwise, on spot.
    lambda_price
        On Lambda's price per GB-second; the fee per request stays.
    planned_latency
        What policies take an instance's latencies for, over what they are: above 1 they think it slower. Lambda's are known.
    forecast
        On the forecasts of `mark` and `mark-paper`.
    left_out
        Instance families that are not offered.
    """

    instance_price: float = 1.0
    lambda_price: float = 1.0
    planned_latency: float = 1.0
    forecast: float = 1.0
    left_out: tuple[str, ...] = ()


AS_IS = Variation()


def varied(scenario: Scenario, variation: Variation) -> Scenario:
    """Return the scenario with the variation's types, prices and mistaken profile."""
    market, profile, left_out = scenario.market, scenario.profile, variation.left_out
    if left_out:
        offered = {name: points for name, points in profile.profiles.items() if name.split(".")[0] not in left_out}
        profile = msgspec.structs.replace(profile, profiles=offered)
    if variation.lambda_price != 1:
        # A GB-second costs the same at every size, so a function of k times the memory at the same speed costs k times as much.
        profile = msgspec.structs.replace(profile, lambda_memory_mb=round(profile.lambda_memory_mb * variation.lambda_price))
    return replace(
        scenario,
        profile=profile,
        planned_profile=mistaken(profile, variation.planned_latency) if variation.planned_latency != 1 else None,
        offerings=_offered(scenario.offerings, variation),
        market=None if market is None else replace(market, pools=_offered(market.pools, variation)),
    )


def mistaken(profile: ProfileFile, factor: float) -> ProfileFile:
    """Return the profile with all latencies on instances times a factor."""

    def scaled(point: ProfilePointRecord) -> ProfilePointRecord:
        times = {name: getattr(point, name) * factor for name in ("p50_s", "p98_s", "p99_s")}
        return msgspec.structs.replace(point, **times)

    profiles = {name: points if name == LAMBDA else tuple(map(scaled, points)) for name, points in profile.profiles.items()}
    return msgspec.structs.replace(profile, profiles=profiles)


def _offered(offerings: Sequence[Offering], variation: Variation) -> tuple[Offering, ...]:
    return tuple(
        replace(offering, price_usd_per_hour=offering.price_usd_per_hour * variation.instance_price)
        for offering in offerings
        if offering.instance_type.split(".")[0] not in variation.left_out
    )
