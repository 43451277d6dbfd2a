"""Policies, catalog and trace by the names that the command line takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from markserve.catalog import Catalog, load_catalog
from markserve.core.catalog import offerings
from markserve.core.types import CapacityType, Forecast, Offering
from markserve.errors import InvalidRequest
from simulator.forecasting import forecaster
from simulator.paper import PaperPolicy
from simulator.policies import (
    NoInstances,
    PlannedPolicy,
    Policy,
    StaticPolicy,
    View,
    foresight,
    no_forecast,
    stack_tunables,
    the_peak,
)
from simulator.service import ProfileFile
from simulator.simulation import Scenario, step_maxima

ZONE = "us-east-1a"
"""On demand costs the same in all zones, so one stands for them."""
CLAIRVOYANT_SCALE_IN_CYCLES = 1
"""Hysteresis guards against forecast error, of which there is none."""
POLICIES = ("mark", "mark-paper", "reactive", "static", "all-lambda", "clairvoyant")


def policy_names(text: str) -> list[str]:
    """Read `NAME[,NAME...]`.

    >>> policy_names("mark, static")
    ['mark', 'static']
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in POLICIES]
    if unknown or not names:
        raise InvalidRequest(f"{', '.join(unknown) or 'nothing'} is none of {', '.join(POLICIES)}", field="policy")
    return names


def on_demand_offerings(profile: ProfileFile, catalog: Path | None, *, launch_delay_s: float) -> tuple[Offering, ...]:
    """List what may be bought: every profiled type, on demand, at the catalog's price.

    Raises
    ------
    InvalidRequest
        If the file is no catalog, or does not know a type.
    """
    try:
        read = load_catalog() if catalog is None else msgspec.json.decode(catalog.read_bytes(), type=Catalog)
    except OSError as error:
        raise InvalidRequest(f"{catalog}: {error.strerror}") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidRequest(f"{catalog}: {error}") from error
    pools, refusals = offerings(
        read.entries, instance_types=profile.instance_types, zones=[ZONE], spot_prices={}, launch_overhead_s=launch_delay_s
    )
    if refusals:
        raise InvalidRequest("; ".join(refusals))
    return tuple(pool for pool in pools if pool.capacity_type is CapacityType.ON_DEMAND)


def policies(names: Sequence[str], scenario: Scenario, *, forecaster_name: str) -> list[Policy]:
    """Build policies in the order asked for.

    Raises
    ------
    InfeasibleSlo
        If a policy can use no instance type.
    InvalidRequest
        If everything is to be spilled and the spillover function was not profiled.
    """
    maxima: list[float] = step_maxima(scenario) if {"static", "clairvoyant"} & set(names) else []
    profile, slo = scenario.profile, scenario.slo
    tunables = stack_tunables(rt_max_s=slo.latency_s, sl_min=slo.percentile, can_spill=profile.can_spill)

    def planned(
        name: str, forecast: Callable[[View], Forecast | None], *, scale_in_cycles: int = tunables.scale_in_cycles
    ) -> PlannedPolicy:
        return PlannedPolicy(
            name,
            profile=profile,
            offerings=scenario.offerings,
            tunables=replace(tunables, scale_in_cycles=scale_in_cycles),
            forecast=forecast,
        )

    built: list[Policy] = []
    for name in names:
        match name:
            case "mark":
                built.append(planned(name, forecaster(profile.model, forecaster_name)))
            case "reactive":
                built.append(planned(name, no_forecast))
            case "static":
                built.append(StaticPolicy(planned(name, the_peak(profile.model, max(maxima, default=0.0)))))
            case "clairvoyant":
                built.append(planned(name, foresight(profile.model, maxima), scale_in_cycles=CLAIRVOYANT_SCALE_IN_CYCLES))
            case "mark-paper":
                built.append(PaperPolicy(profile=profile, offerings=scenario.offerings, rt_max_s=slo.latency_s))
            case _:
                if not profile.can_spill:
                    raise InvalidRequest("all-lambda needs a profile of the spillover function, under the name lambda")
                built.append(NoInstances())
    return built
