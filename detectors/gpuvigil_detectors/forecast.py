"""Forecast: each series against its own predictions from level, trend and time of day.

Two levels, a quick one and a slow one: a jump is odd against both, a creep against the slow one only, and a
series is as odd as the worse of its two residuals, each in robust units of its own past; what its usual day
explains is not odd (day_profile.py). One vectorised step a column; learned only from learnable columns.
Source: Holt 1957, Winters 1960; residual scale by exponentially weighted absolute deviation.
Blind spot: a fault that was there from the first reading on is this series' normal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors import day_profile, models
from gpuvigil_detectors.base import Scores, Window
from gpuvigil_detectors.series_state import Array, SeriesState

_KIND: Final = "forecast"
_TO_SIGMA: Final = 1.2533  # mean absolute deviation -> standard deviation, normal data
_SCORE_MAX: Final = 50.0  # beyond it odd is odd
_LONG_RUN: Final = 1e-4  # about three hours at 1 Hz
_CLIP: Final = 200.0  # sigmas by which one reading may move the state: a bound on absurd numbers alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """Weights of one reading in levels, trend and residual scale; readings before the first opinion.

    season: weight of one day in the profile of the day; season_bins: parts of the day, 0 turns it off. The
    profile speaks once every part was seen on two days.
    scale is slow, so that a fault that lasts does not become its own yardstick.
    sigma_floor_share: residuals below this share of the level are rounding, not oddness; and below
    wide_floor_share of the series' own long-run spread, so that a quiet stretch makes no alarm of the usual.
    """

    level: float = 0.1
    slow: float = 0.01
    trend: float = 0.05
    scale: float = 1e-4
    season: float = 0.3
    season_bins: int = 48
    warmup: int = 60
    sigma_floor_share: float = 0.002
    wide_floor_share: float = 0.3


class Forecast:
    """One metric's series, predicted one reading ahead."""

    name = "forecast"

    def __init__(self, smoothing: Smoothing | None = None) -> None:
        self.smoothing = smoothing or Smoothing()
        self.state = SeriesState(
            level=("f8", np.nan, (2,)), trend=("f8", 0.0, ()), scale=("f8", 0.0, (2,)), count=("i8", 0, ()),
            mean=("f8", 0.0, ()), wide=("f8", 0.0, ()), usual=("f8", 0.0, (2,)),
            **day_profile.fields(self.smoothing.season_bins),
        )  # fmt: skip
        self.learned_ns = 0

    def learn(self, window: Window) -> None:
        """Update from the learnable columns that are newer than what was learned before."""
        self.state.align(window.entities)
        for column in np.flatnonzero(window.time_ns > self.learned_ns):
            self._step(self.state.arrays, window, int(column), daily=True)
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
        arrays = {n: a if n in day_profile.DAILY else a.copy() for n, a in known.arrays.items()}
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

    def _step(
        self, state: dict[str, Array], window: Window, column: int, *, daily: bool = False
    ) -> NDArray[np.float32]:
        """Judge one column and, where it may be learned from and is new, move the state.

        A reading is odd when neither its recent level nor its time of day explains it.
        """
        values = window.values[0, :, column].astype(np.float64)
        present, smoothing = np.isfinite(values), self.smoothing
        gap = values[:, None] - state["level"]
        gap[:, 0] -= state["trend"]
        profile, known = day_profile.at(state, int(window.time_ns[column]))
        in_season = (
            gap - np.where(known, profile, 0.0)[:, None] + np.where(known[:, None], state["usual"], 0.0)
        )
        residual = np.where(np.abs(in_season) < np.abs(gap), in_season, gap)
        floor = np.maximum(
            smoothing.sigma_floor_share * np.abs(state["level"][:, 1]) + np.finfo(np.float32).tiny,
            smoothing.wide_floor_share * _TO_SIGMA * state["wide"],
        )
        sigma = np.maximum(_TO_SIGMA * state["scale"], floor[:, None])
        odd = np.minimum((np.abs(residual) / sigma).max(axis=1), _SCORE_MAX)
        score = np.where(present & (state["count"] >= smoothing.warmup), odd, np.nan)
        learn = present & window.learnable[:, column] & (window.time_ns[column] > self.learned_ns)
        if learn.any():
            rows = np.flatnonzero(learn)
            self._move(state, rows, values, gap, residual, sigma, profile)
            if daily:
                day_profile.move(state, rows, values, int(window.time_ns[column]), smoothing.season)
        return score.astype(np.float32)

    def _move(
        self, state: dict[str, Array], learn: NDArray[np.int64], values: Array, gap: Array,
        residual: Array, sigma: Array, profile: Array,
    ) -> None:  # fmt: skip
        """Move the rows `learn`: equal weights at first, the mean of what was seen, then each its own."""
        smoothing, count, value = self.smoothing, state["count"][learn], values[learn]
        early = 1.0 / (count + 1.0)
        reach = np.where((count >= smoothing.warmup)[:, None], _CLIP * sigma[learn], 1e30)
        step = np.clip(gap[learn], -reach, reach)
        weight = np.maximum((smoothing.level, smoothing.slow), early[:, None])
        level = state["level"][learn] + weight * step
        level[:, 0] += state["trend"][learn]
        scale = state["scale"][learn]
        miss = np.abs(np.clip(residual[learn], -reach, reach))
        scale += np.maximum(smoothing.scale, early)[:, None] * (miss - scale)
        long_run, mean, wide = np.maximum(_LONG_RUN, early), state["mean"][learn], state["wide"][learn]
        away = np.clip(value - mean, -1e30, 1e30)
        first = count == 0
        level[first] = value[first, None]
        scale[first] = 0.0
        state["level"][learn], state["scale"][learn] = level, scale
        state["usual"][learn] += weight * (profile[learn, None] - state["usual"][learn])
        state["trend"][learn] += np.where(first, 0.0, smoothing.trend * smoothing.level * step[:, 0])
        state["wide"][learn] = np.where(first, 0.0, wide + long_run * (np.abs(away) - wide))
        state["mean"][learn] = np.where(first, value, mean + long_run * away)
        state["count"][learn] += 1
