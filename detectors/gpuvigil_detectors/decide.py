"""From scores to alarms: calibration, false-discovery control over the fleet, persistence, budget.

A score becomes a p-value against healthy scores (empirical, with an exponential tail where the history ends);
Benjamini-Hochberg over all series judged at one tick; an alarm when k of a series' last n judgements were
discoveries; it ends when the p-value has been ordinary for a while. NaN is no opinion: it neither raises nor
clears. Until the pool is calibrated there are no p-values and no alarms.
Sources: Benjamini & Hochberg 1995; Balkema & de Haan 1974 for the tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors.series_state import Array, SeriesState

_SECOND: Final = 1_000_000_000
_TAIL: Final = 0.05  # share of the healthy scores that the tail is fitted to
_HOUR_S: Final = 3600.0
_SCALED_MAX: Final = 8.0
_P_MIN: Final = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """k of n judgements; false-discovery rate; p-value and judgements that end an alarm; alarms an hour.

    relearn_s: a change that lasts so long is the new normal, and is learned.
    """

    k: int = 4
    n: int = 6
    rate: float = 0.01
    release_p: float = 0.05
    release_n: int = 3
    hold_s: float = 300.0
    relearn_s: float = 3600.0
    alarms_per_hour: float = 2.0


class Pool:
    """A bounded, seeded sample of healthy scores of one voter."""

    def __init__(self, *, size: int = 8192, least: int = 500, seed: int = 0) -> None:
        self.values: NDArray[np.float64] = np.empty(0)
        self.seen = 0
        self._size, self.least = size, least
        self._rng = np.random.default_rng(seed)

    @property
    def ready(self) -> bool:
        """Whether there are enough scores to speak of the tail."""
        return len(self.values) >= self.least

    def add(self, scores: Array) -> None:
        """Take healthy scores; NaN is left out. Newer ones replace random older ones once it is full."""
        new = scores[np.isfinite(scores)].astype(np.float64)
        self.seen += len(new)
        room = self._size - len(self.values)
        self.values = np.concatenate([self.values, new[:room]])
        rest = new[max(room, 0) :][-self._size :]
        if len(rest):
            # each waiting score enters with a falling chance, but never below 1 in 10: the pool follows drift
            chance = max(0.1, self._size / max(self.seen, 1))
            rest = rest[self._rng.random(len(rest)) < chance]
            places = self._rng.choice(self._size, len(rest), replace=False)
            self.values[places] = rest

    def scaled(self, scores: Array) -> NDArray[np.float64]:
        """Scores in units of this pool's spread: 0 at its median, 1 at its 98 % quantile, at most 8."""
        if not len(self.values):
            return np.full(scores.shape, np.nan)
        middle, high = np.quantile(self.values, (0.5, 0.98))
        spread = max(float(high - middle), 1e-9)
        units: NDArray[np.float64] = (scores.astype(np.float64) - middle) / spread
        return np.clip(units, 0.0, _SCALED_MAX)

    def p_values(self, scores: Array) -> NDArray[np.float64]:
        """Chance that a healthy score is so high; NaN where the score is, or while not ready."""
        if not self.ready:
            return np.full(scores.shape, np.nan)
        ordered = np.sort(self.values)
        above = len(ordered) - np.searchsorted(ordered, scores, side="left")
        p = (1.0 + above) / (len(ordered) + 1.0)
        start = ordered[int(len(ordered) * (1 - _TAIL))]
        excess = ordered[ordered > start] - start
        mean = max(float(excess.mean()) if len(excess) else 0.0, 1e-9 * max(1.0, abs(float(start))))
        beyond = scores > ordered[-1]
        with np.errstate(all="ignore"):
            tail = len(excess) / len(ordered) * np.exp(-(scores - start) / mean)
        p = np.where(beyond, np.minimum(p, np.maximum(tail, _P_MIN)), p)
        return np.where(np.isfinite(scores), p, np.nan)


def discoveries(p_values: Array, rate: float) -> NDArray[np.bool_]:
    """Benjamini-Hochberg: which of the p-values given (NaN = not judged) are discoveries at this rate."""
    judged = np.flatnonzero(np.isfinite(p_values))
    out = np.zeros(p_values.shape, dtype=bool)
    if not len(judged):
        return out
    order = judged[np.argsort(p_values[judged], kind="stable")]
    bound = rate * np.arange(1, len(order) + 1) / len(order)
    below = np.flatnonzero(p_values[order] <= bound)
    if len(below):
        out[order[: below[-1] + 1]] = True
    return out


class Decide:
    """The memory of recent judgements and standing alarms of every series."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.state = SeriesState(
            hits=("?", False, (self.limits.n,)), ordinary=("i8", 0, ()), since=("i8", 0, ()),
            judged=("i8", 0, ()), active=("?", False, ()), muted=("?", False, ()),
        )  # fmt: skip
        self._tokens, self._filled_ns = self.limits.alarms_per_hour, 0
        self.muted_total = 0

    def update(self, entities: tuple[str, ...], p_values: Array, now_ns: int) -> NDArray[np.bool_]:
        """Take one tick's p-values [S] (NaN = not judged now); return the standing alarms [S]."""
        self.state.align(entities)
        limits, state = self.limits, self.state
        judged = np.isfinite(p_values)
        hit = discoveries(p_values, limits.rate)
        hits, since, active = state["hits"], state["since"], state["active"]
        hits[judged, :-1] = hits[judged, 1:]
        hits[judged, -1] = hit[judged]
        state["judged"][judged] = now_ns
        since[hit & (since == 0)] = now_ns
        since[~active & judged & ~hits.any(axis=1)] = 0
        with np.errstate(invalid="ignore"):
            ordinary = judged & (p_values > limits.release_p)
        state["ordinary"][ordinary] += 1
        state["ordinary"][judged & ~ordinary] = 0
        raised = ~active & judged & hit & (hits.sum(axis=1) >= limits.k)
        ended = active & (
            (state["ordinary"] >= limits.release_n) | (now_ns - state["judged"] > limits.hold_s * _SECOND)
        )
        self._spend(raised, now_ns)
        active |= raised
        active &= ~ended
        hits[ended], since[ended] = False, 0
        return active

    def suspects(self, now_ns: int) -> frozenset[str]:
        """Entities with a recent discovery: not to be learned from, for `relearn_s` at most."""
        since = self.state["since"]
        held = (since > 0) & (now_ns - since < self.limits.relearn_s * _SECOND)
        return frozenset(self.state.entities[row] for row in np.flatnonzero(held))

    def muted(self) -> NDArray[np.bool_]:
        """Standing alarms beyond the budget: recorded, not notified; bool [S]."""
        muted: NDArray[np.bool_] = self.state["muted"]
        return muted

    def _spend(self, raised: NDArray[np.bool_], now_ns: int) -> None:
        """Alarms of one tick share the budget in the order of the series' names, so that order has no say."""
        limits = self.limits
        hours = (now_ns - self._filled_ns) / _SECOND / _HOUR_S if self._filled_ns else 0.0
        self._tokens = min(limits.alarms_per_hour, self._tokens + max(0.0, hours) * limits.alarms_per_hour)
        self._filled_ns = now_ns
        for row in sorted(np.flatnonzero(raised), key=lambda row: self.state.entities[row]):
            muted = self._tokens < 1.0
            self.state["muted"][row] = muted
            self.muted_total += muted
            self._tokens -= 0.0 if muted else 1.0
