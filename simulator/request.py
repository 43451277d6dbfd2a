"""What the command line asks for, as a scenario and policies; every bad value is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from markserve.core.sagemaker_prices import Generation
from markserve.core.types import Slo
from markserve.errors import InvalidRequest
from simulator.assumptions import LAMBDA_CONCURRENCY, LAUNCH_DELAY_S, LAUNCH_DELAY_SIGMA, MAX_INSTANCES
from simulator.inputs import load_profile, read_catalog, with_prices
from simulator.interruptions import Ordered
from simulator.market import spot_market
from simulator.mmpp import PREFIX, Mmpp
from simulator.policies import Policy
from simulator.processes import parse_process
from simulator.registry import on_demand_offerings, policies, policy_names
from simulator.simulation import Scenario
from simulator.traces import Surge, open_trace


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Options of `markserve simulate`, as they were given."""

    trace: str
    profile: Path
    rt_max_s: float
    sl_min: float
    policies: str = "mark"
    model: str | None = None
    catalog: Path | None = None
    scale: float = 1.0
    start_s: float | None = None
    end_s: float | None = None
    arrivals: str = "poisson"
    launch_delay: str | None = None
    surges: tuple[str, ...] = ()
    spot: bool = False
    spot_traces: tuple[Path, ...] = ()
    interrupts: tuple[str, ...] = ()
    provisioned: int = 0
    max_instances: int = MAX_INSTANCES
    lambda_concurrency: int = LAMBDA_CONCURRENCY
    sagemaker_prices: str = "current"
    sagemaker_batch: int = 1
    forecaster: str = "best"
    seed: int = 1
    request_share: float = 1.0


def scenario_of(asked: Request) -> Scenario:
    """Read the files and check everything that can be checked before the first request arrives.

    Raises
    ------
    InvalidRequest
        Naming the option or file and what is wrong with it.
    """
    policy_names(asked.policies)
    generation_of(asked.sagemaker_prices)
    source = Mmpp.parse(asked.trace, seed=asked.seed) if asked.trace.startswith(PREFIX) else Path(asked.trace)
    trace = open_trace(
        source,
        scale=asked.scale,
        start_s=asked.start_s,
        end_s=asked.end_s,
        surges=tuple(Surge.parse(text) for text in asked.surges),
        process=parse_process(asked.arrivals),
    )
    profile = load_profile(asked.profile, model=asked.model)
    catalog = with_prices(read_catalog(asked.catalog), profile.prices_usd_per_hour)
    delay_s, sigma = parse_launch_delay(asked.launch_delay)
    has_spot = asked.spot or bool(asked.spot_traces)
    interrupts = tuple(Ordered.parse(text) for text in asked.interrupts)
    if interrupts and not has_spot:
        raise InvalidRequest("nothing to interrupt without --spot or --spot-trace", field="interrupt")
    if asked.provisioned and not profile.can_spill:
        raise InvalidRequest("the profile has no lambda entry to provision", field="provisioned-concurrency")
    if asked.provisioned > asked.lambda_concurrency:
        raise InvalidRequest(
            f"{asked.provisioned} is more than --lambda-concurrency {asked.lambda_concurrency} allows", field="provisioned-concurrency"
        )
    return Scenario(
        trace=trace,
        profile=profile,
        offerings=on_demand_offerings(profile, catalog, launch_delay_s=delay_s),
        slo=Slo(latency_s=asked.rt_max_s, percentile=asked.sl_min),
        launch_delay_s=delay_s,
        launch_delay_sigma=sigma,
        seed=asked.seed,
        request_share=asked.request_share,
        market=spot_market(profile, catalog, asked.spot_traces, trace, launch_delay_s=delay_s) if has_spot else None,
        interrupts=interrupts,
        provisioned=asked.provisioned,
        max_instances=asked.max_instances,
        lambda_concurrency=asked.lambda_concurrency,
    )


def policies_of(asked: Request, scenario: Scenario) -> Iterator[Policy]:
    """Build the policies asked for, one after the other."""
    return policies(
        policy_names(asked.policies),
        scenario,
        forecaster_name=asked.forecaster,
        sagemaker_prices=generation_of(asked.sagemaker_prices),
        sagemaker_batch=asked.sagemaker_batch,
    )


def parse_launch_delay(text: str | None) -> tuple[float, float]:
    """Read `MEDIAN` or `MEDIAN:SIGMA`.

    >>> parse_launch_delay("90:0.3"), parse_launch_delay("60")
    ((90.0, 0.3), (60.0, 0.1))
    """
    if text is None:
        return LAUNCH_DELAY_S, LAUNCH_DELAY_SIGMA
    median, _, sigma = text.partition(":")
    try:
        read = float(median), float(sigma) if sigma else LAUNCH_DELAY_SIGMA
    except ValueError:
        raise InvalidRequest(f"{text!r} is not MEDIAN or MEDIAN:SIGMA, such as 180:0.1", field="launch-delay") from None
    if not (0 <= read[0] < math.inf and 0 <= read[1] <= 2):
        raise InvalidRequest(f"{text!r}: MEDIAN must be finite and not negative, SIGMA must lie in 0 to 2", field="launch-delay")
    return read


def generation_of(text: str) -> Generation:
    """Read the name of a price list of SageMaker's."""
    if text not in get_args(Generation):
        raise InvalidRequest(f"{text!r} is none of {', '.join(get_args(Generation))}", field="sagemaker-prices")
    return cast("Generation", text)
