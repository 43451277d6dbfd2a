from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError
from botocore.stub import ANY, Stubber

from markserve.adapters.ec2 import Ec2Fleet
from markserve.adapters.memory import MemoryFleet
from markserve.core.types import CapacityType
from markserve.errors import CapacityUnavailable, ConfigurationError, DependencyUnavailable, MarkserveError, Throttled
from markserve.ports import Fleet
from tests.builders import NOW_S, a_launch, a_spot_offering, an_offering
from tests.contract.conftest import BACKENDS

ZONE = "us-east-1a"
SPOT_PRICE_USD_PER_HOUR = 0.034
EMULATED_IMAGE_ID = "ami-12c6146b"
"""One of those that moto knows; asking it for its list takes a second."""


def ec2_fleet(client: Any) -> Ec2Fleet:
    """A fleet in the account's default subnets, from a launch template as the stack makes one."""
    data = {"ImageId": EMULATED_IMAGE_ID}
    template = client.create_launch_template(LaunchTemplateName="workers", LaunchTemplateData=data)["LaunchTemplate"]
    subnets = [subnet["SubnetId"] for subnet in client.describe_subnets()["Subnets"]]
    template_id = template["LaunchTemplateId"]
    return Ec2Fleet(client, stack_name="markserve", launch_template_id=template_id, subnet_ids=subnets, now=lambda: NOW_S)


@pytest.fixture(params=BACKENDS)
def fleet(request: pytest.FixtureRequest) -> Fleet:
    if request.param == "memory":
        return MemoryFleet(now=lambda: NOW_S, prices={("c5.large", CapacityType.SPOT, ZONE): SPOT_PRICE_USD_PER_HOUR})
    return ec2_fleet(request.getfixturevalue("aws")("ec2"))


def test_fleet_launches_what_was_asked_for(fleet: Fleet) -> None:
    launched = fleet.launch(a_launch(count=2))

    assert len({instance.instance_id for instance in launched}) == 2
    for instance in (*launched, *fleet.describe()):
        assert (instance.instance_type, instance.capacity_type, instance.zone) == ("c5.large", CapacityType.ON_DEMAND, ZONE)
        assert instance.model == "digits"
        assert instance.cloud_state in ("pending", "running")
    assert {instance.instance_id for instance in fleet.describe()} == {instance.instance_id for instance in launched}


def test_fleet_launches_spot_when_the_offering_is_spot(fleet: Fleet) -> None:
    fleet.launch(a_launch(offering=a_spot_offering(zone="us-east-1b")))

    assert [(instance.capacity_type, instance.zone) for instance in fleet.describe()] == [(CapacityType.SPOT, "us-east-1b")]


def test_fleet_launches_once_when_an_action_is_applied_twice(fleet: Fleet) -> None:
    first = fleet.launch(a_launch(action_id="action-1", count=2))
    again = fleet.launch(a_launch(action_id="action-1", count=2))
    other = fleet.launch(a_launch(action_id="action-2", count=1))

    assert {instance.instance_id for instance in again} == {instance.instance_id for instance in first}
    assert len(other) == 1
    assert len(fleet.describe()) == 3


def test_fleet_still_reports_an_instance_when_it_was_terminated(fleet: Fleet) -> None:
    gone, kept = fleet.launch(a_launch(count=2))

    fleet.terminate([gone.instance_id])

    states = {instance.instance_id: instance.cloud_state for instance in fleet.describe()}
    assert states[gone.instance_id] in ("shutting-down", "terminated")
    assert states[kept.instance_id] in ("pending", "running")


def test_fleet_terminates_the_known_when_an_id_is_unknown(fleet: Fleet) -> None:
    (launched,) = fleet.launch(a_launch())

    fleet.terminate(["i-0123456789abcdef0", launched.instance_id])
    fleet.terminate([])

    assert [instance.cloud_state for instance in fleet.describe()] in (["shutting-down"], ["terminated"])


def test_fleet_is_empty_when_nothing_was_launched(fleet: Fleet) -> None:
    assert fleet.describe() == []


def test_fleet_prices_spot_by_type_and_zone(fleet: Fleet) -> None:
    prices = fleet.prices_usd_per_hour(["c5.large"])

    assert prices["c5.large", CapacityType.SPOT, ZONE] > 0
    assert {(instance_type, capacity_type) for instance_type, capacity_type, _ in prices} == {("c5.large", CapacityType.SPOT)}
    assert fleet.prices_usd_per_hour([]) == {}


def test_memory_fleet_raises_capacity_unavailable_when_the_pool_is_dry() -> None:
    dry = MemoryFleet(dry_pools=[a_spot_offering().key])

    with pytest.raises(CapacityUnavailable, match=r"c5\.large/spot/us-east-1a") as raised:
        dry.launch(a_launch(offering=a_spot_offering()))

    assert (raised.value.instance_type, raised.value.capacity_type, raised.value.zone) == ("c5.large", "spot", ZONE)
    assert len(dry.launch(a_launch())) == 1


def test_memory_fleet_launches_fewer_when_the_pool_runs_out() -> None:
    scarce = MemoryFleet(pool_capacity={an_offering().key: 2})

    assert len(scarce.launch(a_launch(action_id="a", count=3))) == 2
    with pytest.raises(CapacityUnavailable):
        scarce.launch(a_launch(action_id="b", count=1))


def test_ec2_fleet_ignores_instances_of_other_stacks(aws: Callable[[str], Any]) -> None:
    client = aws("ec2")
    client.run_instances(ImageId=EMULATED_IMAGE_ID, MinCount=1, MaxCount=1)

    assert ec2_fleet(client).describe() == []


def test_ec2_fleet_refuses_a_zone_without_a_subnet(aws: Callable[[str], Any]) -> None:
    with pytest.raises(ConfigurationError, match="no subnet in zone 'mars-1a'"):
        ec2_fleet(aws("ec2")).launch(a_launch(offering=an_offering(zone="mars-1a")))


def stubbed_fleet(client: Any) -> tuple[Ec2Fleet, Stubber]:
    """A fleet whose next call after the two look-ups is CreateFleet."""
    stub = Stubber(client)
    stub.add_response("describe_instances", {"Reservations": []})
    stub.add_response("describe_subnets", {"Subnets": [{"SubnetId": "subnet-1", "AvailabilityZone": ZONE}]})
    stub.activate()
    fleet = Ec2Fleet(client, stack_name="markserve", launch_template_id="lt-1", subnet_ids=["subnet-1"], now=lambda: NOW_S)
    return fleet, stub


@pytest.mark.parametrize(
    ("codes", "raised"),
    [
        (["InsufficientInstanceCapacity"], CapacityUnavailable),
        (["UnauthorizedOperation", "MaxSpotInstanceCountExceeded"], CapacityUnavailable),
        ([], CapacityUnavailable),
        (["RequestLimitExceeded"], Throttled),
        (["InternalError"], DependencyUnavailable),
        (["InvalidLaunchTemplateId.NotFound"], ConfigurationError),
    ],
)
def test_ec2_fleet_says_what_to_do_next_when_an_instant_fleet_is_empty(
    aws: Callable[[str], Any], codes: list[str], raised: type[MarkserveError]
) -> None:
    fleet, stub = stubbed_fleet(aws("ec2"))
    errors = [{"ErrorCode": code, "ErrorMessage": "from EC2"} for code in codes]
    stub.add_response("create_fleet", {"FleetId": "fleet-1", "Errors": errors, "Instances": []})

    with pytest.raises(raised):
        fleet.launch(a_launch())


def test_ec2_fleet_returns_what_it_got_when_a_fleet_is_partly_fulfilled(aws: Callable[[str], Any]) -> None:
    fleet, stub = stubbed_fleet(aws("ec2"))
    response = {
        "FleetId": "fleet-1",
        "Errors": [{"ErrorCode": "InsufficientInstanceCapacity", "ErrorMessage": "no more"}],
        "Instances": [{"InstanceIds": ["i-1"], "InstanceType": "c5.large"}],
    }
    expected = {
        "Type": "instant",
        "ClientToken": ANY,
        "LaunchTemplateConfigs": [
            {
                "LaunchTemplateSpecification": {"LaunchTemplateId": "lt-1", "Version": "$Latest"},
                "Overrides": [{"InstanceType": "c5.large", "SubnetId": "subnet-1"}],
            }
        ],
        "SpotOptions": {"AllocationStrategy": "price-capacity-optimized"},
        "TargetCapacitySpecification": {"TotalTargetCapacity": 3, "DefaultTargetCapacityType": "spot"},
        "TagSpecifications": [
            {
                "ResourceType": "instance",
                "Tags": [
                    {"Key": "Name", "Value": "markserve-digits"},
                    {"Key": "markserve:stack", "Value": "markserve"},
                    {"Key": "markserve:model", "Value": "digits"},
                    {"Key": "markserve:plan", "Value": "plan-1"},
                    {"Key": "markserve:action", "Value": "plan-1-launch-0"},
                    {"Key": "markserve:purpose", "Value": "serve"},
                ],
            }
        ],
    }
    stub.add_response("create_fleet", response, expected)

    assert [instance.instance_id for instance in fleet.launch(a_launch(count=3, offering=a_spot_offering()))] == ["i-1"]


@pytest.mark.parametrize(
    ("code", "status", "raised"),
    [
        ("VcpuLimitExceeded", 400, CapacityUnavailable),
        ("RequestLimitExceeded", 503, Throttled),
        ("Unavailable", 503, DependencyUnavailable),
        ("SomethingNew", 500, DependencyUnavailable),
        ("UnauthorizedOperation", 403, ConfigurationError),
    ],
)
def test_ec2_fleet_translates_a_refused_call(aws: Callable[[str], Any], code: str, status: int, raised: type[MarkserveError]) -> None:
    fleet, stub = stubbed_fleet(aws("ec2"))
    stub.add_client_error("create_fleet", service_error_code=code, http_status_code=status)

    with pytest.raises(raised) as translated:
        fleet.launch(a_launch())

    assert isinstance(translated.value.__cause__, ClientError)


def test_ec2_fleet_names_the_image_of_a_type_that_the_launch_templates_does_not_run_on(aws: Callable[[str], Any]) -> None:
    client, requests = aws("ec2"), []
    subnets = [subnet["SubnetId"] for subnet in client.describe_subnets()["Subnets"]]
    client.meta.events.register("provide-client-params.ec2.CreateFleet", lambda params, **_: requests.append(params))
    fleet = Ec2Fleet(
        client,
        stack_name="markserve",
        launch_template_id="lt-1",
        subnet_ids=subnets,
        image_for={"g4dn.xlarge": "ami-gpu"}.get,
        now=lambda: NOW_S,
    )

    for instance_type in ("g4dn.xlarge", "c5.large"):
        with pytest.raises(MarkserveError):  # there is no such launch template; what was asked is all that matters here
            fleet.launch(a_launch(action_id=instance_type, offering=an_offering(instance_type=instance_type)))

    images = [request["LaunchTemplateConfigs"][0]["Overrides"][0].get("ImageId") for request in requests]
    assert images == ["ami-gpu", None]


def test_fleet_reports_what_an_instance_is_for(fleet: Fleet) -> None:
    fleet.launch(a_launch(action_id="to-serve"))
    fleet.launch(a_launch(action_id="to-measure", purpose="run-1/c5.large"))

    assert sorted(seen.purpose for seen in fleet.describe()) == ["", "run-1/c5.large"]
