"""The compiled engine decides exactly what the plain one does, which asks the product's own policies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markserve.core.batching import choose_batch_limits
from markserve.core.profiles import LatencyEstimate
from simulator.fast import FastEngine
from simulator.interruptions import Ordered
from simulator.reference import ReferenceEngine
from simulator.registry import policies
from simulator.service import Kind, make_kind
from simulator.simulation import simulate
from simulator.state import SETTLED, Batches, Requests, Terms, Workers
from tests.simulator.rig import a_profile, a_spot_scenario, terms

WINDOW_S = 5.0


def profiled_kinds() -> list[Kind]:
    profile = a_profile()
    return [
        make_kind(
            profile.profile(name),
            choose_batch_limits(estimate=LatencyEstimate(profile.profile(name)), latency_budget_s=budget_s, max_batch_size=8),
        )
        for name, budget_s in (("c5.large", 0.15), ("c5.xlarge", 0.09))
    ]


def copied(requests: Requests) -> Requests:
    return Requests(*(getattr(requests, field.name).copy() for field in dataclasses.fields(Requests)))


def run(
    engine_type: type[FastEngine] | type[ReferenceEngine],
    kinds: list[Kind],
    term: Terms,
    arrivals: Requests,
    workers: Workers,
    rate_rps: float,
    windows: int,
) -> tuple[Requests, list[Batches]]:
    engine = engine_type(kinds, term)
    requests, mine = copied(arrivals), Workers(*(getattr(workers, field.name).copy() for field in dataclasses.fields(Workers)))
    batches, closed = [], 0
    for index in range(windows):
        made = engine.advance(
            requests, mine, rate_rps=rate_rps, from_s=index * WINDOW_S, until_s=(index + 1) * WINDOW_S, first_batch_id=closed
        )
        closed += made.size.size
        batches.append(made)
    return requests, batches


def assert_equal(one: tuple[Requests, list[Batches]], other: tuple[Requests, list[Batches]]) -> None:
    for field in dataclasses.fields(Requests):
        np.testing.assert_array_equal(getattr(one[0], field.name), getattr(other[0], field.name), err_msg=field.name)
    for first, second in zip(one[1], other[1], strict=True):
        for field in dataclasses.fields(Batches):
            np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), err_msg=field.name)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rate_rps=st.floats(1.0, 500.0),
    believed_share=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    fleet=st.lists(st.tuples(st.integers(0, 1), st.floats(0.0, 12.0)), max_size=6),
    spill_available=st.booleans(),
    reserve_s=st.sampled_from([0.05, 0.1, 0.3]),
    keeps_reserve=st.booleans(),
    sees_queue=st.booleans(),
)
def test_fast_engine_equals_the_plain_one(
    seed: int,
    rate_rps: float,
    believed_share: float,
    fleet: list[tuple[int, float]],
    spill_available: bool,
    reserve_s: float,
    keeps_reserve: bool,
    sees_queue: bool,
) -> None:
    rng = np.random.default_rng(seed)
    kinds = profiled_kinds()
    arrivals_s = np.sort(rng.random(rng.poisson(rate_rps * 2 * WINDOW_S))) * 2 * WINDOW_S
    luck = rng.standard_normal((2, arrivals_s.size))
    arrivals = Requests.arriving(arrivals_s, *luck, reply_s=0.002 + 0.04 * rng.random(arrivals_s.size), spill_overhead_s=luck[0])
    added = [(number, kind, max(0.0, serving_s - 6.0)) for number, (kind, serving_s) in enumerate(fleet)]
    workers = Workers.none().replaced(np.empty(0, np.bool_), added, kinds)
    term = terms(spill_available=spill_available, spill_latency_s=reserve_s, keeps_reserve=keeps_reserve, sees_queue=sees_queue)

    plain = run(ReferenceEngine, kinds, term, arrivals, workers, believed_share * rate_rps, 3)
    fast = run(FastEngine, kinds, term, arrivals, workers, believed_share * rate_rps, 3)

    assert_equal(plain, fast)
    assert (fast[0].state == SETTLED).all()


@pytest.mark.parametrize("policy", ["mark", "mark-on-demand", "mark-paper", "all-lambda"])
@pytest.mark.parametrize("can_spill", [True, False])
def test_simulation_is_the_same_with_either_engine(tmp_path: Path, policy: str, can_spill: bool) -> None:
    if policy == "all-lambda" and not can_spill:
        return
    profile = a_profile()
    if not can_spill:
        profile = msgspec.structs.replace(profile, profiles={name: p for name, p in profile.profiles.items() if name != "lambda"})
    interrupts = (Ordered(130.0, 0.5), Ordered(301.234, 1.0))
    scenario = a_spot_scenario(tmp_path, profile=profile, interrupts=interrupts, provisioned=2 if can_spill else 0)

    summaries = []
    for engine in (FastEngine, ReferenceEngine):
        [built] = policies([policy], scenario, forecaster_name="best")
        summary = simulate(scenario, built, tmp_path / engine.__name__, engine=engine)
        summaries.append(msgspec.structs.replace(summary, wall_s=0.0))

    assert summaries[0] == summaries[1]
    # Where nothing can spill, `mark` trusts no spot instance that the small fleet could not lose.
    assert (summaries[0].interruptions > 0) == (policy == "mark-paper" or (policy == "mark" and can_spill))
    for name in ("requests.parquet", "batches.parquet"):
        assert pq.read_table(tmp_path / "FastEngine" / name).equals(pq.read_table(tmp_path / "ReferenceEngine" / name))
    for name in ("instances.csv", "control.csv"):
        assert (tmp_path / "FastEngine" / name).read_text() == (tmp_path / "ReferenceEngine" / name).read_text()
