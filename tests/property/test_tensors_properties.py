"""Invariants of tensors at the edge, for any values and any bytes."""

from __future__ import annotations

import json
from math import prod

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from markserve.errors import InvalidRequest
from markserve.messages import Tensor
from markserve.protocol import tensors

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""These check what comes out, not how fast a shared machine is."""

DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
SHAPES = st.lists(st.integers(-1, 4), max_size=4).map(tuple)


@st.composite
def typed_arrays(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    finite = {"elements": {"allow_nan": False, "allow_infinity": False}} if datatype.startswith("FP") else {}
    return datatype, draw(arrays(DTYPES[datatype], array_shapes(max_dims=4, max_side=4), **finite))


@UNHURRIED
@given(typed_arrays())
def test_flat_and_nested_json_give_numpys_own_bytes(typed: tuple[str, np.ndarray]) -> None:
    datatype, values = typed
    for form in (values.tolist(), values.ravel().tolist()):
        assert tensors.data_from_json("x", datatype, values.shape, json.dumps(form).encode()) == values.tobytes()


@UNHURRIED
@given(typed_arrays())
def test_binary_data_is_accepted_and_comes_back_as_the_same_values(typed: tuple[str, np.ndarray]) -> None:
    datatype, values = typed
    tensors.check_data("x", datatype, values.shape, values.tobytes())

    tensor = Tensor(name="x", datatype=datatype, shape=values.shape, data=values.tobytes())

    assert tensors.nest(tensors.values_of(tensor), values.shape) == values.tolist()


@UNHURRIED
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_strings_round_trip(words: list[str]) -> None:
    data = tensors.pack_values("x", "BYTES", words)

    assert tensors.values_of(Tensor(name="x", datatype="BYTES", shape=(len(words),), data=data)) == words


@UNHURRIED
@given(st.sampled_from([*sorted(tensors.ELEMENT_BYTES), "BYTES"]), SHAPES, st.binary(max_size=40))
def test_data_that_passes_holds_exactly_the_elements_of_its_shape(datatype: str, shape: tuple[int, ...], data: bytes) -> None:
    try:
        tensors.check_data("x", datatype, shape, data)
    except InvalidRequest:
        return
    if datatype == "BYTES":
        assert len(tensors.split_bytes_elements("x", data)) == prod(shape)
    else:
        assert len(data) == prod(shape) * tensors.ELEMENT_BYTES[datatype]


@UNHURRIED
@given(
    st.sampled_from([*sorted(tensors.ELEMENT_BYTES), "BYTES"]), SHAPES, st.binary(max_size=60) | st.text('[]1,. "-eN\\u{}').map(str.encode)
)
def test_no_json_text_raises_anything_but_invalid_request(datatype: str, shape: tuple[int, ...], text: bytes) -> None:
    try:
        data = tensors.data_from_json("x", datatype, shape, text)
    except InvalidRequest:
        return
    tensors.check_data("x", datatype, shape, data)
