"""Which rows of the ring a node's series have; a series keeps its row when the dictionary changes.

Rows that fall free rest for a minute before another series gets them, so that a reader with an old
dictionary never reads a stranger's values as this series'.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_collector.ingest.dictionary import Columns, Dictionary
from gpuvigil_collector.ingest.refusal import RefusedError
from gpuvigil_collector.ingest.ring import Plane

_REST_NS: Final = 60_000_000_000
_Key = tuple[str, str]


def on_grid(dictionary: Dictionary) -> list[Columns]:
    """Return the groups that have a place in the ring: all but the steps of training loops."""
    return [columns for columns in dictionary.groups.values() if not columns.steps]


class Rows:
    """Row numbers of all nodes of this worker, one numbering a plane."""

    def __init__(self, planes: tuple[Plane, ...]) -> None:
        self._planes = planes
        self._next = [0] * len(planes)
        self._free: list[deque[tuple[int, int]]] = [deque() for _ in planes]
        self._of_node: dict[str, list[dict[_Key, int]]] = {}

    def assign(self, node: str, dictionary: Dictionary, now_ns: int) -> None:
        """Give each known series its row. Raises RefusedError(too_many_series) when the ring is full."""
        old = self._of_node.get(node) or [{} for _ in self._planes]
        self._check_room(dictionary, old, now_ns)
        new: list[dict[_Key, int]] = [{} for _ in self._planes]
        for columns in on_grid(dictionary):
            columns.rows = self._group(columns.plane, columns.series, old, new, now_ns)
        self._of_node[node] = new
        self._let_go(old, new, now_ns)

    def release(self, node: str, now_ns: int) -> None:
        """Give back all rows of a node that has long been gone."""
        self._let_go(self._of_node.pop(node, []), [{} for _ in self._planes], now_ns)

    def _let_go(self, old: list[dict[_Key, int]], new: list[dict[_Key, int]], now_ns: int) -> None:
        for plane, rows in enumerate(old):
            gone = [row for key, row in rows.items() if key not in new[plane]]
            self._free[plane].extend((row, now_ns) for row in gone)

    def _check_room(self, dictionary: Dictionary, old: list[dict[_Key, int]], now_ns: int) -> None:
        wanted = [0] * len(self._planes)
        for columns in on_grid(dictionary):
            wanted[columns.plane] += sum(key not in old[columns.plane] for key in columns.series)
        for plane, count in enumerate(wanted):
            rested = sum(now_ns - freed_ns > _REST_NS for _, freed_ns in self._free[plane]) if count else 0
            room = self._planes[plane].capacity - self._next[plane] + rested
            if count > room:
                raise RefusedError(
                    "too_many_series", f"ring: expected at most {room} series more, got {count}"
                )

    def _group(
        self,
        plane: int,
        series: list[_Key],
        old: list[dict[_Key, int]],
        new: list[dict[_Key, int]],
        now_ns: int,
    ) -> NDArray[np.int32] | slice:
        fresh = []
        for key in series:
            row = old[plane].get(key)
            if row is None:
                row = self._take(plane, now_ns)
                fresh.append(row)
            new[plane][key] = row
        if fresh:
            self._planes[plane].clear(np.array(fresh, np.int32))
        rows = np.array([new[plane][key] for key in series], np.int32)
        contiguous = len(rows) > 0 and bool((np.diff(rows) == 1).all())
        return slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows

    def _take(self, plane: int, now_ns: int) -> int:
        free = self._free[plane]
        if free and now_ns - free[0][1] > _REST_NS:
            return free.popleft()[0]
        row = self._next[plane]
        self._next[plane] = row + 1
        return row

    @property
    def used(self) -> int:
        """Return how many rows were ever given, over all planes."""
        return sum(self._next)
