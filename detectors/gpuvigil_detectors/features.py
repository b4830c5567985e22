"""Features: what forest and votes see of one entity. Own history and what is missing.

float32 [S, K]: per metric the distance of its value and of its recent mean from its own slow normal, and its
recent spread, all in its own sigmas, clipped; then the share of missing metrics and the recent events. A
metric that an entity lacks counts as 0 (normal) beside the missing share; a row is NaN until it is warm.
The recent is followed always; the normal is learned only from what is not masked.
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
_FAST: Final = 0.12  # about the newest 16 readings
_SLOW: Final = 1e-4  # about three hours at 1 Hz: what lasts less must not become its own normal
_WARM: Final = 60
_EVENT_DECAY: Final = 0.99
_REACH: Final = 3.0
_TO_SIGMA: Final = 1.2533
_HUGE: Final = 1e30

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
            *(f"recent mean of {metric}" for metric in metrics),
            *(f"recent spread of {metric}" for metric in metrics),
            "share of missing metrics",
            "recent events",
        )
        shape = (len(metrics),)
        self._joins = Joins()
        self._lists: tuple[tuple[str, ...], ...] = ()
        self._entities: tuple[str, ...] = ()
        self.state = SeriesState(
            fast=("f8", np.nan, shape), wobble=("f8", 0.0, shape), slow=("f8", np.nan, shape),
            spread=("f8", 0.0, shape), count=("i8", 0, shape), read_ns=("i8", 0, shape),
            events=("f8", 0.0, ()),
        )  # fmt: skip

    def update(self, snapshot: Snapshot, masked: frozenset[str]) -> Features:
        """Read one snapshot and return its features.

        masked: full names of entities, and of whole nodes, that are judged but not learned from.
        """
        values, time_ns, entities = self._gather(snapshot)
        self.state.align(entities)
        self._count_events(snapshot.events)
        fresh = np.isfinite(values) & (time_ns > self.state["read_ns"] + _SECOND // 2)
        self.state["read_ns"][fresh] = time_ns[fresh]
        nodes = {name for name in masked if "/" not in name}
        learnable = np.fromiter((name not in masked for name in entities), dtype=bool, count=len(entities))
        if nodes:
            told = (name.partition("/")[0] not in nodes for name in entities)
            learnable &= np.fromiter(told, dtype=bool, count=len(entities))
        rows = self.advance(values, fresh, fresh & learnable[:, None])
        return Features(names=self.names, entities=entities, values=rows)

    def advance(self, values: Array, fresh: NDArray[np.bool_], learn: NDArray[np.bool_]) -> Float32:
        """Follow the `fresh` ones of values [S, M], judge all, learn from `learn`; return features [S, K]."""
        known = np.isfinite(values)
        self._follow(values, fresh)
        rows = self._features(values, known)
        self._learn(values, learn)
        return rows

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

    def _follow(self, values: Array, fresh: NDArray[np.bool_]) -> None:
        """Move the recent mean and variance."""
        state = self.state
        first = fresh & np.isnan(state["fast"])
        with np.errstate(all="ignore"):
            step = np.clip(values - state["fast"], -_HUGE, _HUGE)
            wobble = state["wobble"] + _FAST * (step**2 - state["wobble"])
            fast = state["fast"] + _FAST * step
        state["wobble"] = np.where(fresh & ~first, wobble, state["wobble"])
        state["fast"] = np.where(first, values, np.where(fresh, fast, state["fast"]))

    def _features(self, values: Array, known: NDArray[np.bool_]) -> Float32:
        state = self.state
        with np.errstate(all="ignore"):
            sigma = self._sigma()
            parts = ((values - state["slow"]) / sigma, (state["fast"] - state["slow"]) / sigma,
                     np.sqrt(state["wobble"]) / sigma)  # fmt: skip
        ready = state["count"] >= _WARM
        had = state["count"] > 0
        missing = (had & ~known).sum(axis=1) / np.maximum(had.sum(axis=1), 1)
        columns = [np.where(ready & known, np.clip(part, -_CLIP, _CLIP), 0.0) for part in parts]
        rows = np.hstack([*columns, missing[:, None], np.minimum(state["events"], _CLIP)[:, None]])
        rows[~(ready.any(axis=1) & known.any(axis=1))] = np.nan
        return rows.astype(np.float32)

    def _sigma(self) -> Array:
        """Own spread of each series, never below a hundredth of its level: quieter than that is rounding."""
        return np.maximum(_TO_SIGMA * self.state["spread"], 0.01 * np.abs(self.state["slow"]) + 1e-6)

    def _learn(self, values: Array, learn: NDArray[np.bool_]) -> None:
        """Move normal and spread; one odd reading moves them no further than an ordinary one would."""
        state = self.state
        weight = np.maximum(_SLOW, 1.0 / (state["count"] + 1.0))
        first = learn & (state["count"] == 0)
        with np.errstate(all="ignore"):
            reach = np.where(state["count"] >= _WARM, _REACH * self._sigma(), np.inf)
            step = np.clip(values - state["slow"], -reach, reach)
            slow = state["slow"] + weight * step
            spread = state["spread"] + weight * (np.abs(step) - state["spread"])
        state["slow"] = np.where(first, values, np.where(learn, slow, state["slow"]))
        state["spread"] = np.where(learn & ~first & np.isfinite(spread), spread, state["spread"])
        state["count"] += learn
