"""Breadth-first search over everything that can happen, on code that can only be run forward.

The first violation found has a shortest trace. States are told apart by `World.state()`, which must hold everything that the
future depends on; every enabled action of each of them is tried once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Action = tuple[str, ...]


class Violation(Exception):
    """Something happened that must not; the message says what."""


class World(Protocol):
    """A system whose nondeterminism is all in `do`."""

    def actions(self) -> Sequence[Action]:
        """Everything that can happen now, in a fixed order."""

    def do(self, action: Action) -> None:
        """Let it happen. Raises `Violation`."""

    def state(self) -> Hashable:
        """All that the future depends on."""

    def check(self) -> None:
        """Raise `Violation` where an invariant does not hold."""

    def close(self) -> None:
        """End what still runs."""


@dataclass(kw_only=True)
class Explored:
    """What a search came to."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    quiet: int = 0
    """States in which nothing is left to happen."""
    seconds: float = 0.0
    complete: bool = False
    violation: str | None = None
    trace: list[Action] = field(default_factory=list)


def explore(
    build: Callable[[], World], *, max_states: int, progress: Callable[[Explored], None] = lambda _: None, progress_every: int = 500
) -> Explored:
    """Visit every reachable state, or `max_states` of them."""
    result, began_s = Explored(), time.monotonic()
    world = build()
    seen = {hash(world.state())}
    frontier: deque[tuple[Action, ...]] = deque([()])
    world.close()
    result.states = 1
    while frontier:
        path = frontier.popleft()
        for world, step in _successors(build, path, result):
            if result.violation is not None or result.states >= max_states:
                result.seconds = time.monotonic() - began_s
                return result
            key = hash(world.state())
            if key not in seen:
                seen.add(key)
                frontier.append(step)
                result.states += 1
                result.depth = max(result.depth, len(step))
                if result.states % progress_every == 0:
                    result.seconds = time.monotonic() - began_s
                    progress(result)
            world.close()
    result.complete = True
    result.seconds = time.monotonic() - began_s
    return result


def _successors(build: Callable[[], World], path: tuple[Action, ...], result: Explored) -> Iterator[tuple[World, tuple[Action, ...]]]:
    """Reach the state of `path` again, once for each thing that can happen there, and let it happen."""
    world = replay(build, path)
    actions = world.actions()
    if not actions:
        result.quiet += 1
    for number, action in enumerate(actions):
        world = world if number == 0 else replay(build, path)
        step = (*path, action)
        try:
            world.do(action)
            world.check()
        except Violation as violation:
            result.violation, result.trace = str(violation), list(step)
        result.transitions += 1
        yield world, step


def replay(build: Callable[[], World], path: Sequence[Action]) -> World:
    """Run the same choices again."""
    world = build()
    for action in path:
        world.do(action)
    return world
