"""A model is taken out of service without losing what was accepted for it."""

from dataclasses import dataclass, field

import pytest

from markserve.adapters.memory import MemoryModelStore
from markserve.errors import UnknownModel
from markserve.unregistration import Unregistered, unregister_model
from tests.builders import MODEL, a_model_record


@dataclass
class World:
    """A clock that sleeping moves, and a queue that answers its messages over time."""

    waiting: list[int]
    now_s: float = 0.0
    deleted: list[str] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def look(self, _url: str) -> int:
        return self.waiting.pop(0) if len(self.waiting) > 1 else self.waiting[0]

    def unregister(self, models: MemoryModelStore, *, patience_s: float = 60.0) -> Unregistered:
        return unregister_model(
            MODEL,
            models=models,
            waiting=self.look,
            delete_queue=self.deleted.append,
            settle_s=3.0,
            patience_s=patience_s,
            now_s=lambda: self.now_s,
            sleep=self.sleep,
        )


def test_queue_goes_once_it_has_been_empty_for_as_long_as_fronts_may_still_accept() -> None:
    models, world = MemoryModelStore(a_model_record(queue_url="queue")), World([2, 1, 0, 1, 0])

    done = world.unregister(models)

    assert world.deleted == ["queue"]
    assert (done.left, done.waited_s) == (0, 6.0)  # the last message was seen after 3 s
    with pytest.raises(UnknownModel):
        models.get(MODEL)


def test_queue_stays_when_nobody_answers_what_is_in_it() -> None:
    world = World([4])

    done = world.unregister(MemoryModelStore(a_model_record(queue_url="queue")), patience_s=10.0)

    assert (done.left, world.deleted) == (4, [])


def test_unknown_model_is_refused_before_anything_happens() -> None:
    with pytest.raises(UnknownModel):
        World([0]).unregister(MemoryModelStore())
