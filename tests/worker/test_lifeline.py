"""What the control plane hears from a worker, and how the worker drains."""

from __future__ import annotations

import pytest

from markserve.adapters.memory import MemoryInstanceRegistry
from markserve.core.lifecycle import NOTICE_RESERVE_S
from markserve.core.tunables import Tunables
from markserve.core.types import InstanceState
from markserve.errors import ConfigurationError
from markserve.messages import InstanceDrained, InstanceReady
from tests.builders import NOW_S
from tests.worker.rig import INSTANCE_ID, Rig


def test_instance_serves_and_says_so_when_warmed_up() -> None:
    rig = Rig()

    rig.lifeline.announce_ready(patience_s=15.0, pause=rig.clock.pause)

    assert rig.state() is InstanceState.SERVING
    assert rig.events.events == [InstanceReady(model="digits", instance_id=INSTANCE_ID, at_s=NOW_S)]


def test_restarted_worker_goes_on_when_its_instance_serves_already() -> None:
    rig = Rig()
    rig.lifeline.announce_ready(patience_s=15.0, pause=rig.clock.pause)
    rig.restart()

    rig.lifeline.announce_ready(patience_s=15.0, pause=rig.clock.pause)

    assert rig.state() is InstanceState.SERVING
    assert rig.engine.drain_reason is None


def test_start_is_refused_when_the_registry_never_learns_of_the_instance() -> None:
    rig = Rig()
    rig.instances = MemoryInstanceRegistry()
    rig.restart()

    with pytest.raises(ConfigurationError, match="i-0001 is not in the registry after 15 s"):
        rig.lifeline.announce_ready(patience_s=15.0, pause=rig.clock.pause)


def test_heartbeat_reports_the_figures() -> None:
    rig = Rig()
    rig.send_async("r1")
    rig.receive()
    rig.run_one()

    rig.lifeline.beat()

    (instance,) = rig.instances.list()
    assert instance.heartbeat_at_s == rig.clock.now_s
    assert (instance.stats.completed, instance.stats.batches, instance.stats.in_flight) == (1, 1, 0)
    assert instance.stats.service_rate_rps == rig.pacing.limits.service_rate_rps


def test_worker_drains_when_the_registry_says_so() -> None:
    rig = Rig()
    rig.lifeline.announce_ready(patience_s=15.0, pause=rig.clock.pause)
    for number in range(3):
        rig.send_async(f"r{number}")
    rig.receive()
    rig.instances.transition(
        INSTANCE_ID, expected=[InstanceState.SERVING], state=InstanceState.DRAINING, at_s=rig.clock.now_s, reason="scale in"
    )

    rig.lifeline.beat()
    rig.send_async("for somebody else")
    rig.receive()
    while rig.run_one():
        pass

    assert rig.engine.wait_until_drained(0.0)
    assert [rig.answer(f"r{number}") is not None for number in range(3)] == [True] * 3
    assert rig.answer("for somebody else") is None
    rig.lifeline.conclude()
    assert isinstance(rig.events.events[-1], InstanceDrained)
    rig.clock.pause(31.0)
    assert rig.queue.depth() == 1  # the answered ones are deleted


@pytest.mark.parametrize("ended", [InstanceState.FAILED, InstanceState.TERMINATED])
def test_worker_stops_when_the_registry_holds_its_instance_for_ended(ended: InstanceState) -> None:
    rig = Rig()
    rig.instances.transition(INSTANCE_ID, expected=[InstanceState.WARMING], state=ended, at_s=NOW_S, reason="gave up on it")

    rig.lifeline.beat()

    assert rig.engine.drain_reason is not None
    assert rig.engine.drain_reason.startswith(f"the registry says {ended}")
    assert rig.state() is ended


def test_drain_is_recorded_when_it_began_here() -> None:
    rig = Rig()
    rig.lifeline.announce_ready(patience_s=15.0, pause=rig.clock.pause)

    rig.engine.drain("SIGTERM")
    rig.lifeline.beat()

    assert rig.state() is InstanceState.DRAINING


def test_worker_finishes_what_it_holds_when_the_spot_notice_leaves_time() -> None:
    rig = Rig()
    rig.send_async("r1")
    rig.receive()
    rig.notice.at_s = NOW_S + 20.0

    rig.lifeline.heed_interruption()
    rig.run_one()

    assert rig.answer("r1") is not None
    assert rig.engine.wait_until_drained(0.0)


def test_worker_serves_on_after_a_spot_notice_and_drains_shortly_before_the_end() -> None:
    rig = Rig()
    rig.lifeline.announce_ready(patience_s=15.0, pause=rig.clock.pause)
    rig.notice.at_s = NOW_S + 120.0

    rig.lifeline.heed_interruption()
    rig.lifeline.beat()

    assert rig.state() is InstanceState.DRAINING  # nobody plans with it any more
    assert rig.engine.drain_reason is None
    rig.clock.now_s = NOW_S + 85.0
    rig.lifeline.heed_interruption()
    rig.send_async("r1")
    rig.receive()
    rig.run_one()
    assert rig.answer("r1") is not None
    assert rig.engine.stats().service_rate_rps > 0

    rig.clock.now_s = NOW_S + 120.0 - NOTICE_RESERVE_S
    rig.lifeline.heed_interruption()

    assert rig.engine.drain_reason == "spot interruption notice"
    assert rig.engine.stats().service_rate_rps == 0


def test_worker_that_hears_of_its_interruption_from_the_registry_first_serves_on() -> None:
    rig = Rig()
    rig.lifeline.announce_ready(patience_s=15.0, pause=rig.clock.pause)
    rig.instances.transition(
        INSTANCE_ID, expected=(InstanceState.SERVING,), state=InstanceState.DRAINING, at_s=NOW_S, reason="spot interruption warning"
    )
    rig.notice.at_s = NOW_S + 120.0

    rig.lifeline.beat()

    assert rig.engine.drain_reason is None


def test_worker_that_is_leaving_still_stops_when_told_to() -> None:
    rig = Rig()
    rig.lifeline.announce_ready(patience_s=15.0, pause=rig.clock.pause)
    rig.notice.at_s = NOW_S + 120.0
    rig.lifeline.heed_interruption()

    rig.engine.drain("SIGTERM")

    assert rig.engine.wait_until_drained(0.0)


def test_worker_gives_back_what_it_cannot_finish_before_the_interruption() -> None:
    rig = Rig()
    rig.send_async("r1")
    rig.receive()
    rig.notice.at_s = NOW_S + 1.0

    rig.lifeline.heed_interruption()

    assert not rig.run_one()
    assert rig.queue.depth() == 1  # visible at once, for another worker
    assert rig.engine.wait_until_drained(0.0)


def test_batches_follow_the_objective_when_the_operator_changes_it() -> None:
    rig = Rig()
    before = rig.pacing.limits.max_batch_size

    rig.parameters.tunables = Tunables(rt_max_s=0.13)
    rig.lifeline.beat()

    assert rig.pacing.limits.max_batch_size < before
