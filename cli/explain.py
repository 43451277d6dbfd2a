"""`markserve explain`: why a plan, an instance, or one request came out as it did."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import BAD_USAGE, Problem, emit_json, emit_table, explained, out, when, working
from cli.instant import instant
from cli.plan import show_plan
from cli.system import Json
from cli.target import connect_to_stack

if TYPE_CHECKING:
    from cli.why import RequestStory
    from markserve.messages import ForecastRecord

EXPLAINED_S = 86_400.0
"""The registry and the logs are searched this far back."""
ENDED_CANARIES_S = 3600.0
"""Canaries that were rolled back are shown with the latest plan for an hour."""
AROUND_S = 300.0
"""Decisions shown with a past plan: those of the five minutes up to then."""


@explained()
def explain(
    instance: Annotated[str | None, typer.Option(help="Tell the story of one instance instead of the latest plan.")] = None,
    request: Annotated[str | None, typer.Option(help="Why one request went where it did, by its x-markserve-request-id.")] = None,
    at: Annotated[str | None, typer.Option(help="The plan in force at a time: 10m (ago), 14:30, 2026-01-31T14:30.")] = None,
    json: Json = False,
) -> None:
    """Tell why: the latest plan with every rejected alternative and its cost, one of the past, one instance, or one request."""
    if sum(given is not None for given in (instance, request, at)) > 1:
        raise Problem("one thing at a time", next_step="give --instance, --request or --at", code=BAD_USAGE)
    at_s = None if at is None else instant(at, now_s=time.time())
    connect_to_stack()
    if instance is not None:
        _explain_instance(instance, as_json=json)
    elif request is not None:
        _explain_request(request, as_json=json)
    else:
        _explain_plan(at_s, as_json=json)


def _explain_plan(at_s: float | None, *, as_json: bool) -> None:
    from cli.why import plan_in_force
    from markserve import wiring

    plan = wiring.control().latest_plan() if at_s is None else plan_in_force(at_s)
    if plan is None:
        said = "nothing was planned yet" if at_s is None else f"no plan was made in the hour before {when(at_s)}"
        raise Problem(said, next_step="a plan comes with the first control cycle; `markserve plan --dry-run` makes one now")
    decisions = [] if at_s is None else wiring.control().decisions(since_s=at_s - AROUND_S, until_s=at_s)
    if as_json:
        emit_json(plan if at_s is None else {"plan": plan, "decisions": decisions})
        return
    show_plan(plan)
    forecasts = [found for model in sorted(plan.demand_rps) if (found := _forecast(model, None if at_s is None else plan.created_at_s))]
    emit_table("Forecasts", ("model", "forecaster", "why"), [(f.model, f.forecaster, f.reason) for f in forecasts])
    if at_s is None:
        now_s = time.time()
        ended = [d for d in wiring.control().decisions(since_s=now_s - ENDED_CANARIES_S, until_s=now_s) if d.event == "canary_rolled_back"]
        if ended:
            emit_table("Canaries rolled back", ("when", "of", "why"), [(when(d.at_s), d.subject, d.reason) for d in ended])
    else:
        rows = [(when(d.at_s), d.event, d.subject, d.reason) for d in decisions]
        emit_table("Decisions up to then", ("when", "what", "of", "why"), rows)


def _forecast(model: str, before_s: float | None) -> ForecastRecord | None:
    """Return a model's latest forecast, or the one that a plan of the past was made from: the last before it."""
    from markserve import wiring

    if before_s is None:
        return wiring.control().latest_forecast(model)
    found = wiring.control().forecasts(model, since_s=before_s - AROUND_S, until_s=before_s + 1e-6)
    return found[-1] if found else None


def _explain_instance(instance_id: str, *, as_json: bool) -> None:
    from markserve import wiring

    found = next((known for known in wiring.instances().list() if known.instance_id == instance_id), None)
    if found is None:
        raise Problem(f"there is no instance {instance_id}", next_step="`markserve status` lists them", code=BAD_USAGE)
    now_s = time.time()
    since_s = max(found.requested_at_s - 1, now_s - EXPLAINED_S)
    log = [d for d in wiring.control().decisions(since_s=since_s, until_s=now_s) if d.subject == instance_id]
    plans = wiring.control().plans(since_s=since_s - AROUND_S, until_s=found.requested_at_s + 1) if found.plan_id else []
    plan = next((made for made in plans if made.plan_id == found.plan_id), None)
    if as_json:
        emit_json({"instance": found, "decisions": log, "plan": plan})
        return
    out.print(f"{instance_id} is {found.state}: {found.offering.key} for {found.model}", highlight=False, soft_wrap=True)
    story = [(found.requested_at_s, "requested", found.reason)]
    marks = (("running", found.running_at_s), ("serving", found.serving_at_s), ("draining", found.drain_at_s))
    story += [(at_s, name, "") for name, at_s in marks if at_s is not None]
    if found.terminated_at_s is not None:
        story.append((found.terminated_at_s, "terminated", found.end_reason or ""))
    story += [(d.at_s, d.event, d.reason) for d in log]
    emit_table("Story", ("ago", "what", "why"), [(f"{now_s - at_s:.0f} s", what, why) for at_s, what, why in sorted(story)])
    if plan is not None:
        rows = [(a.offering, None if a.cost_usd is None else f"{a.cost_usd:.6f} USD", a.reason) for a in plan.alternatives]
        emit_table(f"What {plan.plan_id} considered instead", ("offering", "cost", "why not"), rows)


def _explain_request(request_id: str, *, as_json: bool) -> None:
    import boto3

    from cli.log_lines import of_functions
    from cli.why import request_story
    from markserve import wiring

    stack_name, since_s, until_s = wiring.settings().stack_name, time.time() - EXPLAINED_S, time.time() + 1
    with working("reading the front's log"):
        lines = of_functions(boto3.client("logs"), stack_name, ["api"], since_s=since_s, until_s=until_s, containing=request_id)
    line = next((found for found in reversed(lines) if found.fields().get("request_id") == request_id), None)
    story = request_story(request_id, front_line=line.fields() if line else {}, line_at_s=line.at_s if line else None)
    if story is None:
        step = "the id is in the answer's x-markserve-request-id header; answers are kept for an hour, log lines as long as the stack says"
        raise Problem(f"nothing is known of request {request_id}", next_step=step, code=BAD_USAGE)
    if as_json:
        emit_json(story)
    else:
        _show_request(story)


def _show_request(story: RequestStory) -> None:
    out.print(f"{story.request_id} went to {story.tier}: {story.reason}", markup=False, highlight=False, soft_wrap=True)
    emit_table(
        "Request",
        ("what", "value"),
        [
            ("arrived", when(story.at_s)),
            ("model", story.model or None),
            ("status", story.status),
            ("where the time went", ", ".join(f"{name} {ms:.1f} ms" for name, ms in story.timings_ms.items()) or None),
            ("computed by", story.instance_id or None),
            ("batch", story.batch_size or None),
            ("cold start", "yes" if story.cold_start else "no"),
            ("serving then", ", ".join(story.serving) or "no worker"),
        ],
    )
    rows = [(way.way, None if way.usd is None else f"{1e6 * way.usd:.2f}", way.note) for way in story.ways]
    emit_table("What each way costs", ("way", "USD per million like it", "of which"), rows)
    if story.plan is not None:
        out.print(f"plan in force {story.plan.plan_id}: {story.plan.reason}", markup=False, highlight=False, soft_wrap=True)
