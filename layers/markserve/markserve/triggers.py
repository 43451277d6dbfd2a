"""What AWS, or the system itself, hands to a function besides messages: as far as it is read here."""

from __future__ import annotations

from typing import Annotated

import msgspec

from markserve.messages import Id, Name


class QueueMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a queue; its body is read apart, so that a bad one does not hold up the others."""

    message_id: Id = msgspec.field(name="messageId")
    body: str


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """What Lambda reads off a queue at once."""

    messages: tuple[QueueMessage, ...] = msgspec.field(name="Records", default=())


class AuthorizerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP API's question who is calling (payload format 2.0)."""

    headers: dict[str, str] | None = None


class WarmUp(msgspec.Struct, frozen=True, kw_only=True):
    """Asks an environment to get ready, and to be busy for a moment so that concurrent ones take one each."""

    warmup: bool
    hold_s: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0


class ModelWarmUp(WarmUp, frozen=True, kw_only=True):
    """The same, of an environment that has to load a model first."""

    model: Name
