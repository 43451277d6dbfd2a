"""Canaries, rollbacks and classes of urgency as a client meets them: the real front and routes on memory ports."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from markserve.adapters.memory import MemoryInstanceRegistry
from markserve.core.tunables import Tunables
from markserve.core.types import Tier
from markserve.front_view import TRAFFIC_TTL_S
from markserve.messages import Traffic
from tests.builders import MODEL, NOW_S, a_model_record, an_instance, worker_stats
from tests.functions.test_api import INFER, Reply, World, a_triton_event, an_event, an_image

BOTH = ("1", "2")
VERSION = "x-markserve-model-version"


def a_world(*, loaded: tuple[str, ...] = BOTH, weight: float = 0.5, **options: Any) -> World:
    """Version 1 is live, 2 its canary, and one worker has loaded `loaded`."""
    world = World(**options)
    world.instances = MemoryInstanceRegistry(an_instance(instance_id="i-0", stats=worker_stats(versions=loaded)))
    world.models.store(a_model_record(version="2", created_at_s=NOW_S))
    world.models.route(Traffic(model=MODEL, live="1", canary="2", canary_weight=weight, number=1))
    world.front = world.new_front()
    return world


def beat(world: World) -> None:
    world.instances.heartbeat("i-0", at_s=world.clock(), stats=world.instances.list()[0].stats)


def ask(world: World, number: int, **headers: str) -> Reply:
    beat(world)
    return world.infer(image=an_image(float(number)), headers={"Idempotency-Key": f"order-{number}", **headers})


def test_canary_answers_its_share_and_says_so() -> None:
    world = a_world()

    replies = [ask(world, number) for number in range(60)]

    versions = Counter(reply.headers[VERSION] for reply in replies)
    assert set(versions) == {"1", "2"}
    assert 15 <= versions["2"] <= 45
    assert {reply.triton().get_response()["model_version"] for reply in replies if reply.headers[VERSION] == "2"} == {"2"}
    canary = next(reply for reply in replies if reply.headers[VERSION] == "2")
    assert canary.headers["x-markserve-reason"].endswith("; canary, 50% of requests")
    assert {reply.tier for reply in replies} == {"worker"}


def test_retry_meets_the_first_answer_whatever_became_of_traffic() -> None:
    world = a_world()
    before = {number: ask(world, number) for number in range(20)}
    canaries = [number for number, reply in before.items() if reply.headers[VERSION] == "2"]
    world.models.route(Traffic(model=MODEL, live="1", number=2))
    world.clock.sleep(TRAFFIC_TTL_S)

    after = {number: ask(world, number) for number in before}

    assert canaries
    assert {number: (r.status, r.headers[VERSION], r.body) for number, r in after.items()} == {
        number: (r.status, r.headers[VERSION], r.body) for number, r in before.items()
    }


def test_rollback_under_load_answers_everything_and_ends_the_canary_within_the_caches_time() -> None:
    world = a_world(weight=0.9)
    replies: list[tuple[float, Reply]] = []
    for number in range(200):
        if number == 100:
            world.models.route(Traffic(model=MODEL, live="1", number=2))
            rolled_back_at_s = world.clock()
        replies.append((world.clock(), ask(world, number)))
        world.clock.sleep(0.2)

    assert {reply.status for _, reply in replies} == {200}
    late = {reply.headers[VERSION] for at_s, reply in replies if at_s > rolled_back_at_s + TRAFFIC_TTL_S}
    assert late == {"1"}


def test_canary_gets_nothing_before_every_worker_has_loaded_it() -> None:
    world = a_world(loaded=("1",), weight=0.99)

    replies = [ask(world, number) for number in range(20)]

    assert {(reply.headers[VERSION], reply.tier) for reply in replies} == {("1", "worker")}
    assert any("not every worker has loaded the canary 2 yet" in reply.headers["x-markserve-reason"] for reply in replies)


def test_version_that_is_named_is_computed_by_workers_that_have_loaded_it() -> None:
    reply = a_world().infer(path=f"/v2/models/{MODEL}/versions/2/infer")

    assert (reply.status, reply.tier, reply.headers[VERSION]) == (200, "worker", "2")


def test_outcomes_are_counted_by_version_and_class() -> None:
    world = a_world()
    for number in range(20):
        ask(world, number, **{"x-markserve-slo": "standard" if number % 2 else "interactive"})
    world.front.metrics.report(now_s=world.clock())

    counted: Counter[tuple[str, str]] = Counter()
    for batch in world.metrics.batches:
        for counts in batch.outcomes:
            counted[counts.model_version, counts.slo_class] += counts.within_slo
    assert set(counted) == {(version, name) for version in BOTH for name in ("interactive", "standard")}
    assert counted.total() == 20


# --- classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "deadline_s"),
    [({}, 0.2), ({"x-markserve-slo": "interactive"}, 0.2), ({"x-markserve-slo": " Standard "}, 0.8)],
)
def test_class_decides_the_deadline_that_workers_get(headers: dict[str, str], deadline_s: float) -> None:
    world = World()

    reply = world.infer(headers=headers)

    (sent,) = world.sent
    assert sent.deadline_at_s == pytest.approx(NOW_S + deadline_s)
    assert reply.headers["x-markserve-slo"] == headers.get("x-markserve-slo", "interactive").strip().lower()


def test_models_own_factor_decides_its_standard_deadline() -> None:
    world = World()
    world.parameters.by_model[MODEL] = Tunables(rt_max_s=0.2, standard_deadline_factor=10.0)

    world.infer(headers={"x-markserve-slo": "standard"})

    assert world.sent[0].deadline_at_s == pytest.approx(NOW_S + 2.0)


def test_standard_waits_for_a_worker_where_interactive_is_spilled() -> None:
    tiers = {name: World(worker_takes_s=0.4).infer(headers={"x-markserve-slo": name}).tier for name in ("interactive", "standard")}

    assert tiers == {"interactive": "lambda", "standard": "worker"}


def test_standard_in_its_own_time_counts_as_in_time() -> None:
    world = World(worker_takes_s=0.4)
    world.infer(headers={"x-markserve-slo": "standard"})
    world.front.metrics.report(now_s=world.clock())

    (counts,) = [counts for batch in world.metrics.batches for counts in batch.outcomes]
    assert (counts.slo_class, counts.tier, counts.within_slo) == ("standard", Tier.WORKER, 1)


def test_batch_is_accepted_for_later_without_a_deadline_and_never_spilled() -> None:
    world = World(worker_takes_s=5.0, instances=0)

    reply = world.infer(headers={"x-markserve-slo": "batch"})
    pending = world.get(reply.headers["location"])
    world.clock.sleep(6.0)
    fetched = world.get(reply.headers["location"])

    (sent,) = world.sent
    assert (reply.status, sent.deadline_at_s, sent.spill_at_s) == (202, None, None)
    assert (pending.status, fetched.status, fetched.tier) == (202, 200, "worker")
    assert world.spillover.invoked == []


@pytest.mark.parametrize("name", ["urgent", "", "interactive, batch", "x" * 500])
def test_unknown_class_is_refused_with_the_classes_there_are(name: str) -> None:
    reply = World().infer(headers={"x-markserve-slo": name})

    assert reply.status == 400
    assert reply.error.endswith("is not one of interactive, standard, batch")
    assert len(reply.error) < 150


def test_batch_is_refused_where_the_protocol_cannot_answer_later() -> None:
    event = an_event(f"/endpoints/{MODEL}/invocations", body=b"{}", headers={"x-markserve-slo": "batch"})

    reply = World().ask(event)

    assert reply.status == 400
    assert INFER in reply.body.decode()


def test_key_is_one_request_whatever_class_it_is_repeated_with() -> None:
    world = World()
    first = world.ask(a_triton_event(headers={"Idempotency-Key": "k", "x-markserve-slo": "standard"}))

    again = world.ask(a_triton_event(headers={"Idempotency-Key": "k"}))

    assert (first.status, again.status, again.body) == (200, 200, first.body)
    assert len(world.sent) == 1
