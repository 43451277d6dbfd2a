"""Policies, catalog and trace by the names that the command line takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markserve.catalog import Catalog
from markserve.core.catalog import offerings
from markserve.core.sagemaker_prices import Generation
from markserve.core.types import CapacityType, Forecast, Offering
from markserve.errors import InvalidRequest
from simulator.assumptions import STANDBY_FAMILIES
from simulator.forecasting import FORECASTERS, forecaster
from simulator.inputs import read_catalog
from simulator.paper import PaperPolicy
from simulator.policies import (
    NoInstances,
    PlannedPolicy,
    Policy,
    StaticPolicy,
    View,
    foresight,
    misled,
    no_forecast,
    the_peak,
)
from simulator.sagemaker_search import best_setting
from simulator.service import ProfileFile
from simulator.simulation import Scenario, step_maxima

ZONE = "us-east-1a"
"""On demand costs the same in all zones, so one stands for them."""
CLAIRVOYANT_SCALE_IN_CYCLES = 1
"""Hysteresis guards against forecast error, of which there is none."""
POLICIES = (
    "mark",
    "mark-on-demand",
    "mark-paper",
    "mark-paper-on-demand",
    "mark-paper-no-standbys",
    "sagemaker",
    "reactive",
    "static",
    "all-lambda",
    "clairvoyant",
)


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


def on_demand_offerings(profile: ProfileFile, catalog: Catalog | Path | None, *, launch_delay_s: float) -> tuple[Offering, ...]:
    """List what may be bought: every profiled type, on demand, at the catalog's price.

    Raises
    ------
    InvalidRequest
        If the file is no catalog, or does not know a type.
    """
    read = catalog if isinstance(catalog, Catalog) else read_catalog(catalog)
    pools, refusals = offerings(
        read.entries, instance_types=profile.instance_types, zones=[ZONE], spot_prices={}, launch_overhead_s=launch_delay_s
    )
    found = tuple(pool for pool in pools if pool.capacity_type is CapacityType.ON_DEMAND)
    if refusals:
        raise InvalidRequest("; ".join(refusals))
    return found


def policies(
    names: Sequence[str],
    scenario: Scenario,
    *,
    forecaster_name: str,
    sagemaker_prices: Generation = "current",
    sagemaker_batch: int = 1,
    forecast_factor: float = 1.0,
) -> Iterator[Policy]:
    """Build policies in the order asked for, each when it is asked for: `sagemaker` searches for its settings.

    `forecast_factor` puts the forecasts of `mark` and `mark-paper` wrong by that factor.

    Raises
    ------
    InfeasibleSlo
        If a policy can use no instance type.
    InvalidRequest
        If everything is to be spilled and the spillover function was not profiled.
    """
    maxima: list[float] = step_maxima(scenario) if {"static", "clairvoyant"} & set(names) else []
    if forecaster_name not in FORECASTERS:
        raise InvalidRequest(f"{forecaster_name!r} is none of {', '.join(FORECASTERS)}", field="forecaster")
    builder = _Builder(scenario, forecaster_name, maxima, sagemaker_prices, sagemaker_batch, forecast_factor)
    return (builder.build(name) for name in names)


@dataclass(frozen=True, slots=True)
class _Builder:
    scenario: Scenario
    forecaster_name: str
    maxima: Sequence[float]
    sagemaker_prices: Generation
    sagemaker_batch: int
    forecast_factor: float

    def build(self, name: str) -> Policy:
        model, has_spot = self.scenario.profile.model, self.scenario.market is not None
        match name:
            case "mark" | "mark-on-demand":
                told = misled(forecaster(model, self.forecaster_name), self.forecast_factor)
                return self._planned(name, told, spot=has_spot and name == "mark")
            case "mark-paper" | "mark-paper-on-demand" | "mark-paper-no-standbys":
                return self._paper(name, spot=has_spot and name != "mark-paper-on-demand", standbys=name == "mark-paper")
            case "sagemaker":
                return best_setting(self.scenario, generation=self.sagemaker_prices, batch=self.sagemaker_batch)
            case "reactive":
                return self._planned(name, no_forecast)
            case "static":
                return StaticPolicy(self._planned(name, the_peak(model, max(self.maxima, default=0.0))))
            case "clairvoyant":
                told = foresight(model, self.maxima)
                return self._planned(name, told, scale_in_cycles=CLAIRVOYANT_SCALE_IN_CYCLES, is_monitored=False)
            case _:
                if not self.scenario.profile.can_spill:
                    raise InvalidRequest("all-lambda needs a profile of the spillover function, under the name lambda")
                return NoInstances()

    def _planned(
        self,
        name: str,
        forecast: Callable[[View], Forecast | None],
        *,
        spot: bool = False,
        scale_in_cycles: int | None = None,
        is_monitored: bool = True,
    ) -> PlannedPolicy:
        profile, tunables = self.scenario.known_profile, self.scenario.tunables(spot=spot)
        if scale_in_cycles is not None:
            tunables = replace(tunables, scale_in_cycles=scale_in_cycles)
        return PlannedPolicy(name, profile=profile, tunables=tunables, forecast=forecast, is_monitored=is_monitored)

    def _paper(self, name: str, *, spot: bool, standbys: bool) -> PaperPolicy:
        burstable = [o for o in self.scenario.offerings if o.instance_type.split(".")[0] in STANDBY_FAMILIES]
        return PaperPolicy(
            name,
            profile=self.scenario.known_profile,
            standbys=burstable if spot and standbys else (),
            rt_max_s=self.scenario.slo.latency_s,
            spot=spot,
            forecast_factor=self.forecast_factor,
            max_instances=self.scenario.max_instances,
        )
