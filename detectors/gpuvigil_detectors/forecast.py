"""Forecast: each series against its own predictions from level, trend and time of day.

Two levels, a quick one and a slow one: a jump is odd against both, a creep against the slow one only, and a
series is as odd as the worse of its two residuals, each in robust units of its own past. One vectorised step
a column; state is learned only from learnable columns.
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
_CLIP: Final = 200.0  # sigmas by which one reading may move the state: a bound on absurd numbers alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """Weights of one reading in levels, trend, residual scale and season; readings before the first opinion.

    season_bins 0 turns the season off; a bin speaks once it was visited on two days.
    scale is slow, so that a fault that lasts does not become its own yardstick.
    sigma_floor_share: residuals below this share of the level are rounding, not oddness; and below
    wide_floor_share of the series' own long-run spread, so that a quiet stretch makes no alarm of the usual.
    """

    level: float = 0.1
    slow: float = 0.01
    trend: float = 0.0
    scale: float = 1e-4
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
            level=("f8", np.nan, (2,)), trend=("f8", 0.0, ()), scale=("f8", 0.0, (2,)), count=("i8", 0, ()),
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
        residual = (values - season)[:, None] - state["level"]
        residual[:, 0] -= state["trend"]
        floor = np.maximum(
            smoothing.sigma_floor_share * np.abs(state["level"][:, 1]) + np.finfo(np.float32).tiny,
            smoothing.wide_floor_share * _TO_SIGMA * state["wide"],
        )
        sigma = np.maximum(_TO_SIGMA * state["scale"], floor[:, None])
        odd = np.minimum((np.abs(residual) / sigma).max(axis=1), _SCORE_MAX)
        score = np.where(present & (state["count"] >= smoothing.warmup), odd, np.nan)
        learn = present & window.learnable[:, column] & (window.time_ns[column] > self.learned_ns)
        if learn.any():
            self._move(state, np.flatnonzero(learn), values, residual, sigma)
            if slot is not None:
                self._move_season(state, learn, values, slot)
        return score.astype(np.float32)

    def _move(
        self, state: dict[str, Array], learn: NDArray[np.int64], values: Array, residual: Array, sigma: Array
    ) -> None:
        """Move the rows `learn`: equal weights at first, the mean of what was seen, then each its own."""
        smoothing, count, value = self.smoothing, state["count"][learn], values[learn]
        early = 1.0 / (count + 1.0)
        reach = np.where((count >= smoothing.warmup)[:, None], _CLIP * sigma[learn], 1e30)
        step = np.clip(residual[learn], -reach, reach)
        weight = np.maximum((smoothing.level, smoothing.slow), early[:, None])
        level = state["level"][learn] + weight * step
        level[:, 0] += state["trend"][learn]
        scale = state["scale"][learn]
        scale += np.maximum(smoothing.scale, early)[:, None] * (np.abs(step) - scale)
        long_run, mean, wide = np.maximum(_LONG_RUN, early), state["mean"][learn], state["wide"][learn]
        gap = np.clip(value - mean, -1e30, 1e30)
        first = count == 0
        level[first] = value[first, None]
        scale[first] = 0.0
        state["level"][learn], state["scale"][learn] = level, scale
        state["trend"][learn] += np.where(first, 0.0, smoothing.trend * smoothing.level * step[:, 0])
        state["wide"][learn] = np.where(first, 0.0, wide + long_run * (np.abs(gap) - wide))
        state["mean"][learn] = np.where(first, value, mean + long_run * gap)
        state["count"][learn] += 1

    def _season(self, state: dict[str, Array], time_ns: int) -> tuple[int | None, Array]:
        """This column's time of day and what it adds; 0 until the bin was visited on two days."""
        bins = self.smoothing.season_bins
        if not bins:
            return None, np.zeros(len(state["count"]))
        slot = int(time_ns // _SECOND % _DAY_S * bins // _DAY_S)
        return slot, np.where(state["visits"][:, slot] >= 2, state["season"][:, slot], 0.0)

    def _move_season(self, state: dict[str, Array], learn: Array, values: Array, slot: int) -> None:
        entered = learn & (state["bin"] != slot)
        state["visits"][entered, slot] += 1
        state["bin"][learn] = slot
        gap = values - state["level"][:, 0] - state["season"][:, slot]
        settled = learn & (state["count"] > self.smoothing.warmup)
        state["season"][settled, slot] += (self.smoothing.season * self.smoothing.level * gap)[settled]
