"""Where each series is: (metric) -> entities and their rows, over all nodes, workers and planes.

Built from the Series messages of the workers, one a node; the index of a metric is made when it is first
asked for and kept until a node's series change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_collector.ingest import frames
from gpuvigil_collector.ingest.ring import Plane
from gpuvigil_detectors.base import Float32, Int64

SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Part:
    """Series of one metric in one plane: `at` int32, places among the metric's entities, `rows` int32."""

    plane: Plane
    at: NDArray[np.int32]
    rows: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Index:
    """All series of one metric: full entity names and the parts that hold them."""

    entities: tuple[str, ...]
    parts: tuple[Part, ...]

    def window(self, first_second: int, seconds: int) -> Float32:
        """Return float32 [entities, seconds], NaN where nothing was written."""
        values = np.full((len(self.entities), seconds), np.nan, np.float32)
        for part in self.parts:
            found = np.full((len(part.rows), seconds), np.nan, np.float32)
            part.plane.read(first_second, seconds, part.rows, found)
            values[part.at] = found
        return values

    def latest(self) -> tuple[Float32, Int64]:
        """Return the newest values, float32 [entities], and their times, int64, 0 = never."""
        values = np.full(len(self.entities), np.nan, np.float32)
        time_ns = np.zeros(len(self.entities), np.int64)
        for part in self.parts:
            values[part.at] = part.plane.latest[part.rows]
            time_ns[part.at] = part.plane.latest_ns[part.rows]
        return values, time_ns


@dataclass(frozen=True, slots=True)
class _NodeSeries:
    """One node's series: for each metric the full entity names, planes' numbers and rows."""

    planes: tuple[Plane, ...]
    metrics: dict[str, tuple[list[str], NDArray[np.int32], NDArray[np.int32]]]


class Layout:
    """The series of all nodes. Not thread-safe: the store holds its lock around each call."""

    def __init__(self) -> None:
        self._nodes: dict[str, _NodeSeries] = {}
        self._indices: dict[str, Index] = {}

    def put(self, message: frames.Series, planes: tuple[Plane, ...]) -> None:
        """Replace one node's series."""
        plane, metric, entity, row = (
            np.frombuffer(data, np.int32)
            for data in (message.plane, message.metric, message.entity, message.row)
        )
        names = [f"{message.node}/{name}" for name in message.entities]
        metrics = {}
        for number, name in enumerate(message.metrics):
            mine = metric == number
            metrics[name] = ([names[at] for at in entity[mine]], plane[mine], row[mine])
        self._nodes[message.node] = _NodeSeries(planes, metrics)
        self._indices.clear()

    def forget(self, node: str) -> None:
        """Take a node's series out."""
        if self._nodes.pop(node, None) is not None:
            self._indices.clear()

    def index(self, metric: str) -> Index:
        """Return where a metric's series are; empty for one that no node has."""
        found = self._indices.get(metric)
        if found is None:
            found = self._indices[metric] = self._build(metric)
        return found

    def metrics(self) -> tuple[str, ...]:
        """Return the metrics that any node has, sorted."""
        return tuple(sorted({name for node in self._nodes.values() for name in node.metrics}))

    def _build(self, metric: str) -> Index:
        entities: list[str] = []
        parts: dict[int, tuple[Plane, list[NDArray[np.int32]], list[NDArray[np.int32]]]] = {}
        for series in self._nodes.values():
            if metric not in series.metrics:
                continue
            names, planes, rows = series.metrics[metric]
            at = np.arange(len(entities), len(entities) + len(names), dtype=np.int32)
            entities += names
            for number, plane in enumerate(series.planes):
                mine = planes == number
                if mine.any():
                    part = parts.setdefault(id(plane), (plane, [], []))
                    part[1].append(at[mine])
                    part[2].append(rows[mine])
        built = (Part(plane, np.concatenate(at), np.concatenate(rows)) for plane, at, rows in parts.values())
        return Index(tuple(entities), tuple(built))
