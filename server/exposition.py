"""Counters in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from server.counters import BUCKETS_S
from server.engine import Engine


def exposition(engines: Mapping[str, Engine], *, connections: int, is_draining: bool) -> str:
    """Render every metric of every model."""
    lines = [
        *_metric("markserve_connections", "gauge", "Open client connections.", [("", connections)]),
        *_metric("markserve_draining", "gauge", "1 while the server drains.", [("", int(is_draining))]),
    ]
    outcomes = [
        (f'{{model="{name}",outcome="{outcome}"}}', getattr(engine.counters, outcome))
        for name, engine in engines.items()
        for outcome in ("answered", "invalid", "failed", "shed")
    ]
    lines += _metric("markserve_requests_total", "counter", "Requests by outcome.", outcomes)
    for name, kind, text, value in _PER_MODEL:
        lines += _metric(name, kind, text, [(f'{{model="{model}"}}', value(engine)) for model, engine in engines.items()])
    lines += ["# HELP markserve_latency_seconds First byte of a request to its reply.", "# TYPE markserve_latency_seconds histogram"]
    for model, engine in engines.items():
        counts = engine.counters.latency_counts
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), accumulate(counts), strict=True):
            lines.append(f'markserve_latency_seconds_bucket{{model="{model}",le="{bound}"}} {count}')
        lines.append(f'markserve_latency_seconds_sum{{model="{model}"}} {engine.counters.latency_sum_s}')
        lines.append(f'markserve_latency_seconds_count{{model="{model}"}} {sum(counts)}')
    return "\n".join(lines) + "\n"


_PER_MODEL: tuple[tuple[str, str, str, Callable[[Engine], float]], ...] = (
    ("markserve_within_objective_total", "counter", "Answers within their objective.", lambda e: e.counters.within_objective),
    ("markserve_batches_total", "counter", "Batches computed.", lambda e: e.counters.batches),
    ("markserve_batch_rows_total", "counter", "Rows computed.", lambda e: e.counters.rows),
    ("markserve_compute_seconds_total", "counter", "Time in the model.", lambda e: e.counters.compute_s),
    ("markserve_model_deaths_total", "counter", "Times the model's process ended.", lambda e: e.counters.deaths),
    ("markserve_model_ready", "gauge", "1 when the model serves.", lambda e: int(e.is_ready)),
    ("markserve_held_requests", "gauge", "Requests that wait or are being computed.", lambda e: e.held),
    ("markserve_held_bytes", "gauge", "Tensor bytes that wait or are being computed.", lambda e: e.held_bytes),
    ("markserve_batch_limit_rows", "gauge", "Largest batch at present.", lambda e: e.pacing.limits.max_batch_size if e.pacing else 0),
    (
        "markserve_service_rate_rps",
        "gauge",
        "Rows per second at that batch.",
        lambda e: e.pacing.limits.service_rate_rps if e.pacing else 0,
    ),
)


def _metric(name: str, kind: str, text: str, samples: list[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{labels} {value}"
