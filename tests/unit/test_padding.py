"""Which declarations of padding are refused, what requests of unequal length share, and what each gets back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from markserve.core.types import Tier
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.messages import Answer, Follows, InferenceRequest, ModelRecord, Padding, Stack, Tensor, TensorSpec, decode, encode
from markserve.padding import check_padding, completed
from markserve.profiling import sample_request
from markserve.protocol import oip, sagemaker
from markserve.stacking import run_requests
from tests.builders import a_model_record, a_request

TOKENS = TensorSpec(name="tokens", datatype="INT16", shape=(-1, -1), pad=Padding(value=7, buckets=(4, 8)))
MASK = TensorSpec(name="mask", datatype="UINT8", shape=(-1, -1), mask_of="tokens")
LENGTH = TensorSpec(name="length", datatype="INT32", shape=(-1,), length_of="tokens")
SCORES = TensorSpec(name="scores", datatype="INT16", shape=(-1, -1), follows=Follows(input="tokens", axis=1))


def a_record(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (SCORES,)) -> ModelRecord:
    return a_model_record(inputs=inputs or (TOKENS,), outputs=outputs)


def tokens(*rows: Sequence[int]) -> Tensor:
    data = struct.pack(f"<{sum(map(len, rows))}h", *[value for row in rows for value in row])
    return Tensor(name="tokens", datatype="INT16", shape=(len(rows), len(rows[0])), data=data)


def of_rows(*rows: Sequence[int], record: ModelRecord | None = None) -> InferenceRequest:
    return a_request(inputs=completed({"tokens": tokens(*rows)}, record or a_record()))


class Echo:
    """Returns its first input, and remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[list[Stack]] = []

    def __call__(self, inputs: Sequence[Stack]) -> list[Stack]:
        self.given.append(list(inputs))
        return [inputs[0]]

    @property
    def passes(self) -> list[list[tuple[int, ...]]]:
        return [[stack.shape for stack in given] for given in self.given]


def values(tensor: Tensor | Stack, code: str = "h") -> list[int]:
    return list(struct.unpack(f"<{len(tensor.data) // struct.calcsize(code)}{code}", tensor.data))


def outputs(results: Sequence[Answer | Exception]) -> list[tuple[tuple[int, ...], list[int]]]:
    assert all(isinstance(result, Answer) for result in results), results
    return [(result.outputs[0].shape, values(result.outputs[0])) for result in results if isinstance(result, Answer)]


def test_requests_of_unequal_length_share_a_pass_and_get_their_own_length_back() -> None:
    model = Echo()

    results = run_requests(model, [of_rows([1, 2], [3, 4]), of_rows([5, 6, 7, 8, 9])], a_record(), tier=Tier.WORKER)

    assert model.passes == [[(3, 8)]]
    assert values(model.given[0][0]) == [1, 2, *[7] * 6, 3, 4, *[7] * 6, 5, 6, 7, 8, 9, 7, 7, 7]
    assert outputs(results) == [((2, 2), [1, 2, 3, 4]), ((1, 5), [5, 6, 7, 8, 9])]


def test_pass_is_as_long_as_the_next_bucket_of_its_longest_request() -> None:
    model = Echo()

    run_requests(model, [of_rows([1, 2]), of_rows([1, 2, 3])], a_record(), tier=Tier.WORKER)

    assert model.passes == [[(2, 4)]]


def test_request_that_is_alone_is_padded_too_so_that_company_changes_nothing() -> None:
    model = Echo()

    (result,) = run_requests(model, [of_rows([1])], a_record(), tier=Tier.LAMBDA)

    assert model.passes == [[(1, 4)]]
    assert outputs([result]) == [((1, 1), [1])]


def test_without_a_declaration_requests_of_unequal_length_never_share_a_pass() -> None:
    model = Echo()
    record = a_record(TensorSpec(name="tokens", datatype="INT16", shape=(-1, -1)), outputs=(msgspec.structs.replace(SCORES, follows=None),))
    batch = [of_rows([1, 2], record=record), of_rows([1, 2, 3], record=record), of_rows([3, 4], record=record)]

    results = run_requests(model, batch, record, tier=Tier.WORKER)

    assert model.passes == [[(2, 2)], [(1, 3)]]
    assert outputs(results) == [((1, 2), [1, 2]), ((1, 3), [1, 2, 3]), ((1, 2), [3, 4])]


def test_other_free_dimensions_still_separate_passes() -> None:
    model = Echo()
    wide = TensorSpec(name="tokens", datatype="INT16", shape=(-1, 2, -1), pad=Padding(buckets=(2,)))
    record = a_record(wide, outputs=(TensorSpec(name="y", datatype="INT16", shape=(-1, 2, -1), follows=Follows(input="tokens", axis=2)),))
    tensor = Tensor(name="tokens", datatype="INT16", shape=(1, 2, 1), data=struct.pack("<2h", 5, 6))

    (result,) = run_requests(model, [a_request(inputs=(tensor,))], record, tier=Tier.WORKER)

    assert values(model.given[0][0]) == [5, 0, 6, 0]
    assert outputs([result]) == [((1, 2, 1), [5, 6])]


def test_mask_and_length_that_a_request_leaves_out_are_filled_in_and_padded() -> None:
    model = Echo()
    record = a_record(TOKENS, MASK, LENGTH)

    run_requests(model, [of_rows([1], [2], record=record), of_rows([1, 2, 3], record=record)], record, tier=Tier.WORKER)

    (given,) = model.given
    assert [stack.shape for stack in given] == [(3, 4), (3, 4), (3,)]
    assert values(given[1], "B") == [1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 0]
    assert values(given[2], "i") == [1, 1, 3]


def test_mask_that_a_request_sends_is_kept() -> None:
    sent = Tensor(name="mask", datatype="UINT8", shape=(1, 2), data=b"\x00\x01")

    assert oip.check_inputs([sent, tokens([5, 6])], a_record(TOKENS, MASK)) == (tokens([5, 6]), sent)


def test_mask_of_another_length_is_refused() -> None:
    sent = Tensor(name="mask", datatype="UINT8", shape=(1, 3), data=bytes(3))

    with pytest.raises(InvalidRequest, match="input 'mask': has length 3, 'tokens' has 2"):
        oip.check_inputs([tokens([5, 6]), sent], a_record(TOKENS, MASK))


def test_request_longer_than_the_last_bucket_is_refused_at_the_edge() -> None:
    body = msgspec.json.encode({"inputs": [{"name": "tokens", "datatype": "INT16", "shape": [1, 9], "data": [0] * 9}]})

    with pytest.raises(InvalidRequest, match="input 'tokens': dimension 1 is 9, the model takes at most 8"):
        oip.decode_infer(body, {}, a_record())


def test_what_nobody_can_fill_in_is_missed() -> None:
    with pytest.raises(InvalidRequest, match="inputs: missing 'tokens', 'mask'"):
        completed({}, a_record(TOKENS, MASK))


def test_sagemaker_s_instances_need_only_the_input_that_is_not_filled_in() -> None:
    call = sagemaker.decode_invocation(b'{"instances": [[1, 2, 3]]}', {}, a_record(TOKENS, MASK, LENGTH))

    assert [tensor.shape for tensor in call.inputs] == [(1, 3), (1, 3), (1,)]


def test_too_long_request_that_reached_a_queue_fails_alone() -> None:
    model = Echo()

    long, short = run_requests(model, [a_request(inputs=(tokens([0] * 9),)), of_rows([1])], a_record(), tier=Tier.WORKER)

    assert isinstance(long, InvalidRequest)
    assert isinstance(short, Answer)


def test_request_that_spoils_a_padded_pass_fails_alone() -> None:
    def picky(inputs: Sequence[Stack]) -> list[Stack]:
        if -1 in values(inputs[0]):
            raise InferenceFailed("the model raised")
        return [inputs[0]]

    bad, good = run_requests(picky, [of_rows([-1]), of_rows([1, 2, 3, 4, 5])], a_record(), tier=Tier.WORKER)

    assert isinstance(bad, InferenceFailed)
    assert outputs([good]) == [((1, 5), [1, 2, 3, 4, 5])]


def test_output_that_does_not_follow_as_declared_fails() -> None:
    def short(inputs: Sequence[Stack]) -> list[Stack]:
        return [Stack("INT16", (inputs[0].shape[0], 3), bytes(6 * inputs[0].shape[0]))]

    (result,) = run_requests(short, [of_rows([1, 2])], a_record(), tier=Tier.WORKER)

    assert isinstance(result, InferenceFailed)
    assert str(result) == "output 'scores' of shape [1, 3] does not follow 'tokens', 4 long, in dimension 1"


def test_trial_requests_are_as_long_as_a_bucket_the_last_one_by_default() -> None:
    record = a_record(TOKENS, MASK)

    assert [tensor.shape for tensor in sample_request(record, rows=2).inputs] == [(2, 8), (2, 8)]
    assert [tensor.shape for tensor in sample_request(record, bucket=0).inputs] == [(1, 4), (1, 4)]


def test_declarations_survive_the_record_s_trip_and_records_without_them_stay_as_they_were() -> None:
    record = a_record(TOKENS, MASK, LENGTH)

    assert decode(encode(record), ModelRecord) == record
    assert msgspec.to_builtins(TensorSpec(name="x", datatype="FP32", shape=(-1, 4))) == {"name": "x", "datatype": "FP32", "shape": (-1, 4)}


def padded(**overrides: Any) -> TensorSpec:
    return msgspec.structs.replace(TOKENS, **overrides)


@pytest.mark.parametrize(
    ("inputs", "answers", "message"),
    [
        ([padded(pad=Padding(buckets=()))], [], "input 'tokens': buckets .* must be positive and ascending, at least one"),
        ([padded(pad=Padding(buckets=(8, 4)))], [], r"buckets \[8, 4\] must be positive and ascending"),
        ([padded(pad=Padding(buckets=(4, 4)))], [], r"buckets \[4, 4\] must be positive and ascending"),
        ([padded(pad=Padding(buckets=(0, 4)))], [], r"buckets \[0, 4\] must be positive and ascending"),
        ([padded(shape=(-1, 4))], [], r"padding needs one free dimension beside the batch, shape \[-1, 4\]"),
        ([padded(shape=(-1, -1, -1))], [], "padding needs one free dimension"),
        ([padded(pad=Padding(value=0.5, buckets=(4,)))], [], "input 'tokens': a value does not fit INT16"),
        ([padded(pad=Padding(value=1 << 20, buckets=(4,)))], [], "input 'tokens': a value does not fit INT16"),
        ([padded(datatype="BOOL")], [], "pad value 7 is neither true nor false"),
        ([padded(datatype="BF16")], [], "BF16 cannot be padded"),
        ([TOKENS, padded(name="x", mask_of="tokens")], [], "input 'x': can be padded, a mask or a length, not several"),
        (
            [TOKENS, msgspec.structs.replace(MASK, mask_of="token")],
            [],
            "`mask_of` names 'token', which is no padded input; there is tokens",
        ),
        ([MASK], [], "`mask_of` names 'tokens', which is no padded input; there is none"),
        ([TOKENS, msgspec.structs.replace(MASK, shape=(-1, 8))], [], "input 'mask': padding needs one free dimension"),
        ([TOKENS, msgspec.structs.replace(LENGTH, datatype="FP32")], [], "input 'length': a length is one of INT32"),
        ([TOKENS, msgspec.structs.replace(LENGTH, shape=(-1, 2))], [], "input 'length': a length is one of"),
        ([msgspec.structs.replace(TOKENS, follows=SCORES.follows)], [], "input 'tokens': `follows` is for outputs"),
        ([TOKENS], [msgspec.structs.replace(SCORES, pad=TOKENS.pad)], "output 'scores': `pad`, `mask_of` and `length_of` are for inputs"),
        ([TOKENS], [msgspec.structs.replace(SCORES, follows=Follows(input="x", axis=1))], "`follows` names 'x', which is no padded input"),
        (
            [TOKENS],
            [msgspec.structs.replace(SCORES, follows=Follows(input="tokens", axis=0))],
            "dimension 0 .* is not free, or is the batch",
        ),
        ([TOKENS], [msgspec.structs.replace(SCORES, follows=Follows(input="tokens", axis=2))], "dimension 2 .* is not free"),
        ([TOKENS], [msgspec.structs.replace(SCORES, shape=(-1, 8))], r"dimension 1 of \[-1, 8\] cannot follow an input: it is not free"),
    ],
)
def test_declaration_that_means_nothing_is_refused(inputs: list[TensorSpec], answers: list[TensorSpec], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_padding(inputs, answers)


def test_declaration_that_means_something_is_accepted() -> None:
    check_padding([TOKENS, MASK, LENGTH], [SCORES])
