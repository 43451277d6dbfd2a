"""Every port in memory: the tests' and the simulator's world, held to the contract tests of the AWS adapters."""

from __future__ import annotations

from markserve.adapters.memory_fleet import MemoryFleet, MemoryModelRunner, MemorySpilloverInvoker
from markserve.adapters.memory_queues import (
    DeadLetter,
    MemoryEventPublisher,
    MemoryInterruptionNotice,
    MemoryMetricsSink,
    MemoryParameterSource,
    MemoryParameterWriter,
    MemoryWorkQueue,
)
from markserve.adapters.memory_stores import (
    MemoryBlobStore,
    MemoryControlStore,
    MemoryInstanceRegistry,
    MemoryModelStore,
    MemoryResultStore,
    MemoryWindowStore,
)

__all__ = [
    "DeadLetter",
    "MemoryBlobStore",
    "MemoryControlStore",
    "MemoryEventPublisher",
    "MemoryFleet",
    "MemoryInstanceRegistry",
    "MemoryInterruptionNotice",
    "MemoryMetricsSink",
    "MemoryModelRunner",
    "MemoryModelStore",
    "MemoryParameterSource",
    "MemoryParameterWriter",
    "MemoryResultStore",
    "MemorySpilloverInvoker",
    "MemoryWindowStore",
    "MemoryWorkQueue",
]
