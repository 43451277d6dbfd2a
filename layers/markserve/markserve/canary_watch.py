"""Takes the traffic of a canary away that does worse than the live version; part of every control cycle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from markserve.core.canary import Block, CanaryVerdict, epoch_start_s, judge_canary
from markserve.core.traffic import Served, total
from markserve.core.tunables import Tunables
from markserve.errors import MarkserveError, StaleWrite
from markserve.messages import DecisionRecord, Traffic
from markserve.ports import ControlStore, ModelStore, ParameterSource, WindowStore
from markserve.rollout import end_canary
from markserve.telemetry import logger

UNSETTLED_WINDOWS = 2
"""Counting windows that fronts may still report on."""


def roll_back_worse_canaries(
    names: list[str],
    *,
    models: ModelStore,
    windows: WindowStore,
    control: ControlStore,
    parameters: ParameterSource,
    window_s: float,
    now_s: float,
) -> list[str]:
    """Judge each model's canary, end those that do worse, and return their models.

    A model that cannot be judged now is judged in the next cycle: planning does not wait for this.
    """
    ended: list[str] = []
    for model in names:
        try:
            traffic, tunables = models.traffic(model), parameters.get(model)
            if traffic.canary is None or not traffic.canary_weight or not tunables.canary_rollback_enabled:
                continue
            verdict = _judge(traffic, tunables, windows, window_s=window_s, now_s=now_s)
            if not verdict.is_worse:
                logger.info("canary goes on", extra={"model": model, "version": traffic.canary, "reason": verdict.reason})
                continue
            end_canary(traffic, models, now_s=now_s)
        except StaleWrite as error:
            logger.info("canary was changed by somebody else", extra={"model": model, "reason": str(error)})
        except MarkserveError as error:
            logger.warning("canary not judged", extra={"model": model, "reason": str(error)})
        else:
            ended.append(model)
            _tell(traffic, verdict, control, now_s)
    return ended


def _judge(traffic: Traffic, tunables: Tunables, windows: WindowStore, *, window_s: float, now_s: float) -> CanaryVerdict:
    # An answer that is not there by the deadline is late, whenever it is counted.
    settled_s = now_s - window_s - max(UNSETTLED_WINDOWS * window_s, tunables.rt_max_s)
    outcomes: dict[float, dict[str, list[Served]]] = defaultdict(lambda: defaultdict(list))
    for counts in windows.outcomes(traffic.model, since_s=epoch_start_s(traffic.changed_at_s, now_s=now_s), until_s=settled_s):
        served = Served(ok=counts.ok, errors=counts.errors, within_slo=counts.within_slo)
        outcomes[counts.window_at_s][counts.model_version].append(served)
    return judge_canary(
        [_block(by_version, traffic) for _, by_version in sorted(outcomes.items())],
        sl_min=tunables.sl_min,
        false_alarm_rate=tunables.canary_false_alarm_rate,
        error_margin=tunables.canary_error_margin,
    )


def _block(by_version: Mapping[str, list[Served]], traffic: Traffic) -> Block:
    return Block(live=total(by_version.get(traffic.live, ())), canary=total(by_version.get(traffic.canary or "", ())))


def _tell(traffic: Traffic, verdict: CanaryVerdict, control: ControlStore, now_s: float) -> None:
    reason = f"canary {traffic.canary} had {traffic.canary_weight:.0%} of requests and gets none any more: {verdict.reason}"
    logger.error("canary rolled back", extra={"model": traffic.model, "version": traffic.canary, "reason": reason})
    try:
        control.log(DecisionRecord(at_s=now_s, model=traffic.model, subject=traffic.model, event="canary_rolled_back", reason=reason))
    except MarkserveError as error:  # it has ended, and the line above says why
        logger.warning("canary's end not recorded", extra={"model": traffic.model, "reason": str(error)})
