import math

import pytest

from markserve.core.histogram import HIGHEST_INDEX, bucket_index, bucket_upper_s, fraction_within, from_text, merge, quantile_s


def test_an_edge_falls_into_its_own_bucket_and_just_above_into_the_next() -> None:
    for index in range(HIGHEST_INDEX + 1):
        upper_s = bucket_upper_s(index)
        assert bucket_index(upper_s) == index
        assert bucket_index(math.nextafter(upper_s, math.inf)) == min(index + 1, HIGHEST_INDEX)


@pytest.mark.parametrize(("latency_s", "index"), [(-1.0, 0), (0.0, 0), (1e-4, 0), (1e9, HIGHEST_INDEX), (math.inf, HIGHEST_INDEX)])
def test_latency_is_clamped_when_it_is_out_of_range(latency_s: float, index: int) -> None:
    assert bucket_index(latency_s) == index


def test_bucket_refuses_when_latency_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="not a number"):
        bucket_index(math.nan)


def test_merge_adds_counts_when_buckets_coincide() -> None:
    assert merge({1: 2, 5: 1}, {5: 3}, {}) == {1: 2, 5: 4}


@pytest.mark.parametrize(("q", "index"), [(0.01, 3), (0.5, 3), (0.51, 7), (0.98, 7), (0.99, 9), (1.0, 9)])
def test_quantile_is_the_nearest_ranks_bucket(q: float, index: int) -> None:
    assert quantile_s({3: 50, 7: 48, 9: 2}, q) == bucket_upper_s(index)


def test_quantile_is_none_when_nothing_was_counted() -> None:
    assert quantile_s({}, 0.98) is None
    assert quantile_s({4: 0}, 0.98) is None


def test_quantile_refuses_when_q_is_no_share() -> None:
    with pytest.raises(ValueError, match="q must"):
        quantile_s({1: 1}, 0.0)


def test_fraction_counts_the_straddling_bucket_as_late() -> None:
    index = bucket_index(0.2)

    assert fraction_within({index - 1: 9, index: 1}, 0.2) == 0.9
    assert fraction_within({index - 1: 9, index: 1}, bucket_upper_s(index)) == 1.0


def test_fraction_is_one_when_nothing_was_counted() -> None:
    assert fraction_within({}, 0.2) == 1.0


def test_histogram_is_read_from_text_when_it_comes_off_the_wire() -> None:
    assert from_text({"0": 1, "156": 2}) == {0: 1, 156: 2}
