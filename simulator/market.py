"""What may be bought now and at what price, and which capacity goes away when."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from markserve.catalog import Catalog
from markserve.core.catalog import offerings
from markserve.core.types import CapacityType, Offering
from markserve.errors import InvalidRequest
from simulator.assumptions import SPOT_ZONES
from simulator.interruptions import REUSE_SHIFT_S, PoolEvents, Recorded, hazard_events, read_recorded
from simulator.prices import PRICE_COLUMNS, Pool, Segment, Steps, merged, open_text, read_history, segments
from simulator.service import ProfileFile
from simulator.traces import Trace

REPRICED_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotMarket:
    """Spot pools: their prices and their interruptions.

    Attributes
    ----------
    pools
        At the prices that hold where no history is known.
    histories
        Price changes by (type, zone).
    recorded
        Recorded availability; the pools share them in order of their keys, each further pool shifted in time.
    """

    pools: tuple[Offering, ...]
    histories: Mapping[Pool, Steps] = field(default_factory=dict)
    recorded: tuple[Recorded, ...] = ()

    def offerings(self, now_s: float) -> tuple[Offering, ...]:
        """Spot pools at the prices in force."""
        return tuple(self._priced(pool, now_s) for pool in self.pools)

    def _priced(self, pool: Offering, now_s: float) -> Offering:
        steps = self.histories.get((pool.instance_type, pool.zone))
        return pool if steps is None else replace(pool, price_usd_per_hour=steps.at(now_s))

    def price_usd_per_hour(self, offering: Offering, now_s: float) -> float:
        """Price in force of something that runs."""
        steps = self._steps(offering)
        return offering.price_usd_per_hour if steps is None else steps.at(now_s)

    def _steps(self, offering: Offering) -> Steps | None:
        spot = offering.capacity_type is CapacityType.SPOT
        return self.histories.get((offering.instance_type, offering.zone)) if spot else None

    def bill(self, offering: Offering, *, from_s: float, billed_s: float) -> list[Segment]:
        """Stretches of an instance's life with the price of each."""
        steps = self._steps(offering) or Steps((0.0,), (offering.price_usd_per_hour,))
        return segments(steps, from_s=from_s, billed_s=billed_s)

    def least_priced(self, until_s: float) -> tuple[Offering, ...]:
        """Every pool at the lowest price up to an instant; what a lower bound may count on."""
        priced: list[Offering] = []
        for pool in self.pools:
            steps = self.histories.get((pool.instance_type, pool.zone))
            priced.append(pool if steps is None else replace(pool, price_usd_per_hour=steps.least(until_s)))
        return tuple(priced)

    def is_available(self, key: str, now_s: float) -> bool:
        """Whether the pool gives instances now."""
        found = self._recording(key)
        return found is None or found[0].at(now_s + found[1]) > 0

    def _recording(self, key: str) -> tuple[Recorded, float] | None:
        if not self.recorded:
            return None
        index = next((i for i, pool in enumerate(self.pools) if pool.key == key), None)
        if index is None:
            return None
        return self.recorded[index % len(self.recorded)], index // len(self.recorded) * REUSE_SHIFT_S

    def events(self, seed: int) -> PoolEvents:
        """Capacity events of every pool."""
        sources = []
        for index, pool in enumerate(self.pools):
            found = self._recording(pool.key)
            if found is None:
                rng = np.random.default_rng([seed, 0x5907, index])
                sources.append((pool.key, hazard_events(pool.interruption_rate_per_hour, rng)))
            else:
                sources.append((pool.key, found[0].drops(found[1])))
        return PoolEvents(sources)


def spot_market(profile: ProfileFile, catalog: Catalog, files: Sequence[Path], trace: Trace, *, launch_delay_s: float) -> SpotMarket:
    """Make the market of the profiled types from price histories and interruption traces, each optional.

    A type without a recorded price is offered at the catalog's typical saving.
    """
    histories: list[Mapping[Pool, Steps]] = []
    recorded: list[Recorded] = []
    for path in files:
        if _is_price_history(path):
            histories.append(read_history(path, profile.instance_types, start_s=trace.start_s, first_s=trace.first_s))
        else:
            recorded += read_recorded(path)
    known = merged(histories)
    pools, _ = offerings(
        catalog.entries,
        instance_types=profile.instance_types,
        zones=sorted({zone for _, zone in known}) or SPOT_ZONES,
        spot_prices={(name, CapacityType.SPOT, zone): steps.at(0.0) for (name, zone), steps in known.items()},
        launch_overhead_s=launch_delay_s,
    )
    spot = tuple(pool for pool in pools if pool.capacity_type is CapacityType.SPOT)
    if not spot:
        raise InvalidRequest("no profiled type has a spot price")
    return SpotMarket(pools=spot, histories=known, recorded=tuple(recorded))


def _is_price_history(path: Path) -> bool:
    if path.suffix == ".json":
        return False
    with open_text(path) as file:
        header = next(csv.reader(file), [])
    if not header:
        raise InvalidRequest(f"{path}: empty, not even a header")
    if "spot_usd_per_h" not in header and "node" not in header:
        raise InvalidRequest(f"{path}: needs columns {','.join(PRICE_COLUMNS)} or trace,t_s,event,node, found {','.join(header)[:80]}")
    return "spot_usd_per_h" in header
