"""Forecast: each series against its own prediction from level, trend and time of day.

Double exponential smoothing with an additive daily season, one vectorised step a column; the score is the
residual in robust units of the series' own past residuals. State is learned only from learnable columns.
Source: Holt 1957, Winters 1960; residual scale by exponentially weighted absolute deviation.
Blind spot: a fault that was there from the first reading on is this series' normal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors import models
from gpuvigil_detectors.base import Scores, Window
from gpuvigil_detectors.series_state import Array, SeriesState

_SECOND: Final = 1_000_000_000
_DAY_S: Final = 86400
_KIND: Final = "forecast"
_TO_SIGMA: Final = 1.2533  # mean absolute deviation -> standard deviation, normal data
_SCORE_MAX: Final = 50.0  # beyond it odd is odd
_LONG_RUN: Final = 1e-4  # about three hours at 1 Hz
_CLIP: Final = 4.0  # sigmas by which one reading may move the state


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """Weights of one reading in level, trend, residual scale and season; readings before the first opinion.

    season_bins 0 turns the season off; a bin speaks once it was visited on two days.
    sigma_floor_share: residuals below this share of the level are rounding, not oddness; and below
    wide_floor_share of the series' own long-run spread, so that a quiet stretch makes no alarm of the usual.
    """

    level: float = 0.1
    trend: float = 0.0
    scale: float = 0.02
    season: float = 0.3
    season_bins: int = 0
    warmup: int = 60
    sigma_floor_share: float = 0.002
    wide_floor_share: float = 0.3


class Forecast:
    """One metric's series, predicted one reading ahead."""

    name = "forecast"

    def __init__(self, smoothing: Smoothing | None = None) -> None:
        self.smoothing = smoothing or Smoothing()
        bins = (max(1, self.smoothing.season_bins),)
        self.state = SeriesState(
            level=("f8", np.nan, ()), trend=("f8", 0.0, ()), scale=("f8", 0.0, ()), count=("i8", 0, ()),
            mean=("f8", 0.0, ()), wide=("f8", 0.0, ()),
            season=("f8", 0.0, bins), visits=("i8", 0, bins), bin=("i8", -1, ()),
        )  # fmt: skip
        self.learned_ns = 0

    def learn(self, window: Window) -> None:
        """Update from the learnable columns that are newer than what was learned before."""
        self.state.align(window.entities)
        for column in np.flatnonzero(window.time_ns > self.learned_ns):
            self._step(self.state.arrays, window, int(column))
        if len(window.time_ns):
            self.learned_ns = max(self.learned_ns, int(window.time_ns[-1]))

    def score(self, window: Window, fresh: int) -> Scores:
        """Residuals of the newest `fresh` columns in sigmas, float32 [S, fresh]; NaN in warm-up or missing.

        Columns are judged in order, each by the state after those before it; the learned state stays.
        """
        fresh = min(fresh, len(window.time_ns))
        known = SeriesState(**self.state.fields)
        known.entities, known.arrays = self.state.entities, dict(self.state.arrays)
        known.align(window.entities)
        arrays = {name: array.copy() for name, array in known.arrays.items()}
        scores = np.full((len(window.entities), fresh), np.nan, dtype=np.float32)
        for place in range(fresh):
            column = len(window.time_ns) - fresh + place
            scores[:, place] = self._step(arrays, window, column)
        return scores

    def dump(self) -> bytes:
        """The learned state as bytes."""
        arrays = dict(self.state.arrays) | {"entities": np.array(self.state.entities, dtype=np.str_)}
        return models.pack(_KIND, arrays, {"learned_ns": self.learned_ns})

    def load(self, data: bytes) -> None:
        """Take over a dumped state. Raises ModelError when it is not one of this shape."""
        arrays, meta = models.unpack(_KIND, data)
        entities = tuple(arrays.pop("entities").tolist())
        for name, array in self.state.arrays.items():
            got = arrays.get(name)
            if got is None or got.shape != (len(entities), *array.shape[1:]) or got.dtype != array.dtype:
                raise models.ModelError(f"forecast: {name}: expected {array.dtype} [{len(entities)}, ...]")
        self.state.entities, self.state.arrays = entities, {name: arrays[name] for name in self.state.arrays}
        self.learned_ns = int(meta["learned_ns"])

    def _step(self, state: dict[str, Array], window: Window, column: int) -> NDArray[np.float32]:
        """Judge one column and, where it may be learned from and is new, move the state."""
        values = window.values[0, :, column].astype(np.float64)
        present, smoothing = np.isfinite(values), self.smoothing
        slot, season = self._season(state, int(window.time_ns[column]))
        predicted = state["level"] + state["trend"] + season
        residual = np.where(present, values - predicted, np.nan)
        floor = smoothing.sigma_floor_share * np.abs(state["level"]) + np.finfo(np.float32).tiny
        wide = smoothing.wide_floor_share * _TO_SIGMA * state["wide"]
        sigma = np.maximum(np.maximum(_TO_SIGMA * state["scale"], floor), wide)
        ready = present & (state["count"] >= smoothing.warmup)
        score = np.where(ready, np.minimum(np.abs(residual) / sigma, _SCORE_MAX), np.nan)
        learn = present & window.learnable[:, column] & (window.time_ns[column] > self.learned_ns)
        self._move(state, learn, values, residual, sigma)
        if slot is not None:
            self._move_season(state, learn, values, slot)
        return score.astype(np.float32)

    def _move(
        self, state: dict[str, Array], learn: Array, values: Array, residual: Array, sigma: Array
    ) -> None:
        smoothing, first = self.smoothing, learn & (state["count"] == 0)
        ready = state["count"] >= smoothing.warmup
        step = np.where(ready, np.clip(residual, -_CLIP * sigma, _CLIP * sigma), residual)
        early = 1.0 / (state["count"] + 1.0)  # equal weights at first: the mean of what was seen
        move = learn & ~first
        state["level"][move] += (np.maximum(smoothing.level, early) * step + state["trend"])[move]
        state["trend"][move] += (smoothing.trend * smoothing.level * step)[move]
        weight = np.maximum(smoothing.scale, early)
        state["scale"][move] += (weight * (np.abs(step) - state["scale"]))[move]
        long_run = np.maximum(_LONG_RUN, early)
        gap = np.clip(values - state["mean"], -1e30, 1e30)
        state["wide"][move] += (long_run * (np.abs(gap) - state["wide"]))[move]
        state["mean"][move] += (long_run * gap)[move]
        state["level"][first] = state["mean"][first] = values[first]
        state["count"][learn] += 1

    def _season(self, state: dict[str, Array], time_ns: int) -> tuple[int | None, Array]:
        """This column's time of day and what it adds; 0 until the bin was visited on two days."""
        bins = self.smoothing.season_bins
        if not bins:
            return None, np.zeros(len(state["level"]))
        slot = int(time_ns // _SECOND % _DAY_S * bins // _DAY_S)
        return slot, np.where(state["visits"][:, slot] >= 2, state["season"][:, slot], 0.0)

    def _move_season(self, state: dict[str, Array], learn: Array, values: Array, slot: int) -> None:
        entered = learn & (state["bin"] != slot)
        state["visits"][entered, slot] += 1
        state["bin"][learn] = slot
        gap = values - state["level"] - state["season"][:, slot]
        settled = learn & (state["count"] > self.smoothing.warmup)
        state["season"][settled, slot] += (self.smoothing.season * self.smoothing.level * gap)[settled]
