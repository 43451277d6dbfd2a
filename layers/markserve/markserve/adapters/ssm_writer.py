"""`ParameterWriter` on SSM Parameter Store: `/<stack>/<name>`, or `/<stack>/models/<model>/<name>` for one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from markserve.errors import DependencyUnavailable

if TYPE_CHECKING:
    from mypy_boto3_ssm import SSMClient


class SsmParameterWriter:
    """Sets operator parameters."""

    def __init__(self, client: SSMClient, stack_name: str) -> None:
        self._client = client
        self._stack_name = stack_name

    def put(self, name: str, text: str, *, model: str | None = None) -> None:
        path = f"/{self._stack_name}/{name}" if model is None else f"/{self._stack_name}/models/{model}/{name}"
        try:
            self._client.put_parameter(Name=path, Value=text, Type="String", Overwrite=True)
        except (ClientError, BotoCoreError) as error:
            raise DependencyUnavailable(f"{path} was not set: {error}") from error
