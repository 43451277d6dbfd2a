from collections import Counter

import pytest

from markserve.catalog import load_catalog
from markserve.core.catalog import CatalogEntry, interruption_rate_per_hour, offerings
from markserve.core.types import CapacityType

LARGE = CatalogEntry(
    instance_type="c5.large",
    category="compute",
    vcpu=2,
    memory_gib=4,
    arch="x86_64",
    price_usd_per_hour=0.085,
    spot_saving=0.6,
    interruption_band="<5%",
)


def test_shipped_catalog_states_its_sources_and_covers_every_category() -> None:
    catalog = load_catalog()
    categories = Counter(entry.category for entry in catalog.entries)

    assert len(catalog.entries) >= 40
    assert set(categories) == {"general", "compute", "memory", "burstable", "gpu", "inferentia"}
    assert {entry.arch for entry in catalog.entries} == {"x86_64", "arm64"}
    assert (catalog.region, catalog.prices_on, catalog.spot_on) == ("us-east-1", "2026-07-20", "2025-06-28")
    assert "price list" in catalog.prices_source


def test_shipped_catalog_names_each_type_once_and_gpus_where_there_are_some() -> None:
    entries = load_catalog().entries

    assert len({entry.instance_type for entry in entries}) == len(entries)
    assert all((entry.gpu is not None) == (entry.gpu_count > 0) == (entry.category == "gpu") for entry in entries)


def test_shipped_catalog_has_the_list_price_of_c5_large() -> None:
    prices = {entry.instance_type: entry.price_usd_per_hour for entry in load_catalog().entries}

    assert prices["c5.large"] == 0.085
    assert prices["c5.xlarge"] == 0.17
    assert prices["g4dn.xlarge"] == 0.526


def test_offerings_hold_each_zone_in_both_capacity_types() -> None:
    pools, refused = offerings([LARGE], instance_types=["c5.large"], zones=["b", "a"], spot_prices={}, launch_overhead_s=60.0)

    assert [pool.key for pool in pools] == ["c5.large/on_demand/a", "c5.large/on_demand/b", "c5.large/spot/a", "c5.large/spot/b"]
    assert {pool.launch_overhead_s for pool in pools} == {60.0}
    assert pools[2].price_usd_per_hour == pytest.approx(0.034)
    assert refused == ()


def test_offerings_take_the_live_spot_price_and_skip_zones_without_one() -> None:
    live = {("c5.large", CapacityType.SPOT, "a"): 0.05, ("other.type", CapacityType.SPOT, "b"): 0.01}

    pools, _ = offerings([LARGE], instance_types=["c5.large"], zones=["a", "b"], spot_prices=live, launch_overhead_s=60.0)

    assert {pool.key: pool.price_usd_per_hour for pool in pools if pool.capacity_type is CapacityType.SPOT} == {"c5.large/spot/a": 0.05}


def test_offerings_refuse_a_type_when_its_price_is_unknown() -> None:
    pools, refused = offerings([LARGE], instance_types=["c9.huge"], zones=["a"], spot_prices={}, launch_overhead_s=60.0)

    assert (pools, refused) == ((), ("c9.huge: not in the catalog, so its price is unknown",))


def test_interruption_rate_rises_with_the_band_and_is_only_for_spot() -> None:
    rates = [interruption_rate_per_hour(band) for band in ("<5%", "5-10%", "10-15%", "15-20%", ">20%")]
    pools, _ = offerings([LARGE], instance_types=["c5.large"], zones=["a"], spot_prices={}, launch_overhead_s=60.0)

    assert rates == sorted(rates)
    assert [pool.interruption_rate_per_hour for pool in pools] == [0.0, rates[0]]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("price_usd_per_hour", 0.0, "price_usd_per_hour must be positive, got 0.0"),
        ("spot_saving", 1.0, r"spot_saving must lie in \[0, 1\), got 1.0"),
        ("interruption_band", "rarely", "interruption_band 'rarely' is none of"),
    ],
)
def test_entry_is_refused_when_a_value_is_out_of_bounds(field: str, value: object, message: str) -> None:
    values = {name: getattr(LARGE, name) for name in LARGE.__slots__}

    with pytest.raises(ValueError, match=f"c5.large: {message}"):
        CatalogEntry(**{**values, field: value})
