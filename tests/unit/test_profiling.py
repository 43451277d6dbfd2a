"""Profiles are measured upper quantiles, and failures never pass for short runs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from markserve.adapters.memory import MemoryModelRunner, MemoryModelStore
from markserve.errors import InferenceFailed, InvalidRequest
from markserve.messages import Answer, InferenceRequest, ProfilePointRecord, TensorSpec
from markserve.profiling import WARM_UP_RUNS, batch_profile, profile_runner, sample_request, store_profile
from tests.builders import a_model_record, a_profile, a_request, profile_records


class ScriptedRunner:
    """Takes the given durations in turn, on a clock of its own."""

    def __init__(self, durations_s: Sequence[float]) -> None:
        self._durations_s = iter(durations_s)
        self.now_s = 0.0
        self.sizes: list[int] = []

    def clock(self) -> float:
        return self.now_s

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        self.sizes.append(len(batch))
        self.now_s += next(self._durations_s)
        return []


def test_quantiles_are_observed_values_of_the_timed_runs_only() -> None:
    warm_up = [99.0] * WARM_UP_RUNS
    runner = ScriptedRunner([*warm_up, *(float(n) for n in range(100, 0, -1))])

    (point,) = profile_runner(runner, [a_request()], batch_sizes=[4], samples=100, clock=runner.clock)

    assert point == ProfilePointRecord(batch_size=4, p50_s=50.0, p98_s=98.0, p99_s=99.0, samples=100)


def test_sizes_are_measured_in_rounds_so_that_a_disturbance_slows_them_alike() -> None:
    runner = MemoryModelRunner()
    progress: list[tuple[int, int]] = []

    points = profile_runner(
        runner, [a_request()], batch_sizes=[8, 1, 8], samples=2, on_progress=lambda done, total: progress.append((done, total))
    )

    assert [point.batch_size for point in points] == [1, 8]
    assert [len(batch) for batch in runner.batches] == [1, 1, 8, 8, 1, 8, 1, 8]
    assert progress == [(1, 2), (2, 2)]


def test_pause_between_runs_is_not_measured() -> None:
    runner = ScriptedRunner([1.0] * 5)

    def rest() -> None:
        runner.now_s += 60.0

    (point,) = profile_runner(runner, [a_request()], batch_sizes=[1], samples=3, clock=runner.clock, between=rest)

    assert point.p99_s == 1.0
    assert runner.now_s == 305.0


def test_batches_draw_from_all_requests_in_turn() -> None:
    runner = MemoryModelRunner()

    profile_runner(runner, [a_request(request_id=name) for name in "abc"], batch_sizes=[2], samples=1)

    assert runner.batches == [["a", "b"], ["c", "a"], ["b", "c"]]


def test_profiling_fails_when_the_model_fails() -> None:
    runner = MemoryModelRunner(failures={"a": InferenceFailed("the model raised RuntimeError: boom")})

    with pytest.raises(InferenceFailed, match="profiling with batches of 1: the model raised RuntimeError: boom"):
        profile_runner(runner, [a_request(request_id="a")], batch_sizes=[1], samples=1)


@pytest.mark.parametrize(("batch_sizes", "samples"), [([], 1), ([0], 1), ([1], 0)])
def test_profiling_is_refused_when_there_is_nothing_to_measure(batch_sizes: list[int], samples: int) -> None:
    with pytest.raises(InvalidRequest):
        profile_runner(MemoryModelRunner(), [a_request()], batch_sizes=batch_sizes, samples=samples)


def test_profile_of_one_instance_type_leaves_the_others_alone() -> None:
    models = MemoryModelStore(a_model_record())
    points = profile_records(a_profile({1: 0.5}))

    store_profile(models, model="digits", instance_type="c5.xlarge", points=points)

    stored = models.get("digits").profiles
    assert stored["c5.xlarge"] == points
    assert stored["c5.large"] == profile_records()


def test_stored_points_become_the_profile_they_were() -> None:
    assert batch_profile("c5.large", profile_records()) == a_profile()


def test_sample_request_fits_the_declared_inputs() -> None:
    record = a_model_record(
        inputs=(
            TensorSpec(name="image", datatype="FP32", shape=(-1, 3, -1)),
            TensorSpec(name="label", datatype="BYTES", shape=(-1, 1)),
        )
    )

    image, label = sample_request(record, rows=2).inputs

    assert (image.shape, image.data) == ((2, 3, 1), bytes(24))
    assert (label.shape, label.data) == ((2, 1), bytes(8))
