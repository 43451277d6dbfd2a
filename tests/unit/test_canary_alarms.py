"""The comparison that ADR 17 rests on: its two tests tell good from bad, and looking often is what sets them apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from benchmarks.canary_alarms import blocks_of, evidence_ends_it, fisher_ends_it, requests_until_ended


@pytest.mark.parametrize("ends", [fisher_ends_it, evidence_ends_it])
def test_a_broken_canary_is_ended_and_a_perfect_one_is_not(ends: object) -> None:
    rng = np.random.default_rng(3)
    broken, perfect = (
        blocks_of(rng, windows=20, window_s=60.0, rate_rps=10.0, live_fails=0.02, canary_fails=fails) for fails in (0.5, 0.0)
    )

    assert ends(broken, false_alarm_rate=0.01)  # type: ignore[operator]
    assert not ends(perfect, false_alarm_rate=0.01)  # type: ignore[operator]


def test_one_look_is_fishers_own_test() -> None:
    rng = np.random.default_rng(4)
    for fails in (0.02, 0.05, 0.1):
        [block] = blocks_of(rng, windows=1, window_s=60.0, rate_rps=10.0, live_fails=0.02, canary_fails=fails)
        table = [[block.canary.errors, block.canary.ok], [block.live.errors, block.live.ok]]
        chance = float(fisher_exact(table, alternative="greater").pvalue)

        assert fisher_ends_it([block], false_alarm_rate=chance * 1.001)
        assert not fisher_ends_it([block], false_alarm_rate=chance * 0.999)


def test_looking_often_ends_more_good_canaries_by_fishers_test_than_by_evidence() -> None:
    rng = np.random.default_rng(5)
    good = [blocks_of(rng, windows=60, window_s=60.0, rate_rps=10.0, live_fails=0.02, canary_fails=0.02) for _ in range(150)]

    by_fisher, by_evidence = (sum(ends(blocks, false_alarm_rate=0.01) for blocks in good) for ends in (fisher_ends_it, evidence_ends_it))
    assert by_fisher > 3
    assert by_evidence <= 3


def test_a_worse_canary_answers_fewer_requests_before_it_is_ended() -> None:
    rng = np.random.default_rng(6)
    assert requests_until_ended(rng, fails=1.0) < requests_until_ended(rng, fails=0.2) < 600
