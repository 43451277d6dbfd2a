"""Who changed an operator parameter, when, from what to what: SSM keeps a parameter's last hundred versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from mypy_boto3_ssm import SSMClient


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a parameter, against the one before."""

    name: str
    model: str | None
    at_s: float
    who: str
    """Name of the user or role, and of its session."""
    old: str | None
    """None for the first version that SSM still knows."""
    new: str


def changes(ssm: SSMClient, stack_name: str, names: Sequence[str], *, model: str | None = None) -> list[Change]:
    """List the changes of parameters, newest first; a parameter that is not set has none."""
    root = f"/{stack_name}" if model is None else f"/{stack_name}/models/{model}"
    found = [change for name in names for change in _of(ssm, f"{root}/{name}", name, model)]
    # Turned round after sorting: of two versions written in one millisecond, the later stays first.
    return sorted(found, key=lambda change: change.at_s)[::-1]


def _of(ssm: SSMClient, path: str, name: str, model: str | None) -> list[Change]:
    try:
        pages = list(ssm.get_paginator("get_parameter_history").paginate(Name=path))
    except ssm.exceptions.ParameterNotFound:
        return []
    versions = sorted((version for page in pages for version in page["Parameters"]), key=lambda version: version["Version"])
    olds = [None, *(version["Value"] for version in versions)]
    return [
        Change(
            name=name,
            model=model,
            at_s=version["LastModifiedDate"].timestamp(),
            who=_who(version.get("LastModifiedUser", "")),
            old=old,
            new=version["Value"],
        )
        for old, version in zip(olds, versions, strict=False)
    ]


def _who(arn: str) -> str:
    """Shorten an ARN to what tells people apart.

    >>> _who("arn:aws:sts::123456789012:assumed-role/operator/ann")
    'operator/ann'
    """
    return arn.rsplit(":", 1)[-1].removeprefix("assumed-role/").removeprefix("user/") or "unknown"
