"""The catalog that ships with the package: instance types and list prices of one region, with date and source."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files

import msgspec

from markserve.core.catalog import CatalogEntry

FIELD_ORDER = (
    "instance_type",
    "category",
    "vcpu",
    "memory_gib",
    "arch",
    "gpu",
    "gpu_count",
    "price_usd_per_hour",
    "spot_saving",
    "interruption_band",
)
"""Of an entry in the file."""


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """Instance types of a region, and where their figures come from."""

    region: str
    operating_system: str
    currency: str
    prices_on: str
    """Date of the on-demand prices."""
    prices_source: str
    spot_on: str
    """Date of the spot savings and interruption bands."""
    spot_source: str
    entries: tuple[CatalogEntry, ...]


@lru_cache(maxsize=1)
def load_catalog() -> Catalog:
    """Read `data/catalog.json`; a malformed file fails here, naming the field."""
    return msgspec.json.decode(files("markserve.data").joinpath("catalog.json").read_bytes(), type=Catalog)


def render_catalog(catalog: Catalog) -> str:
    """Write a catalog as the shipped file is written: a line per type, so that a refresh reads well as a diff."""
    head = {name: getattr(catalog, name) for name in Catalog.__struct_fields__ if name != "entries"}
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    entries = [f"    {json.dumps({name: _plain(getattr(entry, name)) for name in FIELD_ORDER})}" for entry in catalog.entries]
    return "\n".join(["{", *lines, '  "entries": [', ",\n".join(entries), "  ]", "}"]) + "\n"


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value
