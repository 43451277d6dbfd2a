"""Credentials of a role, for processes that stand for what AWS would run under that role.

Only when the embedded AWS enforces policies: it gives zip functions their role's credentials by itself, but the hosts of
image functions and the workers are processes of ours. A session lasts an hour, far longer than a test run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_sts import STSClient

ENFORCED = "MARKSERVE_LOCAL_ENFORCE_IAM"
"""Set for image hosts to `true` when their function is to be held to its role."""


def role_environment(sts: STSClient, role_arn: str) -> dict[str, str]:
    """Return the variables with which a process acts as the role."""
    credentials = sts.assume_role(RoleArn=role_arn, RoleSessionName="markserve-local")["Credentials"]
    return {
        "AWS_ACCESS_KEY_ID": credentials["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": credentials["SecretAccessKey"],
        "AWS_SESSION_TOKEN": credentials["SessionToken"],
    }
