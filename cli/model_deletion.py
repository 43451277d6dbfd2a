"""`markserve models delete`: take a model out of service; nothing that was accepted for it is lost."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import typer

from cli.console import FAILED, Problem, emit_json, err, explained, out
from cli.system import Json
from cli.target import connect_to_stack


@explained()
def delete(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    under_load: Annotated[bool, typer.Option("--under-load", help="Go on though requests still come; they get 404 from now on.")] = False,
    patience: Annotated[float, typer.Option(min=1.0, max=3600.0, help="Longest wait for its queue to empty, in seconds.")] = 180.0,
    json: Json = False,
) -> None:
    """Refuse new requests of a model, wait until what was accepted is answered, and delete its queue; workers drain by themselves."""
    connect_to_stack()
    from cli.traffic import delete_queue, messages_in, recent_requests
    from markserve import wiring
    from markserve.front_view import RECORD_TTL_S
    from markserve.unregistration import unregister_model

    wiring.models().get(model)
    requests = recent_requests(model)
    if requests and not under_load:
        raise Problem(
            f"{model} was asked {requests} times within the last minute; nothing was deleted",
            next_step="stop its clients, or add --under-load: what was accepted is answered first, new requests get 404",
        )
    err.print(f"{model} accepts no more; waiting until its queue is empty", highlight=False)
    done = unregister_model(
        model,
        models=wiring.models(),
        waiting=messages_in,
        delete_queue=delete_queue,
        settle_s=RECORD_TTL_S + wiring.parameters().get(model).rt_max_s,
        patience_s=patience,
        now_s=time.time,
        sleep=time.sleep,
    )
    if json:
        emit_json(msgspec.to_builtins(done))
    if done.left:
        raise Problem(
            f"{done.left} messages are left in the queue of {model} after {done.waited_s:.0f} s; the queue stays",
            next_step="register the model again to have them answered, or delete the queue in AWS's console",
            code=FAILED,
        )
    if not json:
        out.print(f"deleted {model}; its workers drain within a few control cycles", highlight=False)
