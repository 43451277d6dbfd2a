"""A catalog from what AWS says, and what changed against the one before."""

from __future__ import annotations

from importlib.resources import files

import msgspec
import pytest

from markserve.catalog import Catalog, load_catalog, render_catalog
from markserve.catalog_refresh import Change, LeftOut, Market, build_catalog, changes, without_spot
from markserve.core.catalog import CATEGORIES, CatalogEntry, InstanceSpec, category_of


def a_spec(name: str, **more: object) -> InstanceSpec:
    values: dict[str, object] = {"instance_type": name, "vcpu": 2, "memory_gib": 4.0, "arch": "x86_64", **more}
    return msgspec.convert(values, InstanceSpec)


def an_entry(name: str, **more: object) -> CatalogEntry:
    values: dict[str, object] = {
        "instance_type": name,
        "category": "compute",
        "vcpu": 2,
        "memory_gib": 4.0,
        "arch": "x86_64",
        "price_usd_per_hour": 0.1,
        "spot_saving": 0.6,
        "interruption_band": "<5%",
        **more,
    }
    return msgspec.convert(values, CatalogEntry)


def shipped(*entries: CatalogEntry) -> Catalog:
    return msgspec.structs.replace(load_catalog(), entries=entries)


def a_market(
    specs: list[InstanceSpec], on_demand: dict[str, float], spot: dict[tuple[str, str], float] | None = None, *, region: str = "us-east-1"
) -> Market:
    return Market(
        region=region,
        asked_on="2026-11-24",
        published_on="2026-11-20",
        specs={spec.instance_type: spec for spec in specs},
        on_demand_usd_per_hour=on_demand,
        spot_usd_per_hour=spot or {},
    )


def test_refreshed_catalog_states_region_dates_and_sources() -> None:
    market = a_market([a_spec("c5.large")], {"c5.large": 0.085}, region="eu-west-1")

    catalog, _ = build_catalog(load_catalog(), market, ["c5.large"])

    assert (catalog.region, catalog.prices_on, catalog.spot_on) == ("eu-west-1", "2026-11-24", "2026-11-24")
    assert catalog.prices_source == "AWS Price List API (GetProducts, list published 2026-11-20)"
    assert "as in the catalog shipped for us-east-1, of 2025-06-28, and >20% for types that it lacks" in catalog.spot_source


def test_saving_is_of_the_mean_over_zones_of_the_spot_price() -> None:
    spot = {("c5.large", "a"): 0.02, ("c5.large", "b"): 0.04, ("m5.large", "a"): 0.01}

    catalog, _ = build_catalog(shipped(), a_market([a_spec("c5.large")], {"c5.large": 0.1}, spot), ["c5.large"])

    assert catalog.entries[0].spot_saving == 0.7


@pytest.mark.parametrize(("spot_usd_per_hour", "saving"), [(0.15, 0.0), (0.0, 0.9999), (None, 0.0)])
def test_saving_stays_within_what_a_catalog_holds(spot_usd_per_hour: float | None, saving: float) -> None:
    spot = {} if spot_usd_per_hour is None else {("c5.large", "a"): spot_usd_per_hour}
    market = a_market([a_spec("c5.large")], {"c5.large": 0.1}, spot)

    catalog, _ = build_catalog(shipped(), market, None)

    assert catalog.entries[0].spot_saving == saving
    assert without_spot(catalog, market) == (() if spot else ("c5.large",))


def test_known_type_keeps_its_interruption_band_and_an_unknown_one_gets_the_worst() -> None:
    market = a_market([a_spec("c5.large"), a_spec("c9.large")], {"c5.large": 0.1, "c9.large": 0.1})

    catalog, _ = build_catalog(shipped(an_entry("c5.large", interruption_band="5-10%")), market, ["c5.large", "c9.large"])

    assert [entry.interruption_band for entry in catalog.entries] == ["5-10%", ">20%"]


def test_entries_keep_the_shipped_order_and_new_ones_follow_by_category() -> None:
    names = ["c9.large", "m9.large", "c5.large", "t3.large", "g9.large"]
    specs = [a_spec(name, **({"gpu": "L9", "gpu_count": 1} if name[0] == "g" else {})) for name in names]

    before = shipped(an_entry("t3.large", category="burstable"), an_entry("c5.large"))
    catalog, _ = build_catalog(before, a_market(specs, dict.fromkeys(names, 0.1)), None)

    assert [entry.instance_type for entry in catalog.entries] == ["t3.large", "c5.large", "m9.large", "c9.large", "g9.large"]


def test_type_is_left_out_with_the_reason() -> None:
    market = a_market([a_spec("c5.large"), a_spec("trn1.2xlarge")], {"trn1.2xlarge": 1.3, "p2.xlarge": 0.9})

    catalog, left_out = build_catalog(shipped(), market, ["trn1.2xlarge", "p2.xlarge", "c5.large"])

    assert catalog.entries == ()
    assert left_out == (
        LeftOut(instance_type="c5.large", reason="no on-demand Linux price in the price list"),
        LeftOut(instance_type="p2.xlarge", reason="not offered in us-east-1"),
        LeftOut(instance_type="trn1.2xlarge", reason="fits none of the categories"),
    )


def test_changes_name_what_moved_what_is_new_and_what_is_gone() -> None:
    before = shipped(
        an_entry("c5.large", price_usd_per_hour=0.08, spot_saving=0.6),
        an_entry("c6i.large", price_usd_per_hour=0.1, spot_saving=0.6),
        an_entry("c4.large"),
        an_entry("c3.large"),
    )
    specs = [a_spec("c5.large"), a_spec("c6i.large", vcpu=4), a_spec("c9.large")]
    spot = {("c5.large", "a"): 0.05, ("c6i.large", "a"): 0.0449}
    market = a_market(specs, {"c5.large": 0.1, "c6i.large": 0.1, "c9.large": 0.1}, spot)

    after, left_out = build_catalog(before, market, None)
    found = changes(before, after, left_out)

    assert found.prices == (Change(instance_type="c5.large", before=0.08, after=0.1),)
    assert found.spot_savings == (Change(instance_type="c5.large", before=0.6, after=0.5),)
    assert (found.new, found.gone, found.specs) == (("c9.large",), ("c3.large", "c4.large"), ("c6i.large",))


def test_type_that_was_not_asked_for_is_not_gone() -> None:
    before = shipped(an_entry("c5.large"), an_entry("c4.large"))

    after, left_out = build_catalog(before, a_market([a_spec("c5.large")], {"c5.large": 0.1}), ["c5.large"])

    assert changes(before, after, left_out).gone == ()


def test_spot_saving_that_moved_by_the_threshold_is_reported() -> None:
    before = shipped(an_entry("c5.large", spot_saving=0.55))

    after, _ = build_catalog(before, a_market([a_spec("c5.large")], {"c5.large": 0.1}, {("c5.large", "a"): 0.05}), None)

    assert [change.after for change in changes(before, after, ()).spot_savings] == [0.5]


def test_shipped_file_is_as_a_refresh_would_write_it() -> None:
    assert render_catalog(load_catalog()) == files("markserve.data").joinpath("catalog.json").read_text(encoding="utf-8")


def test_written_catalog_reads_back_as_it_was() -> None:
    catalog = shipped(an_entry("c5.large", memory_gib=7.5, spot_saving=0.0), an_entry("g5.xlarge", gpu="A10G", gpu_count=1))

    assert msgspec.json.decode(render_catalog(catalog), type=Catalog) == catalog


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("a1.large", "general"),
        ("m7i-flex.large", "general"),
        ("c6gn.large", "compute"),
        ("r7iz.large", "memory"),
        ("x2gd.large", "memory"),
        ("u-6tb1.56xlarge", "memory"),
        ("z1d.large", "memory"),
        ("t4g.small", "burstable"),
        ("i4i.large", None),
        ("im4gn.large", None),
        ("d3.xlarge", None),
        ("hpc7a.12xlarge", None),
        ("mac2.metal", None),
        ("f2.6xlarge", None),
        ("p9.xlarge", None),
    ],
)
def test_category_follows_the_series_letters(name: str, category: str | None) -> None:
    assert category_of(a_spec(name)) == category


def test_accelerator_decides_the_category_before_the_letters_do() -> None:
    assert category_of(a_spec("c5.large", gpu="T4", gpu_count=1)) == "gpu"
    assert category_of(a_spec("c5.large", has_inferentia=True)) == "inferentia"


def test_shipped_entries_have_the_category_that_a_refresh_would_give_them() -> None:
    for entry in load_catalog().entries:
        accelerator = {"gpu": entry.gpu, "has_inferentia": entry.instance_type.startswith("inf")}
        assert category_of(a_spec(entry.instance_type, **accelerator)) == entry.category, entry.instance_type
        assert entry.category in CATEGORIES
