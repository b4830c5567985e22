"""When did each entity, and each node, last say anything? The ground of what vanished, stopped or froze."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors.base import Snapshot
from gpuvigil_detectors.series_state import rows_of

_SECOND: Final = 1_000_000_000
Int64 = NDArray[np.int64]


def node_of(entity: str) -> str:
    """The node part of a full name."""
    return entity.partition("/")[0]


class Freshness:
    """Newest reading of every entity that any of `metrics` is about, and of its node.

    entities [S]; newest_ns int64 [S], 0 = never; nodes [N]; node_rows int64 [S] row of each entity's node;
    node_newest_ns int64 [N].
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self._metrics = tuple(metrics)
        self._lists: tuple[tuple[str, ...], ...] = ()
        self._rows: list[Int64] = []
        self.entities: tuple[str, ...] = ()
        self.nodes: tuple[str, ...] = ()
        self.node_rows: Int64 = np.empty(0, dtype=np.int64)
        self.newest_ns: Int64 = np.empty(0, dtype=np.int64)
        self.node_newest_ns: Int64 = np.empty(0, dtype=np.int64)

    def update(self, snapshot: Snapshot) -> None:
        """Read one snapshot."""
        latest = [snapshot.latest(metric) for metric in self._metrics]
        lists = tuple(item.entities for item in latest)
        if lists != self._lists:
            self._regroup(lists)
        newest = np.zeros(len(self.entities), dtype=np.int64)
        for item, rows in zip(latest, self._rows, strict=True):
            age = np.where(np.isfinite(item.age_s) & np.isfinite(item.values), item.age_s, np.inf)
            seen = np.isfinite(age)
            time_ns = snapshot.now_ns - (np.maximum(age[seen].astype(np.float64), 0) * _SECOND).astype(
                np.int64
            )
            np.maximum.at(newest, rows[seen], time_ns)
        self.newest_ns = newest
        self.node_newest_ns = np.zeros(len(self.nodes), dtype=np.int64)
        np.maximum.at(self.node_newest_ns, self.node_rows, newest)

    def of_nodes(self) -> dict[str, int]:
        """Newest reading of every node, nanoseconds."""
        return dict(zip(self.nodes, self.node_newest_ns.tolist(), strict=True))

    def of_entities(self, wanted: Sequence[str]) -> dict[str, int]:
        """Newest reading of some entities; unknown ones are 0."""
        rows = rows_of(self.entities, tuple(wanted)) if wanted else ()
        return {e: int(self.newest_ns[r]) if r >= 0 else 0 for e, r in zip(wanted, rows, strict=True)}

    def _regroup(self, lists: tuple[tuple[str, ...], ...]) -> None:
        self._lists = lists
        self.entities = tuple(dict.fromkeys(name for names in lists for name in names))
        self._rows = [rows_of(self.entities, names) for names in lists]
        owners = tuple(node_of(entity) for entity in self.entities)
        self.nodes = tuple(dict.fromkeys(owners))
        self.node_rows = rows_of(self.nodes, owners)
