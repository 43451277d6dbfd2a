"""What the LSTM sees of a history: two resolutions of the past, and what earlier hours, days and weeks did ahead of the origin.

Everything is computed once per history in time proportional to its length and then gathered per origin, so that a back-test
of thousands of origins costs little more than its forward passes. Rates enter as square roots (the noise of a Poisson
count is then the same at every level) and leave divided by the origin's own scale, so k times a series is the same sample.

A forecast for `o + a` reads lags of at least one season, never a step from `o` on: see `Season`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from markserve.core.backtest import History
from markserve.errors import InvalidRequest

FINE_STEPS = 60
"""Steps that the encoder sees one by one."""
COARSE_BLOCKS, COARSE_BLOCK_STEPS = 48, 30
"""Before that: the last day, in half hours."""
CONTEXT_STEPS = COARSE_BLOCKS * COARSE_BLOCK_STEPS
"""An origin with no known step among these has no forecast."""
SMOOTHED_STEPS = 15
"""Width of the centred mean and maximum of an earlier day: single minutes of it are mostly noise."""
EARLIER_DAYS, EARLIER_HOURS = 7, 24
"""Seasons that are averaged: a week of days, a day of hours (what jobs started by a clock do at each minute of an hour)."""
SPREAD_FLOOR = 0.01
"""Least spread, relative and in square roots: 2 % of the rate. A constant load is not constant for ever."""
OUTLIER = 1e8
"""A rate this many times the median of the positive ones is a broken counter; next to it sums would lose all others."""
UNITS_MAX = 100.0
"""What lies further above the present scale, 10,000 times its rate, says nothing about it and would drown what does."""
HORIZON_MAX = 60
"""Steps ahead that the lags can serve: a lag of an hour must not reach past the origin."""
STEP_MAX_S = 1200.0
"""Beyond, a day is shorter than the horizon and what is averaged around its lag."""

ANCHORS = ("last", "mean_5", "mean_15", "mean_60", "max_5", "mean_day")
SEASONAL = ("day_sharp", "day", "day_moved", "days", "days_moved", "week", "week_moved", "hours_moved")
"""Values at the same time of earlier seasons; `moved` by what the level has changed since."""
CANDIDATES = (*ANCHORS, *SEASONAL)
SPREADS = ("quiet", "step", "noise", "change_5", "change_15", "change_60")
"""Absolute deviations at the origin: of one step (median, which surges leave alone, and mean), from the mean, over so many steps."""
AHEAD = ("day_spread", "hours_spread", "day_max", "days_max", "hours_max")
"""Of earlier seasons at the step that is forecast: two spreads, then what they reached."""
FINE_CHANNELS, COARSE_CHANNELS = 5, 3
STATIC_CHANNELS = len(SPREADS) + 6
SCALES = (*SPREADS, *AHEAD[:2])
"""What a deviation may be measured in."""
AHEAD_CHANNELS = 2 * len(CANDIDATES) + 2 * len(AHEAD) + 4


@dataclass(frozen=True, slots=True)
class Season:
    """Lengths of an hour (or as many hours as the horizon is long), a day and a week in steps."""

    hour: int
    day: int
    week: int

    @classmethod
    def of(cls, step_s: float) -> Season:
        """Cut time into steps of `step_s`.

        Raises
        ------
        InvalidRequest
            If the steps are too long for the lags to lie before the origin.

        Examples
        --------
        >>> Season.of(60.0)
        Season(hour=60, day=1440, week=10080)
        """
        if not 0 < step_s <= STEP_MAX_S:
            raise InvalidRequest(f"steps of {step_s:g} s: the LSTM takes steps of up to {STEP_MAX_S:g} s", field="step_s")
        hours = math.ceil(HORIZON_MAX * step_s / 3600)
        return cls(hour=round(hours * 3600 / step_s), day=round(86_400 / step_s), week=round(604_800 / step_s))


@dataclass(frozen=True, slots=True)
class Samples:
    """What the network sees at each of B origins for H steps ahead, and what came of it. All but `scale` in its units."""

    fine: Tensor
    """(B, FINE_STEPS, FINE_CHANNELS)"""
    coarse: Tensor
    """(B, COARSE_BLOCKS, COARSE_CHANNELS)"""
    static: Tensor
    """(B, STATIC_CHANNELS)"""
    candidates: Tensor
    """(B, H, candidates): plausible values, 0 where unknown."""
    known: Tensor
    """(B, H, candidates): whether a candidate is known."""
    ahead: Tensor
    """(B, H, AHEAD_CHANNELS)"""
    spreads: Tensor
    """(B, H, scales): how far values lie apart, 0 where unknown, each plus the floor."""
    spreads_known: Tensor
    """(B, H, scales)"""
    target: Tensor
    """(B, H), NaN where unknown."""
    scale: Tensor
    """(B,), square roots of rates, float64. Zero where there is nothing but zeros, NaN where nothing is known."""

    def __len__(self) -> int:
        return len(self.scale)

    def __getitem__(self, index: Tensor) -> Samples:
        return Samples(*(getattr(self, field.name)[index] for field in fields(self)))

    def usable(self) -> Samples:
        """Keep what has a scale and something to learn from."""
        return self[((self.scale > 0) & ~self.target.isnan().all(dim=1)).nonzero().flatten()]

    @classmethod
    def join(cls, parts: Sequence[Samples]) -> Samples:
        """Concatenate along the origins."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


class Lookback:
    """A history, ready to be looked at from any origin.

    Raises
    ------
    InvalidRequest
        If a rate is negative or not finite.
    """

    def __init__(self, history: History, season: Season) -> None:
        rates = torch.tensor([math.nan if rate is None else rate for rate in history], dtype=torch.float64)
        wrong = next((i for i, rate in enumerate(history) if rate is not None and not 0 <= rate < math.inf), None)
        if wrong is not None:
            raise InvalidRequest(f"step {wrong} of the history is {history[wrong]}: rates must be finite and not negative")
        self._season = season
        if (rates > 0).any():
            rates = rates.clamp(max=OUTLIER * float(rates[rates > 0].median()))
        # By the peak first, so that no sum overflows; the origin's scale cancels it.
        self._peak = float(rates.nan_to_num(0.0).max()) if len(rates) else 0.0
        # Time runs from `_pad` on, and what lies before it is unknown; the end is padded by a horizon.
        self._pad = CONTEXT_STEPS + 1
        padding = torch.full((self._pad,), math.nan, dtype=torch.float64)
        self._roots = torch.cat([padding, (rates / (self._peak or 1.0)).sqrt(), padding[:HORIZON_MAX]])
        self._columns = self._at_origin() | self._lagged()

    def samples(self, origins: Sequence[int] | Tensor, ahead: Tensor) -> Samples:
        """Gather what is seen at `origins` of the steps `origin + ahead`; `ahead` is (H,) or (B, H), from 0 on."""
        now = torch.as_tensor(list(origins) if not isinstance(origins, Tensor) else origins, dtype=torch.long) + self._pad - 1
        at = now.unsqueeze(1) + 1 + (ahead if ahead.dim() == 2 else ahead.unsqueeze(0))
        column, season = self._columns, self._season
        anchors = torch.stack([column[name][now] for name in ANCHORS], dim=-1)
        scale = _mean_known(torch.stack([column["mean_60"][now], column["mean_day"][now]]))
        unit = torch.where(scale > 0, scale, 1.0).reshape(-1, 1, 1)

        spreads = torch.stack([column[name][now] for name in SPREADS], dim=-1) / unit[:, 0]
        later = torch.stack([column[name][at] for name in AHEAD], dim=-1) / unit
        candidates = torch.cat([anchors.unsqueeze(1).expand(-1, at.shape[1], -1), self._seasonal(now, at)], dim=-1) / unit
        candidates = candidates.clamp(max=UNITS_MAX)
        scales = torch.cat([spreads.unsqueeze(1).expand(-1, at.shape[1], -1), later[..., :2]], dim=-1).clamp(max=UNITS_MAX)
        base = anchors[:, :1].unsqueeze(1) / unit  # the last known step
        steps = (at - now.unsqueeze(1)).double().unsqueeze(-1)
        step_unit = spreads[:, :1].nan_to_num(0.0).unsqueeze(1) + SPREAD_FLOOR
        reached = torch.cat([later[..., 2:4] - base, later[..., 4:]], dim=-1) / step_unit
        seen = [
            _masked(((candidates - base) / step_unit).asinh() / 2),
            _masked(torch.cat([(later[..., :2] + SPREAD_FLOOR).log(), reached.asinh() / 2], dim=-1)),
            torch.cat([steps / HORIZON_MAX, steps.sqrt() / 8, steps.log() / 4, step_unit.log().expand_as(steps)], dim=-1),
        ]

        past = now.unsqueeze(1) + torch.arange(1 - FINE_STEPS, 1)
        blocks = now.unsqueeze(1) + COARSE_BLOCK_STEPS * torch.arange(1 - COARSE_BLOCKS, 1)
        fine = torch.stack([self._roots[past], _earlier(self._roots, past, season.day), column["hours"][past]], dim=-1) / unit
        fine = fine.clamp(-UNITS_MAX, UNITS_MAX)
        coarse = torch.stack([column["block_mean"][blocks], column["block_max"][blocks]], dim=-1) / unit
        return Samples(
            fine=torch.cat([fine.nan_to_num(0.0), (~fine[..., :2].isnan()).double()], dim=-1).float(),
            coarse=torch.cat([coarse.nan_to_num(0.0), column["block_known"][blocks].unsqueeze(-1)], dim=-1).float(),
            static=self._static(now, spreads, anchors / unit[:, 0]).float(),
            candidates=candidates.nan_to_num(0.0).float(),
            known=~candidates.isnan(),
            ahead=torch.cat(seen, dim=-1).float(),
            spreads=(scales.nan_to_num(0.0) + SPREAD_FLOOR).float(),
            spreads_known=~scales.isnan(),
            target=(self._roots[at] / unit[:, 0]).float(),
            scale=scale * math.sqrt(self._peak),
        )

    def learnable(self, origins: Tensor, horizon_steps: int) -> Tensor:
        """Whether an origin has a positive scale and a known step ahead."""
        known = (~self._roots.isnan()).double().cumsum(dim=0)
        now = origins + self._pad - 1
        ahead = known[(now + horizon_steps).clamp(max=len(known) - 1)] > known[now]
        return ahead & (self._columns["mean_day"][now].nan_to_num(0.0) > 0)

    def moved(self, origins: Tensor) -> Tensor:
        """How far the last known step lies from the last hour's mean, over the mean of that; 0 where unknown."""
        now = origins + self._pad - 1
        moved = (self._columns["last"][now] - self._columns["mean_60"][now]).abs().nan_to_num(0.0)
        return moved / max(float(moved.mean()), 1e-12)

    @property
    def mean_root(self) -> float:
        """Mean square root of the known rates, over that of the highest."""
        return float(self._roots.nanmean()) if self._peak else 1.0

    def _static(self, now: Tensor, spreads: Tensor, anchors: Tensor) -> Tensor:
        """Return how much the load moves, where its level stands, and how much of it is known."""
        column = self._columns
        age = (now - column["last_known_at"][now]).double().clamp(0, self._pad)
        known = torch.stack([(1 + age).log() / 4, (1 + column["known_steps"][now]).log() / 8, column["known_share"][now]], dim=-1)
        levels = (anchors[:, [2, 3, 5]].nan_to_num(0.0) + SPREAD_FLOOR).log()
        return torch.cat([(spreads.nan_to_num(0.0) + SPREAD_FLOOR).log(), levels, known], dim=-1)

    def _seasonal(self, now: Tensor, at: Tensor) -> Tensor:
        """Return the seasonal candidates: as they were, and moved from the level of then to that of now."""
        column, season = self._columns, self._season
        level = column["mean_15"][now]
        level = torch.where(level.isnan(), column["mean_60"][now], level)

        def moved(values: Tensor, level_then: Tensor) -> Tensor:
            return (level + level_then.neg()).unsqueeze(1).add(values).clamp(min=0)

        day, days, week = _earlier(column["smooth"], at, season.day), column["days"][at], _earlier(column["smooth"], at, season.week)
        level_days, hours = column["days_level"][now], _earlier(column["hours"], at, season.hour)
        return torch.stack(
            [
                _earlier(self._roots, at, season.day),
                day,
                moved(day, _earlier(column["mean_15"], now, season.day)),
                days,
                moved(days, level_days),
                week,
                moved(week, _earlier(column["mean_15"], now, season.week)),
                (level.unsqueeze(1) + hours).clamp(min=0),
            ],
            dim=-1,
        )

    def _at_origin(self) -> dict[str, Tensor]:
        """Return trailing statistics: entry `t` knows the steps up to and including `t`."""
        roots = self._roots
        step = torch.arange(len(roots))
        known_at = torch.where(roots.isnan(), -1, step).cummax(dim=0).values
        known = (~roots.isnan()).double()
        column = {
            "last": torch.where(known_at < 0, math.nan, roots[known_at.clamp(min=0)]),
            "last_known_at": known_at.clamp(min=0),
            "known_steps": known.cumsum(dim=0),
            "known_share": _trailing_mean(known, CONTEXT_STEPS),
            "mean_day": _trailing_mean(roots, CONTEXT_STEPS),
            "max_5": _trailing_max(roots, 5),
            "block_mean": _trailing_mean(roots, COARSE_BLOCK_STEPS),
            "block_max": _trailing_max(roots, COARSE_BLOCK_STEPS),
            "block_known": _trailing_mean(known, COARSE_BLOCK_STEPS),
            "quiet": _trailing_median((roots - _shifted(roots, 1)).abs(), FINE_STEPS),
            "step": _trailing_mean((roots - _shifted(roots, 1)).abs(), FINE_STEPS),
        } | {f"mean_{width}": _trailing_mean(roots, width) for width in (5, 15, 60)}
        column["noise"] = _trailing_mean((roots - column["mean_15"]).abs(), FINE_STEPS)
        for distance in (5, 15, 60):
            change = (roots - _shifted(column["mean_5"], distance)).abs()
            column[f"change_{distance}"] = _trailing_mean(change, CONTEXT_STEPS if distance == 60 else 6 * FINE_STEPS)
        return column

    def _lagged(self) -> dict[str, Tensor]:
        """Return what earlier seasons did; entry `t` of `days` and AHEAD knows steps before `t - hour` at most."""
        roots, season = self._roots, self._season
        half = SMOOTHED_STEPS // 2
        trailing = _trailing_mean(roots, SMOOTHED_STEPS)
        smooth = _shifted(trailing, -half)
        above = roots - _trailing_mean(roots, season.hour)
        by_hour = torch.stack([_shifted(above, k * season.hour) for k in range(EARLIER_HOURS + 1)])
        by_day = torch.stack([_shifted(roots, k * season.day) for k in range(1, EARLIER_DAYS + 1)])
        return {
            "smooth": smooth,
            "hours": _mean_known(by_hour[:-1]),
            "hours_spread": _mean_known(by_hour[1:].abs()),
            "hours_max": _max_known(by_hour[1:]),
            "days": _mean_known(by_day),
            "days_max": _max_known(by_day),
            "days_level": _mean_known(torch.stack([_shifted(trailing, k * season.day) for k in range(1, EARLIER_DAYS + 1)])),
            "day_spread": _shifted(_trailing_mean((roots - smooth).abs(), SMOOTHED_STEPS), season.day - half),
            "day_max": _shifted(_trailing_max(roots, SMOOTHED_STEPS), season.day - half),
        }


def _masked(values: Tensor) -> Tensor:
    """Append to the values, 0 where unknown, whether each is known."""
    return torch.cat([values.nan_to_num(0.0), (~values.isnan()).double()], dim=-1)


def _mean_known(stacked: Tensor) -> Tensor:
    """Mean over the first axis of what is known."""
    return stacked.nanmean(dim=0)


def _max_known(stacked: Tensor) -> Tensor:
    """Highest over the first axis of what is known."""
    highest = stacked.nan_to_num(-math.inf).amax(dim=0)
    return torch.where(highest.isinf(), math.nan, highest)


def _earlier(values: Tensor, at: Tensor, lag: int) -> Tensor:
    """Gather `lag` steps before `at`; entry 0 lies in the padding and stands for all before it."""
    return values[(at - lag).clamp(min=0)]


def _shifted(values: Tensor, steps: int) -> Tensor:
    """Move values `steps` later; what has no source is unknown."""
    shifted = torch.full_like(values, math.nan)
    if abs(steps) < len(values):
        if steps >= 0:
            shifted[steps:] = values[: len(values) - steps]
        else:
            shifted[:steps] = values[-steps:]
    return shifted


def _trailing_mean(values: Tensor, width: int) -> Tensor:
    """Mean of what is known among the last `width`, the entry itself included."""
    known = ~values.isnan()
    sums, counts = values.nan_to_num(0.0).cumsum(dim=0), known.double().cumsum(dim=0)
    width = min(width, len(values))
    sums[width:], counts[width:] = sums[width:] - sums[:-width], counts[width:] - counts[:-width]
    return torch.where(counts > 0.5, (sums / counts).clamp(min=0) if bool((values.nan_to_num(0.0) >= 0).all()) else sums / counts, math.nan)


def _trailing_median(values: Tensor, width: int) -> Tensor:
    """Median of what is known among the last `width`, the entry itself included."""
    padded = torch.cat([torch.full((width - 1,), math.nan, dtype=values.dtype), values])
    return padded.unfold(0, width, 1).nanmedian(dim=1).values


def _trailing_max(values: Tensor, width: int) -> Tensor:
    """Highest of what is known among the last `width`, the entry itself included."""
    padded = torch.cat([torch.full((width - 1,), -math.inf, dtype=values.dtype), values.nan_to_num(-math.inf)])
    highest = max_pool1d(padded.reshape(1, 1, -1), width, stride=1).flatten()
    return torch.where(highest.isinf(), math.nan, highest)
