"""The shared-memory ring: the newest minutes of every series, written by one worker, read by the brain.

Two planes: `fast` has one column a second, `slow` (period over one second) one a ten seconds. A plane is
time-major, float32 [columns, capacity], so that one node's tick is one slice. Memory is anonymous (memfd):
it leaves nothing behind after a crash, and only touched pages cost anything.

There is one writer and no lock. A reader sees a column as valid only while its second is the expected one;
values of the newest `SETTLE_S` seconds may still change and are left to `latest`.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SETTLE_S: Final = 2
WINDOW_MAX_S: Final = 300
_HEADER_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Shape:
    """Seconds a column stands for, and how many columns there are (some more than a window reads)."""

    step_s: int
    columns: int


SHAPES: Final = (Shape(1, WINDOW_MAX_S + 20), Shape(10, WINDOW_MAX_S // 10 + 4))
FAST, SLOW = range(len(SHAPES))


class Plane:
    """One mapped plane: column_second int64 [columns]; latest_ns int64, latest float32 [capacity]."""

    def __init__(self, fd: int, shape: Shape, capacity: int) -> None:
        self.shape = shape
        self.capacity = capacity
        self._map = mmap.mmap(fd, size_bytes(shape, capacity))
        at = _HEADER_BYTES
        self.column_second: NDArray[np.int64] = np.frombuffer(self._map, np.int64, shape.columns, at)
        at += 8 * shape.columns
        self.latest_ns: NDArray[np.int64] = np.frombuffer(self._map, np.int64, capacity, at)
        at += 8 * capacity
        self.latest: NDArray[np.float32] = np.frombuffer(self._map, np.float32, capacity, at)
        at += 4 * capacity
        flat = np.frombuffer(self._map, np.float32, shape.columns * capacity, at)
        self.values: NDArray[np.float32] = flat.reshape(shape.columns, capacity)
        self._used = 0

    def write(
        self, second: int, time_ns: int, rows: slice | NDArray[np.int32], values: NDArray[np.float32]
    ) -> None:
        """Put one tick of one group: values float32 [rows], NaN = absent. A column is never set back."""
        start = second - second % self.shape.step_s
        column = start // self.shape.step_s % self.shape.columns
        if self.column_second[column] < start:
            self.values[column, : self._used] = np.nan
            self.column_second[column] = start
        if self.column_second[column] == start:
            self.values[column, rows] = values
        self._write_latest(time_ns, rows, values)

    def _write_latest(
        self, time_ns: int, rows: slice | NDArray[np.int32], values: NDArray[np.float32]
    ) -> None:
        present = ~np.isnan(values)
        if present.all():
            self.latest[rows] = values
            self.latest_ns[rows] = time_ns
            return
        self.latest[rows] = np.where(present, values, self.latest[rows])
        self.latest_ns[rows] = np.where(present, time_ns, self.latest_ns[rows])

    def clear(self, rows: NDArray[np.int32]) -> None:
        """Make rows ready for new series: all columns NaN, never seen."""
        self._used = max(self._used, int(rows.max()) + 1)
        self.values[:, rows] = np.nan
        self.latest[rows] = np.nan
        self.latest_ns[rows] = 0

    def read(
        self, first_second: int, seconds: int, rows: NDArray[np.int32], out: NDArray[np.float32]
    ) -> None:
        """Fill `out`, float32 [rows, seconds], from `first_second` on; what is not there stays as it is."""
        step, columns = self.shape.step_s, self.shape.columns
        wanted = np.arange(-(-first_second // step) * step, first_second + seconds, step)
        where = wanted // step % columns
        valid = self.column_second[where] == wanted
        if valid.any():
            found = self.values[where[valid][:, None], rows[None, :]]
            out[:, wanted[valid] - first_second] = found.T


def size_bytes(shape: Shape, capacity: int) -> int:
    """Return the bytes of a plane's mapping; pages that are never touched are never there."""
    return _HEADER_BYTES + 8 * shape.columns + 12 * capacity + 4 * shape.columns * capacity


def create(name: str, shape: Shape, capacity: int) -> int:
    """Make an anonymous file for a plane and return its descriptor, which the caller closes."""
    fd = os.memfd_create(f"gpuvigil-{name}", os.MFD_CLOEXEC)
    os.ftruncate(fd, size_bytes(shape, capacity))
    return fd
