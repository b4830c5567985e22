"""Features: what forest and votes see of one entity. Own history and what is missing.

float32 [S, K]: per metric the distance from its own slow normal (in its own sigmas, clipped) and the slope of
its fast against its slow mean; then the share of missing metrics and the recent events. A metric that an
entity lacks counts as 0 (normal) beside the missing share; a row is NaN as a whole until it is warm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors.base import FactEvent, Float32, Snapshot
from gpuvigil_detectors.conditions import read
from gpuvigil_detectors.series_state import Array, Joins, SeriesState, take

_SECOND: Final = 1_000_000_000
_CLIP: Final = 20.0
_FAST: Final = 0.1
_SLOW: Final = 0.002
_WARM: Final = 60
_EVENT_DECAY: Final = 0.99
_REACH: Final = 3.0
_TO_SIGMA: Final = 1.2533

GPU_METRICS: Final = (
    "gpu_utilization_ratio", "gpu_memory_utilization_ratio", "gpu_framebuffer_used_bytes",
    "gpu_temperature_celsius", "gpu_memory_temperature_celsius", "gpu_power_watts", "gpu_sm_clock_hertz",
    "gpu_driver_call_seconds",
)  # fmt: skip
NODE_METRICS: Final = (
    "node_cpu_utilization_ratio", "node_cpu_iowait_ratio", "node_load1", "node_processes_blocked",
    "node_cpu_pressure_ratio", "node_memory_pressure_ratio", "node_io_pressure_ratio",
    "node_memory_available_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """names [K]; entities [S]; values float32 [S, K], a row is NaN while it warms up or says nothing now."""

    names: tuple[str, ...]
    entities: tuple[str, ...]
    values: Float32


class FeatureTable:
    """Own-history state of a fixed list of metrics for one kind of entity."""

    def __init__(self, metrics: tuple[str, ...]) -> None:
        self.metrics = metrics
        self.names = (
            *(f"{metric} against its normal" for metric in metrics),
            *(f"slope of {metric}" for metric in metrics),
            "share of missing metrics",
            "recent events",
        )
        shape = (len(metrics),)
        self._joins = Joins()
        self._lists: tuple[tuple[str, ...], ...] = ()
        self._entities: tuple[str, ...] = ()
        self.state = SeriesState(
            fast=("f8", np.nan, shape), slow=("f8", np.nan, shape), spread=("f8", 0.0, shape),
            count=("i8", 0, shape), read_ns=("i8", 0, shape), events=("f8", 0.0, ()),
        )  # fmt: skip

    def update(self, snapshot: Snapshot, masked: frozenset[str]) -> Features:
        """Read one snapshot and return its features; entities in `masked` are judged but not learned from."""
        values, time_ns, entities = self._gather(snapshot)
        self.state.align(entities)
        self._count_events(snapshot.events)
        known = np.isfinite(values)
        features = self._features(values, known, entities)
        fresh = known & (time_ns > self.state["read_ns"] + _SECOND // 2)
        self.state["read_ns"][fresh] = time_ns[fresh]
        learnable = np.fromiter((name not in masked for name in entities), dtype=bool, count=len(entities))
        self._learn(values, fresh & learnable[:, None])
        return features

    def _gather(self, snapshot: Snapshot) -> tuple[Array, NDArray[np.int64], tuple[str, ...]]:
        readings = [read(snapshot.latest(metric), snapshot.now_ns, 0.0) for metric in self.metrics]
        lists = tuple(reading.entities for reading in readings)
        if lists != self._lists:
            self._lists = lists
            self._entities = tuple(dict.fromkeys(name for names in lists for name in names))
        values = np.full((len(self._entities), len(readings)), np.nan)
        times = np.zeros(values.shape, dtype=np.int64)
        for column, reading in enumerate(readings):
            rows = self._joins.rows(("all", self.metrics[column]), self._entities, reading.entities)
            values[:, column] = take(np.where(reading.known, reading.values, np.nan), rows, np.nan)
            times[:, column] = take(reading.time_ns, rows, 0)
        return values, times, self._entities

    def _count_events(self, events: tuple[FactEvent, ...]) -> None:
        """A decayed count of each entity's events; decays a hundredth a tick."""
        self.state["events"] *= _EVENT_DECAY
        if not events:
            return
        rows = {name: row for row, name in enumerate(self.state.entities)}
        for event in events:
            row = rows.get(f"{event.node}/{event.entity}")
            if row is not None:
                self.state["events"][row] += 1.0

    def _features(self, values: Array, known: Array, entities: tuple[str, ...]) -> Features:
        state = self.state
        with np.errstate(all="ignore"):
            sigma = self._sigma()
            distance = np.clip((values - state["slow"]) / sigma, -_CLIP, _CLIP)
            slope = np.clip((state["fast"] - state["slow"]) / sigma, -_CLIP, _CLIP)
        ready = state["count"] >= _WARM
        had = state["count"] > 0
        missing = (had & ~known).sum(axis=1) / np.maximum(had.sum(axis=1), 1)
        columns = [np.where(ready & known, part, 0.0) for part in (distance, slope)]
        rows = np.hstack([*columns, missing[:, None], np.minimum(state["events"], _CLIP)[:, None]])
        rows[~(ready.any(axis=1) & known.any(axis=1))] = np.nan
        return Features(names=self.names, entities=entities, values=rows.astype(np.float32))

    def _sigma(self) -> Array:
        """Own spread of each series, never below a hundredth of its level: quieter than that is rounding."""
        return np.maximum(_TO_SIGMA * self.state["spread"], 0.01 * np.abs(self.state["slow"]) + 1e-6)

    def _moved(self, name: str, first: Array, learn: Array, values: Array, step: Array) -> Array:
        state = self.state[name]
        return np.where(first, values, np.where(learn, state + step, state))

    def _learn(self, values: Array, learn: Array) -> None:
        state = self.state
        early = 1.0 / (state["count"] + 1.0)
        first = learn & (state["count"] == 0)
        with np.errstate(all="ignore"):
            # one odd reading moves the normal no further than an ordinary one would
            reach = np.where(state["count"] >= _WARM, _REACH * self._sigma(), np.inf)
            gap = np.minimum(np.abs(values - state["slow"]), reach)
            step = np.clip(values - state["slow"], -reach, reach)
        state["fast"] = self._moved("fast", first, learn, values, _FAST * (values - state["fast"]))
        state["slow"] = self._moved("slow", first, learn, values, np.maximum(_SLOW, early) * step)
        with np.errstate(all="ignore"):
            spread = state["spread"] + np.maximum(_SLOW, early) * (gap - state["spread"])
        state["spread"] = np.where(learn & ~first & np.isfinite(spread), spread, state["spread"])
        state["count"] += learn
