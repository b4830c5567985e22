"""Time to threshold: what falls steadily and will be used up soon (space, memory).

A straight line through the newest readings, at several lengths, so that what began just now and what creeps
for hours are both seen. It looks ahead at most `reach` times as far as it has watched the fall, and says how
sure it is: the line's slope plus and minus two standard errors. It needs no fleet history, so it may notify
after its own warm-up: a time to full is a number that a person can check.
Blind spot: growth in steps longer than the longest line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors.base import Evidence, Finding, Snapshot
from gpuvigil_detectors.conditions import Reading, read
from gpuvigil_detectors.persistence import Persistence
from gpuvigil_detectors.series_state import Array, Joins, SeriesState, take

_SECOND: Final = 1_000_000_000
_SLOTS: Final = 24
_LENGTHS: Final = (4, 8, 16, 24)
_STEPS_S: Final = (5.0, 60.0, 900.0)  # spacing of kept readings: lines of 15 s to 5.75 h
_LINE: Final = ("span", "slope", "error", "left")
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What runs out: its metric, the total it is a share of, and what a fall must show to count.

    span_min_s: shortest watched fall. fall_min: least share of the total lost. reach: times the span that it
    may look ahead. certainty: least slope in standard errors.
    """

    metric: str
    total: str
    fault_class: str
    words: str
    span_min_s: float = 25.0
    fall_min: float = 0.02
    reach: float = 4.0
    certainty: float = 8.0
    age_max_s: float = 30.0


RESOURCES: Final = (
    Resource(metric="filesystem_available_bytes", total="filesystem_size_bytes", fault_class="disk_full",
             words="free space"),
    Resource(metric="node_memory_available_bytes", total="node_memory_total_bytes",
             fault_class="memory_leak_host", words="available memory", span_min_s=45.0, fall_min=0.1),
)  # fmt: skip


class Runway:
    """One resource over the fleet."""

    name = "forecast"

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self._joins = Joins()
        self._held = Persistence(for_s=0.0, gap_s=0.0, clear_s=30.0, hold_s=300.0)
        self._scales = [
            SeriesState(time=("f8", np.nan, (_SLOTS,)), value=("f8", np.nan, (_SLOTS,)), last=("i8", 0, ()))
            for _ in _STEPS_S
        ]
        self._last = SeriesState(**dict.fromkeys(_LINE, ("f8", np.nan, ())))
        self._start_ns = 0

    def tick(self, snapshot: Snapshot) -> list[Finding]:
        """Keep the newest readings and return what will be used up within reach."""
        self._start_ns = self._start_ns or snapshot.now_ns
        resource = self.resource
        reading = read(snapshot.latest(resource.metric), snapshot.now_ns, resource.age_max_s)
        totals = read(snapshot.latest(resource.total), snapshot.now_ns, 300.0)
        rows = self._joins.rows(("free", "total"), reading.entities, totals.entities)
        total = take(np.where(totals.known, totals.values, np.nan), rows, np.nan)
        best = _nothing(len(reading.entities))
        for step_s, scale in zip(_STEPS_S, self._scales, strict=True):
            self._keep(scale, reading, step_s)
            for length in _LENGTHS:
                best = self._better(best, scale["time"][:, -length:], scale["value"][:, -length:], total)
        best_now = best["left"]
        best = self._remember(reading.entities, best)
        answer = np.where(reading.known, np.isfinite(best_now).astype(np.int8), np.int8(-1))
        active = self._held.update(reading.entities, answer, reading.time_ns, snapshot.now_ns)
        rows_now = np.flatnonzero(active & np.isfinite(best["left"]))
        return [self._finding(int(row), reading, best, total, snapshot.now_ns) for row in rows_now]

    def _remember(self, entities: tuple[str, ...], best: dict[str, Array]) -> dict[str, Array]:
        """The newest line that counted: what a held finding says while it clears."""
        self._last.align(entities)
        counts = np.isfinite(best["left"])
        for name, values in best.items():
            self._last[name] = np.where(counts, values, self._last[name])
        return self._last.arrays

    def _keep(self, scale: SeriesState, reading: Reading, step_s: float) -> None:
        scale.align(reading.entities)
        due = reading.known & (reading.time_ns - scale["last"] >= int(step_s * _SECOND) - _SECOND // 2)
        for name, new in (("time", (reading.time_ns - self._start_ns) / _SECOND), ("value", reading.values)):
            ring = scale[name]
            ring[due, :-1] = ring[due, 1:]
            ring[due, -1] = new[due]
        scale["last"][due] = reading.time_ns[due]

    def _better(self, best: dict[str, Array], time: Array, value: Array, total: Array) -> dict[str, Array]:
        """The line that watched longest among those that count, with its slope and its error."""
        resource = self.resource
        with np.errstate(all="ignore"):
            span = time[:, -1] - time[:, 0]
            centred = time - time.mean(axis=1, keepdims=True)
            square = (centred**2).sum(axis=1)
            slope = (centred * value).sum(axis=1) / square
            residual = value - value.mean(axis=1, keepdims=True) - slope[:, None] * centred
            error = np.sqrt((residual**2).sum(axis=1) / max(1, time.shape[1] - 2) / square)
            left = value[:, -1] / -slope
            falling = (np.diff(value, axis=1) < 0).mean(axis=1) >= 0.8
            counts = (
                (span >= resource.span_min_s) & (slope < 0) & (-slope >= resource.certainty * error) & falling
                & (value[:, 0] - value[:, -1] >= resource.fall_min * total) & (left <= resource.reach * span)
                & (span > np.nan_to_num(best["span"], nan=0.0))
            )  # fmt: skip
        new = {"span": span, "slope": slope, "error": error, "left": left}
        return {name: np.where(counts, new[name], best[name]) for name in best}

    def _finding(
        self, row: int, reading: Reading, best: dict[str, Array], total: NDArray[np.float64], now_ns: int
    ) -> Finding:
        resource, entity = self.resource, reading.entities[row]
        slope, error = -float(best["slope"][row]), float(best["error"][row])
        free, left_s, span_s = float(reading.values[row]), float(best["left"][row]), float(best["span"][row])
        soonest, latest = free / (slope + 2 * error), free / max(slope - 2 * error, slope / 2)
        sentence = (
            f"{resource.words} falls by {slope / _GIB * 60:.2f} GiB a minute for {span_s:.0f} s, "
            f"{free / _GIB:.1f} GiB of {float(total[row]) / _GIB:.1f} GiB left: used up in {left_s:.0f} s "
            f"({soonest:.0f} to {latest:.0f} s)"
        )
        since_ns = now_ns - int(span_s * _SECOND)
        return Finding(
            detector="forecast", rule=f"runway_{resource.fault_class}", entity=entity,
            fault_class=resource.fault_class, severity="warning", start_ns=since_ns, end_ns=now_ns,
            sentence=sentence, metric=resource.metric, score=slope / max(error, slope / _GIB), origin="host",
            evidence=Evidence(observed=left_s, unit="seconds", since_ns=since_ns),
        )  # fmt: skip


def _nothing(series: int) -> dict[str, Array]:
    return {name: np.full(series, np.nan) for name in _LINE}
