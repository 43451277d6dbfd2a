"""`Fleet` on EC2: CreateFleet, tags, and what the cloud reports."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from markserve.core.types import CapacityType, ObservedInstance, Offering
from markserve.errors import CapacityUnavailable, ConfigurationError, DependencyUnavailable, MarkserveError, Throttled
from markserve.messages import LaunchInstances

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

TAG_STACK, TAG_MODEL, TAG_PLAN, TAG_ACTION = "markserve:stack", "markserve:model", "markserve:plan", "markserve:action"
TAG_PURPOSE, SERVE = "markserve:purpose", "serve"

UNFULFILLABLE_CAPACITY = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientReservedInstanceCapacity",
        "InsufficientFreeAddressesInSubnet",
        "InstanceLimitExceeded",
        "MaxSpotInstanceCountExceeded",
        "ReservationCapacityExceeded",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
        "Unsupported",
        "VcpuLimitExceeded",
    }
)
THROTTLED = frozenset({"RequestLimitExceeded", "Throttling", "ThrottlingException", "EC2ThrottledException", "MaxFleetCountExceeded"})
UNAVAILABLE = frozenset({"InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable"})
INSTANCE_NOT_FOUND = frozenset({"InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"})

MAX_PER_TERMINATION = 100
PRODUCT = "Linux/UNIX"


class Ec2Fleet:
    """The instances tagged as this stack's. The only adapter that spends money by the hour.

    Parameters
    ----------
    image_for
        Image of an instance type that the launch template's does not run on, else None.
    """

    def __init__(
        self,
        client: EC2Client,
        *,
        stack_name: str,
        launch_template_id: str,
        subnet_ids: Sequence[str],
        now: Callable[[], float],
        image_for: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._client = client
        self._stack_name = stack_name
        self._launch_template_id = launch_template_id
        self._subnet_ids = tuple(subnet_ids)
        self._now = now
        self._image_for = image_for
        self._zone_of_subnet: dict[str, str] = {}

    def launch(self, command: LaunchInstances) -> list[ObservedInstance]:
        """Buy; may return fewer than asked.

        Idempotent by `action_id`, twice over: the client token answers a retry within minutes, when the tags may not
        be visible yet; the tags answer for as long as the instances live, when the token has been forgotten.
        """
        launched_before = self._described([{"Name": f"tag:{TAG_ACTION}", "Values": [command.action_id]}])
        if launched_before:
            return launched_before
        try:
            response = self._client.create_fleet(**self._fleet_request(command))
        except (ClientError, BotoCoreError) as error:
            raise _translate(error, command.offering) from error
        launched = [
            self._observed_at_launch(command, instance_id)
            for group in response.get("Instances", ())
            for instance_id in group["InstanceIds"]
        ]
        if not launched:
            raise _nothing_launched(response.get("Errors", ()), command.offering)
        return launched

    def _fleet_request(self, command: LaunchInstances) -> dict[str, Any]:
        offering = command.offering
        spot = offering.capacity_type is CapacityType.SPOT
        image_id = self._image_for(offering.instance_type)
        image = {} if image_id is None else {"ImageId": image_id}
        tags = {
            "Name": f"{self._stack_name}-{command.model}",
            TAG_STACK: self._stack_name,
            TAG_MODEL: command.model,
            TAG_PLAN: command.plan_id,
            TAG_ACTION: command.action_id,
            # Always there: an instance that asks its metadata for a tag it does not have gets an error.
            TAG_PURPOSE: command.purpose or SERVE,
        }
        request: dict[str, Any] = {
            "Type": "instant",
            # At most 64 characters, and two actions must never share one.
            "ClientToken": hashlib.sha256(command.action_id.encode()).hexdigest(),
            "LaunchTemplateConfigs": [
                {
                    "LaunchTemplateSpecification": {"LaunchTemplateId": self._launch_template_id, "Version": "$Latest"},
                    "Overrides": [
                        {"InstanceType": offering.instance_type, "SubnetId": subnet, **image} for subnet in self._subnets_in(offering.zone)
                    ],
                }
            ],
            "TargetCapacitySpecification": {
                "TotalTargetCapacity": command.count,
                "DefaultTargetCapacityType": "spot" if spot else "on-demand",
            },
            "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}],
        }
        if spot:
            # Among the overrides: the pools least likely to be interrupted, then the cheapest.
            request["SpotOptions"] = {"AllocationStrategy": "price-capacity-optimized"}
        else:
            request["OnDemandOptions"] = {"AllocationStrategy": "lowest-price"}
        return request

    def _zones_by_subnet(self) -> Mapping[str, str]:
        if not self._zone_of_subnet:
            subnets = self._pages("describe_subnets", "Subnets", SubnetIds=list(self._subnet_ids))
            self._zone_of_subnet = {subnet["SubnetId"]: subnet["AvailabilityZone"] for subnet in subnets}
        return self._zone_of_subnet

    def _subnets_in(self, zone: str) -> list[str]:
        chosen = [subnet for subnet in self._subnet_ids if self._zones_by_subnet().get(subnet) == zone]
        if not chosen:
            raise ConfigurationError(f"no subnet in zone {zone!r}; configured: {self._zone_of_subnet}")
        return chosen

    def zones(self) -> Sequence[str]:
        return sorted(set(self._zones_by_subnet().values()))

    def _observed_at_launch(self, command: LaunchInstances, instance_id: str) -> ObservedInstance:
        # DescribeInstances may not know the instance for a few seconds, so what was asked for is reported.
        return ObservedInstance(
            instance_id=instance_id,
            instance_type=command.offering.instance_type,
            capacity_type=command.offering.capacity_type,
            zone=command.offering.zone,
            cloud_state="pending",
            launched_at_s=self._now(),
            model=command.model,
            purpose=command.purpose,
        )

    def terminate(self, instance_ids: Sequence[str]) -> None:
        for start in range(0, len(instance_ids), MAX_PER_TERMINATION):
            chunk = list(instance_ids[start : start + MAX_PER_TERMINATION])
            if not self._terminate(chunk):
                # One unknown id fails the whole call: then each on its own.
                for instance_id in chunk:
                    self._terminate([instance_id])

    def _terminate(self, instance_ids: list[str]) -> bool:
        try:
            self._client.terminate_instances(InstanceIds=instance_ids)
        except (ClientError, BotoCoreError) as error:
            if _code(error) in INSTANCE_NOT_FOUND:
                return False
            raise _translate(error) from error
        return True

    def describe(self) -> list[ObservedInstance]:
        return self._described([{"Name": f"tag:{TAG_STACK}", "Values": [self._stack_name]}])

    def _described(self, filters: list[dict[str, Any]]) -> list[ObservedInstance]:
        reservations = self._pages("describe_instances", "Reservations", Filters=filters)
        return [_observed(instance) for reservation in reservations for instance in reservation["Instances"]]

    def prices_usd_per_hour(self, instance_types: Sequence[str]) -> Mapping[tuple[str, CapacityType, str], float]:
        if not instance_types:
            return {}
        # From now on: EC2 then returns just the price in force, one per type and zone.
        now = datetime.fromtimestamp(self._now(), tz=UTC)
        history = self._pages(
            "describe_spot_price_history",
            "SpotPriceHistory",
            InstanceTypes=list(instance_types),
            ProductDescriptions=[PRODUCT],
            StartTime=now,
        )
        by_time = sorted(history, key=lambda entry: str(entry["Timestamp"]))
        return {(entry["InstanceType"], CapacityType.SPOT, entry["AvailabilityZone"]): float(entry["SpotPrice"]) for entry in by_time}

    def _pages(self, operation: Any, key: str, **arguments: Any) -> Iterator[Any]:
        try:
            for page in self._client.get_paginator(operation).paginate(**arguments):
                yield from page[key]
        except (ClientError, BotoCoreError) as error:
            raise _translate(error) from error


def _observed(instance: Any) -> ObservedInstance:
    tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}
    return ObservedInstance(
        instance_id=instance["InstanceId"],
        instance_type=instance["InstanceType"],
        capacity_type=CapacityType.SPOT if instance.get("InstanceLifecycle") == "spot" else CapacityType.ON_DEMAND,
        zone=instance.get("Placement", {}).get("AvailabilityZone", ""),
        cloud_state=instance["State"]["Name"],
        launched_at_s=instance["LaunchTime"].timestamp(),
        model=tags.get(TAG_MODEL),
        purpose="" if (purpose := tags.get(TAG_PURPOSE, SERVE)) == SERVE else purpose,
    )


def _code(error: ClientError | BotoCoreError) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _nothing_launched(errors: Sequence[Any], offering: Offering) -> MarkserveError:
    """Say why an instant fleet is empty: capacity, unless every error has another cause."""
    codes = sorted({str(error.get("ErrorCode", "")) for error in errors})
    if not codes or any(code in UNFULFILLABLE_CAPACITY for code in codes):
        return _dry(offering, ", ".join(codes) or "an empty fleet")
    return _by_code(codes[0], 0, f"CreateFleet of {offering.key}: {errors[0].get('ErrorMessage', '')}")


def _dry(offering: Offering, code: str) -> CapacityUnavailable:
    return CapacityUnavailable(
        f"{offering.key}: no capacity ({code})",
        instance_type=offering.instance_type,
        capacity_type=offering.capacity_type,
        zone=offering.zone,
    )


def _by_code(code: str, status: int, subject: str) -> MarkserveError:
    if code in THROTTLED:
        return Throttled(f"EC2 throttled: {code}")
    if code in UNAVAILABLE or status >= 500:
        return DependencyUnavailable(f"EC2 failed: {code}")
    return ConfigurationError(f"EC2 refused: {code}: {subject}")


def _translate(error: ClientError | BotoCoreError, offering: Offering | None = None) -> MarkserveError:
    if not isinstance(error, ClientError):
        return DependencyUnavailable(f"EC2 did not answer: {error}")
    code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if offering is not None and code in UNFULFILLABLE_CAPACITY:
        return _dry(offering, code)
    return _by_code(code, status, str(error))
