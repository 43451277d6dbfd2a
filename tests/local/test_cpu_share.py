"""Emulated instance sizes: a runner that gets a share of a core takes as long as that share would."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from local.cpu_share import CPU_SHARES, DIGIT_CPU_S, VARIABLE, CpuShareRunner, SkippedIdle, cpu_shares, emulate_sizes
from local.worker import cpu_share
from markserve.errors import ConfigurationError
from markserve.messages import Answer, InferenceRequest
from markserve.profiling import profile_runner
from tests.builders import a_request, an_answer


class Machine:
    """A core whose clocks the test moves: a run uses `cpu_s` of it and takes `elapsed_s`."""

    def __init__(self, *, cpu_s: float, elapsed_s: float) -> None:
        self._used = (cpu_s, elapsed_s)
        self.cpu_s = self.now_s = 0.0
        self.idled: list[float] = []

    def run(self, batch: Sequence[InferenceRequest]) -> list[Answer | Exception]:
        self.cpu_s += self._used[0]
        self.now_s += self._used[1]
        return [an_answer(request_id=request.request_id) for request in batch]

    def sleep(self, seconds: float) -> None:
        self.idled.append(seconds)
        self.now_s += seconds

    def shared(self, share: float) -> CpuShareRunner:
        return CpuShareRunner(self, share, cpu_clock=lambda: self.cpu_s, clock=lambda: self.now_s, sleep=self.sleep)


def test_batch_takes_its_cpu_time_over_the_share() -> None:
    machine = Machine(cpu_s=0.25, elapsed_s=0.25)

    (answer,) = machine.shared(0.25).run([a_request(request_id="r1")])

    assert isinstance(answer, Answer)
    assert answer.request_id == "r1"
    assert machine.idled == [0.75]
    assert machine.now_s == 1.0


def test_waiting_for_a_busy_core_counts_as_idling() -> None:
    machine = Machine(cpu_s=0.25, elapsed_s=0.75)

    machine.shared(0.25).run([a_request()])

    assert machine.now_s == 1.0


def test_runner_does_not_idle_when_it_had_less_than_its_share() -> None:
    machine = Machine(cpu_s=0.25, elapsed_s=2.0)

    machine.shared(0.25).run([a_request()])

    assert machine.idled == []


def test_whole_core_is_not_slowed() -> None:
    machine = Machine(cpu_s=0.25, elapsed_s=0.25)

    machine.shared(1.0).run([a_request()])

    assert machine.idled == []


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_share_is_refused_when_it_is_none(share: float) -> None:
    with pytest.raises(ValueError, match="share must lie in"):
        Machine(cpu_s=1.0, elapsed_s=1.0).shared(share)


def test_profile_on_skipped_idle_is_the_profile_of_the_share() -> None:
    machine, idle = Machine(cpu_s=0.25, elapsed_s=0.25), SkippedIdle(clock_s=lambda: machine.now_s)
    runner = CpuShareRunner(machine, 0.25, cpu_clock=lambda: machine.cpu_s, clock=idle.clock, sleep=idle.sleep)

    (point,) = profile_runner(runner, [a_request()], batch_sizes=[1], samples=3, clock=idle.clock)

    assert (point.p50_s, point.p98_s) == (1.0, 1.0)
    assert machine.idled == []


def test_share_comes_from_the_instance_type() -> None:
    assert cpu_share({"MARKSERVE_INSTANCE_TYPE": "c5.large"}) == CPU_SHARES["c5.large"]
    assert cpu_share({"MARKSERVE_INSTANCE_TYPE": "m5.large", "MARKSERVE_LOCAL_CPU_SHARES": '{"m5.large": 0.5}'}) == 0.5


@pytest.mark.parametrize("slowness", [0.5, 1.0, 2.5])
def test_emulated_size_is_as_fast_on_every_machine(slowness: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    digit_cpu_s = slowness * DIGIT_CPU_S

    undo = emulate_sizes(digit_cpu_s)
    shares = cpu_shares(os.environ)
    undo()

    assert {name: digit_cpu_s / share for name, share in shares.items()} == pytest.approx(
        {name: DIGIT_CPU_S / share for name, share in CPU_SHARES.items()}
    )
    assert VARIABLE not in os.environ


def test_size_has_a_whole_core_where_even_that_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)

    emulate_sizes(1000 * DIGIT_CPU_S)

    assert set(cpu_shares(os.environ).values()) == {1.0}


def test_shares_that_were_given_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, '{"m5.large": 0.5}')

    undo = emulate_sizes(0.1)
    shares = cpu_shares(os.environ)
    undo()

    assert shares == {"m5.large": 0.5}
    assert os.environ[VARIABLE] == '{"m5.large": 0.5}'


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"MARKSERVE_INSTANCE_TYPE": "p5.48xlarge"}, "no CPU share for instance type 'p5.48xlarge'"),
        ({"MARKSERVE_LOCAL_CPU_SHARES": "c5.large=0.5"}, "MARKSERVE_LOCAL_CPU_SHARES"),
    ],
)
def test_worker_is_refused_when_its_share_is_unknown(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        cpu_share(environ)
