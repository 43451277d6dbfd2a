"""`BlobStore` on S3: model artefacts, forecaster weights and payloads too large to travel inline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from markserve.errors import ConfigurationError, DependencyUnavailable, InvalidRequest, MarkserveError, Throttled

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NOT_FOUND = frozenset({"NoSuchKey", "404"})
THROTTLED = frozenset({"SlowDown", "RequestLimitExceeded", "Throttling", "ThrottlingException"})
UNAVAILABLE = frozenset({"InternalError", "ServiceUnavailable", "RequestTimeout"})


class S3BlobStore:
    """Objects of one bucket."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def get(self, key: str) -> bytes:
        try:
            return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except (ClientError, BotoCoreError) as error:
            raise _translate(error, f"s3://{self._bucket}/{key}", key) from error

    def put(self, key: str, data: bytes) -> None:
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data)
        except (ClientError, BotoCoreError) as error:
            raise _translate(error, f"s3://{self._bucket}/{key}", key) from error


def _translate(error: ClientError | BotoCoreError, subject: str, key: str) -> MarkserveError:
    if not isinstance(error, ClientError):
        return DependencyUnavailable(f"S3 did not answer for {subject}: {error}")
    code, status = error.response.get("Error", {}).get("Code", ""), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in NOT_FOUND:
        return InvalidRequest(f"no object {key!r}", field="key")
    if code in THROTTLED:
        return Throttled(f"S3 throttled {subject}: {code}")
    if code in UNAVAILABLE or status >= 500:
        return DependencyUnavailable(f"S3 failed on {subject}: {code}")
    return ConfigurationError(f"S3 refused {subject}: {error}")
