"""Arrays with one row a series that keep their rows when the fleet's list of series changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def rows_of(old: tuple[str, ...], new: tuple[str, ...]) -> NDArray[np.int64]:
    """Row of every `new` name in `old`, -1 where it is not there: int64 [len(new)]."""
    index = {name: row for row, name in enumerate(old)}
    return np.fromiter((index.get(name, -1) for name in new), dtype=np.int64, count=len(new))


def take(values: Array, rows: NDArray[np.int64], fill: object) -> Array:
    """`values[rows]` along axis 0 with `fill` where the row is -1."""
    out = np.full((len(rows), *values.shape[1:]), fill, dtype=values.dtype)
    known = rows >= 0
    out[known] = values[rows[known]]
    return out


class SeriesState:
    """Named arrays [S, ...]; `align` moves rows to a new list of series and fills new ones.

    fields: name -> (dtype, fill, shape of one row).
    """

    def __init__(self, **fields: tuple[str, object, tuple[int, ...]]) -> None:
        self.fields = fields
        self.entities: tuple[str, ...] = ()
        self.arrays: dict[str, Array] = {
            name: np.empty((0, *shape), dtype=dtype) for name, (dtype, _, shape) in fields.items()
        }

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def __setitem__(self, name: str, value: Array) -> None:
        self.arrays[name] = value

    def align(self, entities: tuple[str, ...]) -> None:
        """Make row i of every array belong to `entities[i]`. Series that left are forgotten."""
        if entities is self.entities or entities == self.entities:
            self.entities = entities
            return
        rows = rows_of(self.entities, entities)
        for name, (_, fill, _) in self.fields.items():
            self.arrays[name] = take(self.arrays[name], rows, fill)
        self.entities = entities


class Joins:
    """Rows of one list of series in another, remembered until either list changes."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...], NDArray[np.int64]]] = {}

    def rows(self, names: tuple[str, str], into: tuple[str, ...], of: tuple[str, ...]) -> NDArray[np.int64]:
        """Row in `of` for every series of `into`, -1 where absent; `names` is the pair's key."""
        known = self._known.get(names)
        if (
            known is not None
            and (known[0] is into or known[0] == into)
            and (known[1] is of or known[1] == of)
        ):
            return known[2]
        rows = rows_of(of, into)
        self._known[names] = (into, of, rows)
        return rows
