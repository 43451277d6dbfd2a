"""A new catalog from what AWS says today, and how it differs from the one before. Decides nothing about when or where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from markserve.catalog import Catalog
from markserve.core.catalog import CATEGORIES, UNKNOWN_BAND, CatalogEntry, InstanceSpec, category_of

SPOT_CHANGE = 0.05
"""A typical saving that moved by less is not reported: spot prices move every day."""
SAVING_DIGITS = 4
LEAST_SPOT_SHARE = 1e-4
"""Of the on-demand price; a saving of all of it is none that a catalog can hold."""


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """What AWS said about one region on one day."""

    region: str
    asked_on: str
    published_on: str
    """Date of the price list."""
    specs: Mapping[str, InstanceSpec]
    on_demand_usd_per_hour: Mapping[str, float]
    spot_usd_per_hour: Mapping[tuple[str, str], float]
    """By type and zone."""


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A type that was asked for and is not in the new catalog."""

    instance_type: str
    reason: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of a type in both catalogs."""

    instance_type: str
    before: float
    after: float


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """A new catalog against the one before."""

    prices: tuple[Change, ...]
    """On demand, USD per hour."""
    spot_savings: tuple[Change, ...]
    """Those that moved by at least `SPOT_CHANGE`."""
    specs: tuple[str, ...]
    """Types with another vCPU, memory, architecture, GPU or category."""
    new: tuple[str, ...]
    gone: tuple[str, ...]
    """Asked for, in the catalog before, and not in the new one."""


def build_catalog(shipped: Catalog, market: Market, wanted: Sequence[str] | None) -> tuple[Catalog, tuple[LeftOut, ...]]:
    """Put what AWS said into the catalog's form.

    Interruption bands are in no API: a type keeps the shipped one, and a type that is not shipped gets the worst.
    A type without any spot price has no spot capacity now; its saving is 0, so that spot never looks cheaper.

    Parameters
    ----------
    wanted
        Types to include; None: all that AWS named, and what was shipped.

    Returns
    -------
    (catalog, left_out)
        Entries in the shipped order, new ones behind by category and name; and why a wanted type is missing.
    """
    known = {entry.instance_type: entry for entry in shipped.entries}
    names = {*known, *market.specs, *market.on_demand_usd_per_hour} if wanted is None else set(wanted)
    spot = _mean_over_zones(market.spot_usd_per_hour)
    entries: list[CatalogEntry] = []
    left_out: list[LeftOut] = []
    for name in sorted(names):
        made = _entry(name, market, known.get(name), spot.get(name))
        if isinstance(made, CatalogEntry):
            entries.append(made)
        else:
            left_out.append(LeftOut(instance_type=name, reason=made))
    place = {name: index for index, name in enumerate(known)}
    entries.sort(key=lambda e: (place.get(e.instance_type, len(place)), CATEGORIES.index(e.category), e.instance_type))
    catalog = Catalog(
        region=market.region,
        operating_system=shipped.operating_system,
        currency=shipped.currency,
        prices_on=market.asked_on,
        prices_source=f"AWS Price List API (GetProducts, list published {market.published_on})",
        spot_on=market.asked_on,
        spot_source=(
            "EC2 DescribeSpotPriceHistory (saving of the mean over zones over on-demand); interruption bands as in the catalog "
            f"shipped for {shipped.region}, of {shipped.spot_on}, and {UNKNOWN_BAND} for types that it lacks"
        ),
        entries=tuple(entries),
    )
    return catalog, tuple(left_out)


def _entry(name: str, market: Market, known: CatalogEntry | None, spot_usd_per_hour: float | None) -> CatalogEntry | str:
    spec, price = market.specs.get(name), market.on_demand_usd_per_hour.get(name)
    if spec is None:
        return f"not offered in {market.region}"
    if price is None:
        return "no on-demand Linux price in the price list"
    category = category_of(spec)
    if category is None:
        return "fits none of the categories"
    share = 1.0 if spot_usd_per_hour is None else min(1.0, max(spot_usd_per_hour / price, LEAST_SPOT_SHARE))
    return CatalogEntry(
        instance_type=name,
        category=category,
        vcpu=spec.vcpu,
        memory_gib=spec.memory_gib,
        arch=spec.arch,
        gpu=spec.gpu,
        gpu_count=spec.gpu_count,
        price_usd_per_hour=price,
        spot_saving=round(1 - share, SAVING_DIGITS),
        interruption_band=known.interruption_band if known else UNKNOWN_BAND,
    )


def _mean_over_zones(prices: Mapping[tuple[str, str], float]) -> dict[str, float]:
    by_type: dict[str, list[float]] = {}
    for (name, _), price in prices.items():
        by_type.setdefault(name, []).append(price)
    return {name: sum(zones) / len(zones) for name, zones in by_type.items()}


def without_spot(catalog: Catalog, market: Market) -> tuple[str, ...]:
    """Name the types that have no spot price in any zone."""
    priced = {name for name, _ in market.spot_usd_per_hour}
    return tuple(entry.instance_type for entry in catalog.entries if entry.instance_type not in priced)


def changes(before: Catalog, after: Catalog, left_out: Iterable[LeftOut]) -> Changes:
    """Compare two catalogs type by type."""
    old = {entry.instance_type: entry for entry in before.entries}
    both = [(old[entry.instance_type], entry) for entry in after.entries if entry.instance_type in old]
    return Changes(
        prices=tuple(
            Change(instance_type=b.instance_type, before=a.price_usd_per_hour, after=b.price_usd_per_hour)
            for a, b in both
            if a.price_usd_per_hour != b.price_usd_per_hour
        ),
        spot_savings=tuple(
            Change(instance_type=b.instance_type, before=a.spot_saving, after=b.spot_saving)
            for a, b in both
            if round(abs(a.spot_saving - b.spot_saving), SAVING_DIGITS) >= SPOT_CHANGE
        ),
        specs=tuple(b.instance_type for a, b in both if _what(a) != _what(b)),
        new=tuple(entry.instance_type for entry in after.entries if entry.instance_type not in old),
        gone=tuple(left.instance_type for left in left_out if left.instance_type in old),
    )


def _what(entry: CatalogEntry) -> tuple[object, ...]:
    return entry.category, entry.vcpu, entry.memory_gib, entry.arch, entry.gpu, entry.gpu_count
