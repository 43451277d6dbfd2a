"""What forecasting carries from one control cycle to the next, and its form in a stored record."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from markserve.core.backtest import QUANTILES
from markserve.errors import InferenceFailed
from markserve.forecasters.residuals import STANDINGS
from markserve.forecasters.series import Floats

STATE_VERSION = 2
Arrays32 = NDArray[np.float32]


def _nothing() -> Floats:
    return np.zeros(0)


@dataclass(kw_only=True)
class BankState:
    """Scores, calibration and pending forecasts of every forecaster, by (forecaster, step ahead, quantile) where not said otherwise."""

    names: list[str]
    ahead: list[int]
    """Steps ahead that are forecast and scored; those between are interpolated."""
    until_s: float
    until_step: int
    """Absolute number of the step that comes next."""
    champion: str = ""
    surprises: int = 0
    """Steps in a row at which the champion was far off; negative while such a shift is dying down."""
    weights: Floats = field(default_factory=_nothing)
    """Of the linear regression, (step ahead, feature); empty until fitted."""
    tables: Floats = field(default_factory=_nothing)
    """Error quantiles, (forecaster, standing, step ahead, quantile)."""
    trust: Floats = field(default_factory=_nothing)
    unit: Floats = field(default_factory=_nothing)
    """(forecaster, step ahead)"""
    refreshed: Floats = field(default_factory=_nothing)
    """Step at which a forecaster's table was made, by forecaster."""
    offsets: Floats = field(default_factory=_nothing)
    """Online calibration, in square roots."""
    losses: Floats = field(default_factory=_nothing)
    """Discounted pinball losses."""
    reference: Floats = field(default_factory=_nothing)
    """Those of persistence at the same origins."""
    scored: Floats = field(default_factory=_nothing)
    """Discounted number of scored outcomes, (forecaster, step ahead)."""
    pending: Arrays32 = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """Forecasts whose outcomes are not all known, (slot, forecaster, step ahead, quantile), in square roots."""
    pending_at: Floats = field(default_factory=_nothing)
    """Origin of each slot; -1 for none."""
    served: Arrays32 = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """What the planner was given, (slot, step ahead, quantile)."""
    covered: Floats = field(default_factory=_nothing)
    """Discounted number of outcomes at or below what was served, (step ahead, quantile)."""
    tried: Floats = field(default_factory=_nothing)
    """Discounted number of outcomes, (step ahead)."""

    @classmethod
    def new(cls, names: list[str], ahead: list[int], *, until_s: float, until_step: int) -> BankState:
        """Begin with nothing known."""
        count, steps, quantiles, slots = len(names), len(ahead), len(QUANTILES), max(ahead)
        return cls(
            names=list(names),
            ahead=list(ahead),
            until_s=until_s,
            until_step=until_step,
            tables=np.zeros((count, len(STANDINGS) + 1, steps, quantiles)),
            trust=np.zeros((count, steps, quantiles)),
            unit=np.zeros((count, steps)),
            refreshed=np.full(count, -1.0),
            offsets=np.zeros((count, steps, quantiles)),
            losses=np.zeros((count, steps, quantiles)),
            reference=np.zeros((count, steps, quantiles)),
            scored=np.zeros((count, steps)),
            pending=np.full((slots, count, steps, quantiles), np.nan, dtype=np.float32),
            pending_at=np.full(slots, -1.0),
            served=np.full((slots, steps, quantiles), np.nan, dtype=np.float32),
            covered=np.zeros((steps, quantiles)),
            tried=np.zeros(steps),
        )

    def admit(self, name: str) -> int:
        """Return a forecaster's position; one that is new is appended with nothing known of it."""
        if name in self.names:
            return self.names.index(name)
        one = BankState.new([name], self.ahead, until_s=self.until_s, until_step=self.until_step)
        self.names.append(name)
        for part in ("tables", "trust", "unit", "refreshed", "offsets", "losses", "reference", "scored"):
            setattr(self, part, np.concatenate([getattr(self, part), getattr(one, part)]))
        self.pending = np.concatenate([self.pending, one.pending], axis=1)
        return len(self.names) - 1

    def dismiss(self, name: str) -> None:
        """Forget a forecaster."""
        at = self.names.index(name)
        self.names.pop(at)
        for part in ("tables", "trust", "unit", "refreshed", "offsets", "losses", "reference", "scored"):
            setattr(self, part, np.delete(getattr(self, part), at, axis=0))
        self.pending = np.delete(self.pending, at, axis=1)

    def to_bytes(self) -> bytes:
        """Encode as an npz archive, without pickles."""
        told = {name: getattr(self, name) for name in _VALUES}
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        buffer = io.BytesIO()
        header = np.frombuffer(json.dumps({"version": STATE_VERSION, **told}).encode(), dtype=np.uint8)
        np.savez(buffer, header=header, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> BankState:
        """Decode.

        Raises
        ------
        InferenceFailed
            If it is not such a record, or one of another version.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                told = json.loads(archive["header"].tobytes())
                arrays = {name: archive[name] for name in _ARRAYS}
        except Exception as error:  # numpy, zipfile and json each raise their own; all mean the same here
            raise InferenceFailed(f"the stored state of forecasting cannot be read: {error}") from error
        if told.pop("version", None) != STATE_VERSION:
            raise InferenceFailed("the stored state of forecasting is of another version")
        return cls(**told, **arrays)


_VALUES = ("names", "ahead", "until_s", "until_step", "champion", "surprises")
_ARRAYS = tuple(spec.name for spec in fields(BankState) if spec.name not in _VALUES)
