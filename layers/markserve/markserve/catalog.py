"""The catalog that ships with the package: instance types and list prices of one region, with date and source."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import msgspec

from markserve.core.catalog import CatalogEntry


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
