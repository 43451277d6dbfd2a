"""What EC2 offers in a region: instance types as they are built, and the spot prices of the moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from markserve.adapters.pricing import translate
from markserve.core.catalog import InstanceSpec

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

PRODUCT = "Linux/UNIX"
TYPES_PER_CALL = 100
"""A filter takes 200 values; half of that keeps the answer to one page."""
SPOT_PAGE_SIZE = 1000
TYPE_PAGE_SIZE = 100

Tell = Callable[[int], None]


class Ec2Market:
    """`DescribeInstanceTypes` and `DescribeSpotPriceHistory` of the client's region."""

    def __init__(self, client: EC2Client) -> None:
        self._client = client

    def specs(self, instance_types: Sequence[str] | None = None, *, tell: Tell = lambda _: None) -> Mapping[str, InstanceSpec]:
        """Describe types by name; those that the region does not offer are missing from the answer.

        Parameters
        ----------
        instance_types
            None: all that the region offers.
        tell
            Told how many types were read so far.

        Raises
        ------
        CredentialsRefused, PermissionDenied, Throttled, DependencyUnavailable
            As EC2 answered, or did not.
        """
        found: dict[str, InstanceSpec] = {}
        for chunk in _chunks(instance_types):
            # By filter: an unknown name in InstanceTypes fails the whole call.
            filters = [] if chunk is None else [{"Name": "instance-type", "Values": chunk}]
            for described in self._pages("describe_instance_types", "InstanceTypes", TYPE_PAGE_SIZE, Filters=filters):
                found[described["InstanceType"]] = _spec(described)
                tell(len(found))
        return found

    def spot_usd_per_hour(
        self, instance_types: Sequence[str] | None = None, *, now_s: float, tell: Tell = lambda _: None
    ) -> Mapping[tuple[str, str], float]:
        """Price spot pools as of `now_s`, by type and zone; a pool without capacity has no price.

        Parameters
        ----------
        instance_types
            None: all that the region offers.
        tell
            Told how many pools were read so far.

        Raises
        ------
        CredentialsRefused, PermissionDenied, Throttled, DependencyUnavailable
            As EC2 answered, or did not.
        """
        latest: dict[tuple[str, str], tuple[datetime, float]] = {}
        # From now on: EC2 then returns just the price in force, one per type and zone.
        common = {"ProductDescriptions": [PRODUCT], "StartTime": datetime.fromtimestamp(now_s, tz=UTC)}
        for chunk in _chunks(instance_types):
            named = {} if chunk is None else {"InstanceTypes": chunk}
            for pool in self._pages("describe_spot_price_history", "SpotPriceHistory", SPOT_PAGE_SIZE, **common, **named):
                key = pool["InstanceType"], pool["AvailabilityZone"]
                if key not in latest or pool["Timestamp"] > latest[key][0]:
                    latest[key] = pool["Timestamp"], float(pool["SpotPrice"])
                tell(len(latest))
        return {key: price for key, (_, price) in latest.items()}

    def _pages(self, operation: Any, key: str, page_size: int, **arguments: Any) -> Iterator[Any]:
        try:
            for page in self._client.get_paginator(operation).paginate(PaginationConfig={"PageSize": page_size}, **arguments):
                yield from page[key]
        except (ClientError, BotoCoreError) as error:
            raise translate(error, "EC2") from error


def _chunks(instance_types: Sequence[str] | None) -> list[list[str] | None]:
    if instance_types is None:
        return [None]
    return [list(instance_types[start : start + TYPES_PER_CALL]) for start in range(0, len(instance_types), TYPES_PER_CALL)]


def _spec(described: Any) -> InstanceSpec:
    gpus = [gpu for gpu in described.get("GpuInfo", {}).get("Gpus", ()) if gpu.get("Manufacturer", "").upper() == "NVIDIA"]
    inferentia = [
        *described.get("InferenceAcceleratorInfo", {}).get("Accelerators", ()),
        *described.get("NeuronInfo", {}).get("NeuronDevices", ()),
    ]
    architectures = described["ProcessorInfo"]["SupportedArchitectures"]
    return InstanceSpec(
        instance_type=described["InstanceType"],
        vcpu=described["VCpuInfo"]["DefaultVCpus"],
        memory_gib=described["MemoryInfo"]["SizeInMiB"] / 1024,
        # Old types also run 32-bit images; nobody serves models on those.
        arch="x86_64" if "x86_64" in architectures else architectures[0],
        gpu=gpus[0]["Name"] if gpus else None,
        # A type with a share of a GPU counts as having one.
        gpu_count=max(1, sum(gpu.get("Count", 0) for gpu in gpus)) if gpus else 0,
        has_inferentia=any(device.get("Name", "").startswith("Inferentia") for device in inferentia),
    )
