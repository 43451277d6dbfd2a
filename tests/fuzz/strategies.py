"""What might arrive: values of any kind, and valid messages spoilt in some way."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import strategies as st

from markserve.errors import InvalidRequest
from markserve.messages import decode, encode

NESTED = 5000
DEEP_TEXT = "[" * NESTED + "]" * NESTED
BELOW_TEXT = '{"schema_version":1,"unknown":' + '{"x":[' * (NESTED // 2) + "]}" * (NESTED // 2) + "}"
"""The same within a field that nobody knows, which a decoder has to skip."""


def deep() -> Any:
    """A list in a list, deeper than any recursion goes."""
    value: Any = []
    for _ in range(NESTED):
        value = [value]
    return value


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "\x00", "\ud800", "x" * 5000, "../..", "a\r\nb: c", -1, 0, 2**63, 2**70, 10**400, math.nan, math.inf, -math.inf])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3), max_leaves=8
)
objects = st.dictionaries(st.text(max_size=10), values, max_size=4)


@st.composite
def spoilt(draw: st.DrawFn, *messages: Any) -> Any:
    """A valid message with fields of it replaced, dropped or added, at any depth."""
    message = json.loads(encode(draw(st.sampled_from(messages))))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = message
        while isinstance(place, dict) and place:
            name = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[name], dict) or draw(st.booleans()):
                break
            place = place[name]
        if isinstance(place, dict):
            name = draw(st.sampled_from(sorted(place)) | st.text(max_size=10)) if place else draw(st.text(max_size=10))
            if draw(st.booleans()) or name not in place:
                place[name] = draw(values)
            else:
                del place[name]
    return message


def bodies(*messages: Any) -> st.SearchStrategy[str]:
    """Text of messages: spoilt, cut off, not JSON, nested too deeply, of a version to come, of numbers beyond a float's."""
    whole = spoilt(*messages).map(json.dumps)
    cut = st.tuples(whole, st.integers(0, 200)).map(lambda pair: pair[0][: pair[1]])
    newer = st.sampled_from(messages).map(lambda m: json.dumps({**json.loads(encode(m)), "schema_version": 99}))
    beyond = st.sampled_from(messages).map(lambda m: encode(m).decode().replace("1700000000.0", "1e999"))
    return st.one_of(whole, cut, newer, beyond, values.map(json.dumps), st.text(max_size=50), st.sampled_from([DEEP_TEXT, BELOW_TEXT]))


def is_readable(body: str, message_type: type[Any]) -> bool:
    try:
        decode(body, message_type)
    except InvalidRequest:
        return False
    return True
