"""What becomes of a received message: held for a batch, refused with an answer, or let go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markserve.core.types import Tier
from markserve.errors import InvalidRequest, MarkserveError, Transient
from markserve.messages import Answer, AnswerError, InferenceRequest
from markserve.payloads import fetch_inputs
from markserve.ports import BlobStore, ModelRunner, ReceivedRequest
from markserve.telemetry import logger
from worker.mailbox import Finished, Mailbox

POISON_DEATHS = 2
"""Workers that died holding a request, the last one running it alone, until it counts as the cause."""
UNAVAILABLE_PAUSE_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A request held for its batch, its inputs inline."""

    received: ReceivedRequest
    request: InferenceRequest
    rows: int
    received_at_s: float
    is_suspect: bool
    """A worker died holding it, so it runs alone."""


class Intake:
    """Judges messages. Safe to share between threads.

    Parameters
    ----------
    runner_for
        Gives the runner of a model version, loading it on first use: here, so that the runner's thread never loads.
    """

    def __init__(
        self,
        *,
        instance_id: str,
        blobs: BlobStore,
        mailbox: Mailbox,
        runner_for: Callable[[str], ModelRunner],
        pause: Callable[[float], object],
    ) -> None:
        self._instance_id = instance_id
        self._blobs = blobs
        self._mailbox = mailbox
        self._runner_for = runner_for
        self._pause = pause

    def judge(self, received: ReceivedRequest, now_s: float) -> Work | Finished | None:
        """Say what becomes of a message; None when it is already dealt with.

        A message is received again because a worker died holding it (or lost touch for the visibility timeout). It
        may have been answered all the same; if not, it runs alone; and if that worker dies too, it is not run again.
        """
        deaths = received.receive_count - 1 + received.request.suspect
        if deaths >= POISON_DEATHS:
            reason = f"not run: {deaths} workers died or fell silent holding it, the last one running it alone"
            return self._refuse(received, AnswerError(status=500, message=reason), now_s, dead_letter_reason=reason)
        try:
            if deaths and self._mailbox.is_answered(received.request.request_id):
                self._mailbox.forget([received])
                return None
            request = fetch_inputs(received.request, self._blobs)
            self._runner_for(request.model_version)
        except Transient as error:
            logger.warning("%s: given back, it cannot be prepared now: %s", received.request.request_id, error)
            self._mailbox.give_back(received)
            self._pause(UNAVAILABLE_PAUSE_S)
            return None
        except InvalidRequest as error:
            return self._refuse(received, AnswerError(status=error.status, message=str(error)), now_s)
        except MarkserveError as error:
            return self._refuse(received, AnswerError(status=500, message=str(error)), now_s)
        rows = next((tensor.shape[0] for tensor in request.inputs if tensor.shape), 1)
        return Work(received=received, request=request, rows=max(1, rows), received_at_s=now_s, is_suspect=deaths > 0)

    def _refuse(self, received: ReceivedRequest, error: AnswerError, now_s: float, *, dead_letter_reason: str | None = None) -> Finished:
        logger.warning("%s: refused: %s", received.request.request_id, error.message)
        answer = Answer(
            request_id=received.request.request_id, tier=Tier.WORKER, error=error, instance_id=self._instance_id, finished_at_s=now_s
        )
        return Finished(received=received, answer=answer, dead_letter_reason=dead_letter_reason)
