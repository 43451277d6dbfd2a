"""EC2's events, as EC2 puts them on the default bus."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from local.embedded_server import SERVICE_EVENT_HEADER

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_events.type_defs import PutEventsRequestEntryTypeDef


@dataclass(frozen=True, kw_only=True)
class Ec2Events:
    """Publishes what EC2 would about its instances. Takes the events client over: its requests speak for AWS."""

    client: EventBridgeClient
    region: str
    account: str

    def __post_init__(self) -> None:
        self.client.meta.events.register("before-call.events.PutEvents", _speak_for_aws)

    def state_changed(self, instance_id: str, state: str) -> None:
        """Report that an instance went to `state` (pending, running, shutting-down, terminated)."""
        self._put(
            "EC2 Instance State-change Notification",
            f"arn:aws:ec2:{self.region}:{self.account}:instance/{instance_id}",
            {"instance-id": instance_id, "state": state},
        )

    def interruption_warned(self, instance_id: str, *, zone: str) -> None:
        """Report that a spot instance will be terminated when its notice is over."""
        # AWS puts the zone where the region belongs, and no account, into this one ARN.
        self._put(
            "EC2 Spot Instance Interruption Warning",
            f"arn:aws:ec2:{zone}:instance/{instance_id}",
            {"instance-id": instance_id, "instance-action": "terminate"},
        )

    def rebalance_recommended(self, instance_id: str) -> None:
        """Report that a spot instance is at elevated risk of interruption."""
        self._put(
            "EC2 Instance Rebalance Recommendation",
            f"arn:aws:ec2:{self.region}:{self.account}:instance/{instance_id}",
            {"instance-id": instance_id},
        )

    def _put(self, detail_type: str, resource: str, detail: dict[str, str]) -> None:
        entry: PutEventsRequestEntryTypeDef = {
            "Source": "aws.ec2",
            "DetailType": detail_type,
            "Resources": [resource],
            "Detail": json.dumps(detail),
        }
        response = self.client.put_events(Entries=[entry])
        if response["FailedEntryCount"]:
            raise RuntimeError(f"{detail_type} for {resource} was refused: {response['Entries'][0]}")


def _speak_for_aws(params: dict[str, Any], **_: Any) -> None:
    params["headers"][SERVICE_EVENT_HEADER] = "ec2"
