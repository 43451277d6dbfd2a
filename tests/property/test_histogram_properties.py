import math

from hypothesis import given
from hypothesis import strategies as st

from markserve.core.histogram import GROWTH, LOWEST_S, bucket_index, bucket_upper_s, fraction_within, merge, quantile_s

latencies = st.floats(min_value=LOWEST_S, max_value=100.0)
samples = st.lists(latencies, min_size=1, max_size=50)


def histogram(values: list[float]) -> dict[int, int]:
    return merge(*({bucket_index(value): 1} for value in values))


@given(latencies)
def test_bucket_holds_the_latency(latency_s: float) -> None:
    index = bucket_index(latency_s)

    assert latency_s <= bucket_upper_s(index)
    assert index == 0 or latency_s > bucket_upper_s(index - 1)


@given(samples, st.floats(min_value=0.001, max_value=1.0))
def test_quantile_is_never_too_low_and_at_most_one_bucket_too_high(values: list[float], q: float) -> None:
    exact = sorted(values)[max(1, math.ceil(q * len(values) - 1e-9)) - 1]

    estimate = quantile_s(histogram(values), q)

    assert estimate is not None
    assert exact <= estimate <= exact * GROWTH * (1 + 1e-9)


@given(samples, samples)
def test_merging_equals_counting_together(first: list[float], second: list[float]) -> None:
    assert merge(histogram(first), histogram(second)) == merge(histogram(first + second))


@given(samples, latencies)
def test_fraction_within_is_never_too_high(values: list[float], limit_s: float) -> None:
    exact = sum(value <= limit_s for value in values) / len(values)

    assert 0 <= fraction_within(histogram(values), limit_s) <= exact
