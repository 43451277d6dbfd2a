"""Everything a model may be rented to run on, priced: EC2 from the catalog, Fargate, Lambda and Google Cloud from list prices."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from importlib.resources import files

import msgspec

from markserve.catalog import load_catalog
from markserve.core.catalog import CatalogEntry
from markserve.core.characterization import MEASURED, Rent, lambda_sizes

LAMBDA = "lambda"
LAMBDA_SIZES_MB = (512, 1024, 1769, 3008, 3538, 10240)
GOOGLE_GB_PER_VCPU = 4.0
"""Of the shape `standard`."""
GOOGLE_VCPUS = (2, 4, 8, 16)
NO_SUCH_MACHINE = {"c2-standard-2"}
FARGATE_GB_PER_VCPU = 2.0
FARGATE_VCPUS = (1, 2, 4, 8, 16)


class PerResource(msgspec.Struct, frozen=True, kw_only=True):
    """A price by vCPU and by GB of memory, US dollars an hour."""

    vcpu: float
    gb: float


class ListPrices(msgspec.Struct, frozen=True, kw_only=True):
    """List prices of what is rented by its parts, and where they come from."""

    fargate: PerResource
    fargate_on: str
    fargate_source: str
    google: dict[str, PerResource]
    """By machine family, on demand, us-central1."""
    google_on: str
    google_source: str


@lru_cache(maxsize=1)
def load_list_prices() -> ListPrices:
    """Read `data/list_prices.json`."""
    return msgspec.json.decode(files("markserve.data").joinpath("list_prices.json").read_bytes(), type=ListPrices)


def rents(profile_names: Collection[str], *, lambda_memory_mb: int) -> list[Rent]:
    """List what the profiles allow to judge: each machine that was measured, and those that can be estimated from one.

    A container or a Google Cloud machine that was not measured itself is taken to be as fast as the measured EC2 instance
    with as many vCPUs; several measured ones of that size would disagree, so the first by name is taken and named.
    """
    by_type = {entry.instance_type: entry for entry in load_catalog().entries}
    measured = [by_type[name] for name in sorted(profile_names) if name in by_type]
    found = [rent for entry in measured for rent in _instances(entry)]
    cpu_only: dict[int, str] = {}
    for entry in measured:
        if entry.gpu is None and entry.category != "inferentia":
            cpu_only.setdefault(entry.vcpu, entry.instance_type)
    found += _fargate(cpu_only) + _google(cpu_only, profile_names)
    if LAMBDA in profile_names:
        found += lambda_sizes(profile=LAMBDA, measured_mb=lambda_memory_mb, sizes_mb=LAMBDA_SIZES_MB)
    return found


def _instances(entry: CatalogEntry) -> list[Rent]:
    price, has_gpu, name = entry.price_usd_per_hour, entry.gpu is not None, entry.instance_type
    spot = price * (1 - entry.spot_saving)
    return [
        Rent(provider="AWS", service="IaaS", machine=machine, profile=name, price_usd_per_hour=usd, has_gpu=has_gpu)
        for machine, usd in ((name, price), (f"{name} spot", spot))
    ]


def _fargate(cpu_only: dict[int, str]) -> list[Rent]:
    prices = load_list_prices().fargate
    return [
        Rent(
            provider="AWS",
            service="CaaS",
            machine=f"fargate-{vcpus}vCPU",
            profile=cpu_only[vcpus],
            price_usd_per_hour=vcpus * (prices.vcpu + FARGATE_GB_PER_VCPU * prices.gb),
            basis=f"as {cpu_only[vcpus]}",
        )
        for vcpus in FARGATE_VCPUS
        if vcpus in cpu_only
    ]


def _google(cpu_only: dict[int, str], profile_names: Collection[str]) -> list[Rent]:
    found = []
    for family, prices in sorted(load_list_prices().google.items()):
        for vcpus in GOOGLE_VCPUS:
            name = f"{family}-standard-{vcpus}"
            is_measured = name in profile_names
            if name in NO_SUCH_MACHINE or not (is_measured or vcpus in cpu_only):
                continue
            found.append(
                Rent(
                    provider="Google Cloud",
                    service="IaaS",
                    machine=name,
                    profile=name if is_measured else cpu_only[vcpus],
                    price_usd_per_hour=vcpus * (prices.vcpu + GOOGLE_GB_PER_VCPU * prices.gb),
                    basis=MEASURED if is_measured else f"as {cpu_only[vcpus]}",
                )
            )
    return found
