"""`markserve status`: what a stack, or the local system, is doing now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import emit_json, emit_table, explained, out
from cli.system import Json
from cli.target import api_url, connect_to_stack, running_system

if TYPE_CHECKING:
    from markserve.console_messages import Service

SLIDING_MINUTES = 5
"""Attainment is shown over the last five minutes."""


@explained()
def status(
    model: Annotated[str | None, typer.Argument(help="Default: every model.")] = None,
    json: Json = False,
) -> None:
    """Show what runs: models and their versions, objective, queue, forecast, plan, instances."""
    is_named = bool(os.environ.get("MARKSERVE_STACK_NAME"))  # asked before connecting, which sets it
    connect_to_stack()
    summary = {"api_url": api_url(None) if is_named else running_system().api_url, **_summary(model)}
    if json:
        emit_json(summary)
        return
    out.print(f"{summary['stack']} at {summary['api_url']}", highlight=False, soft_wrap=True)
    for name, each in summary["models"].items():
        emit_table(name, ("what", "now"), _rows(each))
    out.print(f"plan: {summary['plan']['reason'] if summary['plan'] else 'none yet'}", markup=False, highlight=False, soft_wrap=True)
    emit_table(
        "Instances",
        ("instance", "model", "offering", "state", "answers", "why launched"),
        [(i["instance_id"], i["model"], i["offering"], i["state"], i["completed"], i["reason"]) for i in summary["instances"]],
    )


def _rows(each: dict[str, Any]) -> list[tuple[str, str]]:
    service, forecast, versions = each["service"], each["forecast"], each["versions"]
    canary = f", canary {versions['canary']} with {versions['canary_weight']:.0%}" if versions["canary"] else ""
    return [
        ("version", f"{versions['live']}{canary}"),
        ("objective", f"{service.sl_min:.1%} within {service.rt_max_s:g} s"),
        ("last five minutes", _service_text(service)),
        ("queue", f"{each['queue_depth']} messages waiting"),
        ("forecast", f"at most {forecast['highest_rps']:.1f}/s ahead, by {forecast['forecaster']}" if forecast else "none yet"),
    ]


def _service_text(service: Service) -> str:
    if service.attainment is None:
        return "no requests"
    tiers = ", ".join(f"{tier} {count}" for tier, count in service.by_tier.items() if count)
    return f"{service.requests} requests, {service.attainment:.2%} in time; {tiers}"


def _summary(model: str | None) -> dict[str, Any]:
    from markserve import wiring

    records = [wiring.models().get(model)] if model else wiring.models().list()
    plan = wiring.control().latest_plan()
    return {
        "stack": wiring.settings().stack_name,
        "models": {record.model: _model(record.model, record.queue_url) for record in records},
        "plan": plan and {"plan_id": plan.plan_id, "at_s": plan.created_at_s, "reason": plan.reason, "usd_per_hour": plan.hourly_cost_usd},
        "instances": [
            {
                "instance_id": instance.instance_id,
                "model": instance.model,
                "offering": instance.offering.key,
                "state": instance.state,
                "completed": instance.stats.completed,
                "reason": instance.reason,
            }
            for instance in wiring.instances().list()
            if instance.is_alive and model in (None, instance.model)
        ],
    }


def _model(model: str, queue_url: str) -> dict[str, Any]:
    from markserve import wiring

    forecast, traffic = wiring.control().latest_forecast(model), wiring.models().traffic(model)
    return {
        "versions": {"live": traffic.live, "canary": traffic.canary, "canary_weight": traffic.canary_weight},
        "service": wiring.console().overview(model, minutes=SLIDING_MINUTES).service,
        "queue_depth": wiring.work_queue(queue_url).depth(),
        "forecast": forecast
        and {"forecaster": forecast.forecaster, "highest_rps": max(max(rates) for rates in forecast.rates_rps.values())},
    }
