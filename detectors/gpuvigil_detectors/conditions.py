"""What a metric rule can ask of a series: each test answers yes, no or unknown for every series at once.

    at_least, at_most, below, above   the value against `value`; once a rule is active, against `release`
    bits, no_bits      any bit, or no bit, of the mask `value` is set
    below_other        the value is below the metric `other` of the same entity
    share_at_most      value / other is at most `value`
    below_best         below the highest value this series has had (a link that was up)
    above_best         above the lowest value this series has had (a flag that was clear)
    rises              a running total is at least `value` above what it was when first seen
    grows              a running total grew by at least `value` within `window_s`
    counts             a rate per second adds up to at least `value` within `window_s`
    times_own          at least `floor`, at least `value` times this series' own slow normal, and more than
                       ten of its own mean deviations above it
    below_own          at most `value` times this series' own slow normal (traffic that did not grow)

A reading older than `age_max_s` is unknown: it neither raises nor clears. `within_s`: what was true so
lately counts as true. Windows are six buckets, so a window is exact to a sixth of its length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors import catalogue
from gpuvigil_detectors.base import Latest, Snapshot
from gpuvigil_detectors.series_state import Array, Joins, SeriesState, take

_SECOND: Final = 1_000_000_000
_BUCKETS: Final = 6
_OWN_READINGS_MIN: Final = 20  # readings before a series has a normal of its own
_OWN_SPREADS: Final = 10.0
_OWN_WEIGHT_SLOW: Final = 0.001
_OWN_WEIGHT: Final = 0.02  # weight of one reading in that normal
_AGE_MAX_S: Final = 15.0  # three missed readings of the 5 s and slower groups, many of the 1 s group

Answer = NDArray[np.int8]
NO, YES, UNKNOWN = np.int8(0), np.int8(1), np.int8(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One tick's view of one metric: value and age per series, and the reading's own time."""

    entities: tuple[str, ...]
    values: NDArray[np.float64]
    known: NDArray[np.bool_]
    time_ns: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """answer int8 [S] (1 yes, 0 no, -1 unknown); observed and expected float64 [S] for the sentence."""

    answer: Answer
    observed: NDArray[np.float64]
    expected: NDArray[np.float64]


def read(latest: Latest, now_ns: int, age_max_s: float) -> Reading:
    """Turn the newest values into a Reading; what is missing, not finite or too old is not known."""
    values = latest.values.astype(np.float64)
    age = np.where(np.isfinite(latest.age_s), np.maximum(latest.age_s, 0), np.inf).astype(np.float64)
    known = np.isfinite(values) & (age <= (age_max_s or _AGE_MAX_S))
    time_ns = np.where(known, now_ns - (np.where(known, age, 0.0) * _SECOND), 0).astype(np.int64)
    return Reading(entities=latest.entities, values=values, known=known, time_ns=time_ns)


class Test:
    """One Condition with the memory it needs, over all series of its metric."""

    def __init__(self, condition: catalogue.Condition) -> None:
        self.condition = condition
        self._joins = Joins()
        self._judge = _JUDGES[condition.test]
        self.state = SeriesState(
            best=("f8", np.nan, ()),
            total=("f8", np.nan, ()),
            read_ns=("i8", 0, ()),
            own=("f8", np.nan, ()),
            spread=("f8", 0.0, ()),
            readings=("i8", 0, ()),
            buckets=("f8", 0.0, (_BUCKETS,)),
            yes_ns=("i8", 0, ()),
        )
        self.bucket = 0
        self._remembered: dict[str, float] = {}

    def remember(self, entity: str, best: float) -> None:
        """Take back what a series was at its best before a restart, which its readings of now do not tell."""
        self._remembered[entity] = best

    def best(self, reading: Reading) -> NDArray[np.float64]:
        """The best of every series so far, NaN where nothing is known."""
        best: NDArray[np.float64] = self.state["best"]
        if self._remembered:
            for row, entity in enumerate(reading.entities):
                if entity in self._remembered:
                    best[row] = self._remembered.pop(entity)
        return best

    def ask(self, snapshot: Snapshot, active: NDArray[np.bool_] | None = None) -> tuple[Reading, Verdict]:
        """Judge the newest reading of every series. `active` [S]: which rows are judged by `release`."""
        reading = read(snapshot.latest(self.condition.metric), snapshot.now_ns, self.condition.age_max_s)
        self.state.align(reading.entities)
        limit = np.full(len(reading.entities), self.condition.value)
        if active is not None and self.condition.release is not None and len(active) == len(limit):
            limit[active] = self.condition.release
        with np.errstate(all="ignore"):
            yes, observed, expected = self._judge(self, reading, limit, snapshot)
        if expected is limit:
            expected = np.full(len(limit), self.condition.value)  # people are told the bound, not its release
        answer = np.where(reading.known & ~np.isnan(observed), yes.astype(np.int8), UNKNOWN)
        if self.condition.within_s:
            answer = self._lately(answer, snapshot.now_ns)
        return reading, Verdict(answer=answer, observed=observed, expected=expected)

    def other(self, reading: Reading, snapshot: Snapshot) -> NDArray[np.float64]:
        """The metric `other` for the same entities, NaN where it is not known."""
        latest = snapshot.latest(self.condition.other)
        second = read(latest, snapshot.now_ns, max(self.condition.age_max_s, 120.0))
        rows = self._joins.rows(("self", "other"), reading.entities, second.entities)
        return take(np.where(second.known, second.values, np.nan), rows, np.nan)

    def fresh(self, reading: Reading) -> NDArray[np.bool_]:
        """Which rows have a reading that was not seen before; a tick may come twice within one second."""
        new = reading.known & (reading.time_ns > self.state["read_ns"] + _SECOND // 2)
        self.state["read_ns"][new] = reading.time_ns[new]
        return new

    def roll(self, now_ns: int) -> NDArray[np.float64]:
        """Empty the buckets that lie more than the window back; return the one that counts now."""
        bucket = int(now_ns // int(self.condition.window_s * _SECOND / _BUCKETS))
        for step in range(max(self.bucket + 1, bucket - _BUCKETS + 1), bucket + 1):
            self.state["buckets"][:, step % _BUCKETS] = 0.0
        self.bucket = bucket
        slot: NDArray[np.float64] = self.state["buckets"][:, bucket % _BUCKETS]
        return slot

    def _lately(self, answer: Answer, now_ns: int) -> Answer:
        self.state["yes_ns"][answer == YES] = now_ns
        seen = self.state["yes_ns"]
        lately = (seen > 0) & (now_ns - seen <= self.condition.within_s * _SECOND)
        return np.where(lately, YES, answer)


Judged = tuple[NDArray[np.bool_], Array, Array]
Judge = Callable[[Test, Reading, Array, Snapshot], Judged]


def _at_least(_: Test, reading: Reading, limit: Array, __: Snapshot) -> Judged:
    return reading.values >= limit, reading.values, limit


def _at_most(_: Test, reading: Reading, limit: Array, __: Snapshot) -> Judged:
    return reading.values <= limit, reading.values, limit


def _bits(test: Test, reading: Reading, limit: Array, _: Snapshot) -> Judged:
    mask = int(test.condition.value)
    small = reading.known & (reading.values >= 0) & (reading.values < 1 << 52)
    word = np.where(small, reading.values, 0).astype(np.int64)
    return (word & mask) != 0, np.where(small, word.astype(np.float64), np.nan), limit


def _no_bits(test: Test, reading: Reading, limit: Array, snapshot: Snapshot) -> Judged:
    some, observed, expected = _bits(test, reading, limit, snapshot)
    return ~some, observed, expected


def _below_other(test: Test, reading: Reading, _: Array, snapshot: Snapshot) -> Judged:
    other = test.other(reading, snapshot)
    return reading.values < other, np.where(np.isnan(other), np.nan, reading.values), other


def _share_at_most(test: Test, reading: Reading, limit: Array, snapshot: Snapshot) -> Judged:
    other = test.other(reading, snapshot)
    share = np.where(other > 0, reading.values / other, np.nan)
    return share <= limit, share, limit


def _below_best(test: Test, reading: Reading, _: Array, __: Snapshot) -> Judged:
    best = np.fmax(test.best(reading), np.where(reading.known, reading.values, np.nan))
    test.state["best"] = best
    return reading.values < best, reading.values, best


def _above_best(test: Test, reading: Reading, _: Array, __: Snapshot) -> Judged:
    best = np.fmin(test.best(reading), np.where(reading.known, reading.values, np.nan))
    test.state["best"] = best
    return reading.values > best, reading.values, best


def _rises(test: Test, reading: Reading, limit: Array, _: Snapshot) -> Judged:
    first = test.state["best"]
    start = reading.known & (np.isnan(first) | (reading.values < first))  # a reset starts over
    first[start] = reading.values[start]
    return reading.values - first >= limit, reading.values, first.copy()


def _grows(test: Test, reading: Reading, limit: Array, snapshot: Snapshot) -> Judged:
    slot, new, total = test.roll(snapshot.now_ns), test.fresh(reading), test.state["total"]
    step = np.where(new, reading.values - total, 0.0)
    slot += np.where(step > 0, step, 0.0)  # NaN at the first reading and negative at a reset: neither counts
    total[new] = reading.values[new]
    grown = test.state["buckets"].sum(axis=1)
    return grown >= limit, grown, limit


def _counts(test: Test, reading: Reading, limit: Array, snapshot: Snapshot) -> Judged:
    slot, before = test.roll(snapshot.now_ns), test.state["read_ns"].copy()
    new = test.fresh(reading)
    span_s = np.clip((reading.time_ns - before) / _SECOND, 0.0, test.condition.window_s)
    slot += np.where(new & (before > 0) & (reading.values > 0), reading.values * span_s, 0.0)
    counted = test.state["buckets"].sum(axis=1)
    return counted >= limit, counted, limit


def _times_own(test: Test, reading: Reading, limit: Array, _: Snapshot) -> Judged:
    own, spread = test.state["own"], test.state["spread"]
    ready = test.state["readings"] >= _OWN_READINGS_MIN
    bound = np.maximum(np.maximum(own * limit, own + _OWN_SPREADS * spread), test.condition.floor)
    odd = ready & (reading.values >= bound)
    expected = own.copy()
    # no learning from what is being blamed
    _learn_own(test, reading, test.fresh(reading) & ~odd, _OWN_WEIGHT)
    return odd, np.where(ready, reading.values, np.nan), expected


def _below_own(test: Test, reading: Reading, limit: Array, _: Snapshot) -> Judged:
    ready, own = test.state["readings"] >= _OWN_READINGS_MIN, test.state["own"].copy()
    # slow, so that new work stays new work for a quarter of an hour
    _learn_own(test, reading, test.fresh(reading), _OWN_WEIGHT_SLOW)
    return ready & (reading.values <= own * limit), np.where(ready, reading.values, np.nan), own


def _learn_own(test: Test, reading: Reading, learn: NDArray[np.bool_], weight_min: float) -> None:
    """Move mean and mean deviation of the rows in `learn`: equal weights at first, then a slow average."""
    own, spread, count = test.state["own"], test.state["spread"], test.state["readings"]
    weight = np.where(count >= _OWN_READINGS_MIN, weight_min, 1.0 / (count + 1.0))
    step = np.where(np.isnan(own), 0.0, reading.values - own)
    own[learn] = np.where(np.isnan(own), reading.values, own + weight * step)[learn]
    spread[learn] += (weight * (np.abs(step) - spread))[learn]
    count[learn] += 1


_JUDGES: Final[dict[str, Judge]] = {
    "at_least": _at_least, "at_most": _at_most, "bits": _bits, "no_bits": _no_bits,
    "below_other": _below_other, "share_at_most": _share_at_most, "below_best": _below_best,
    "above_best": _above_best, "rises": _rises, "grows": _grows, "counts": _counts, "times_own": _times_own,
    "below_own": _below_own,
}  # fmt: skip
TESTS: Final = frozenset(_JUDGES)
