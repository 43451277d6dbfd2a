"""`TraceSink` on X-Ray, for processes that have no daemon beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from markserve.errors import DependencyUnavailable

if TYPE_CHECKING:
    from mypy_boto3_xray import XRayClient

PER_CALL = 50
"""Segment documents that PutTraceSegments takes at once."""


class XRayTraceSink:
    """Sends finished segments."""

    def __init__(self, client: XRayClient) -> None:
        self._client = client

    def send(self, segments: Sequence[str]) -> None:
        try:
            for start in range(0, len(segments), PER_CALL):
                self._client.put_trace_segments(TraceSegmentDocuments=list(segments[start : start + PER_CALL]))
        except (ClientError, BotoCoreError) as error:
            raise DependencyUnavailable(f"X-Ray did not take {len(segments)} segments: {error}") from error
