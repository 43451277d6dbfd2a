"""Bad events and messages: one log line each, in the same words everywhere: why, and no more of what was sent than that takes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from aws_lambda_powertools.metrics import MetricUnit

from markserve.errors import InvalidRequest
from markserve.telemetry import MESSAGES_UNREADABLE, logger, metrics

FACT_MAX_CHARACTERS = 100
REASON_MAX_CHARACTERS = 400


def log_refusal(what: str, error: InvalidRequest, **facts: str) -> None:
    """Log that something was refused, and why; `facts` help to find it."""
    told = {name: _printable(text)[:FACT_MAX_CHARACTERS] for name, text in facts.items()}
    logger.error("refused", extra={"refused": what, "reason": _printable(str(error))[:REASON_MAX_CHARACTERS], **told})


@contextmanager
def refusing(what: str, *, flush: bool = False) -> Generator[None, None, None]:
    """Log and count what is refused within, and raise it: the caller retries, catches or sets aside, as it is configured.

    Parameters
    ----------
    flush
        For handlers that do not write their metrics at their end.
    """
    try:
        yield
    except InvalidRequest as error:
        log_refusal(what, error)
        metrics.add_metric(name=MESSAGES_UNREADABLE, unit=MetricUnit.Count, value=1)
        if flush:
            metrics.flush_metrics()
        raise


def _printable(text: str) -> str:
    """Replace half of a surrogate pair, which JSON may hold and no stream can write."""
    return text.encode("utf-8", "replace").decode()
