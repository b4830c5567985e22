"""When a GPU's driver answers far slower than it used to, ask it less: a good neighbour does not push.

Pure: seconds and times come from the caller. Blind spot: a driver that was slow from the start has no better
self to be compared with; one that stays slow becomes the new normal after some minutes.
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import Final

FACTOR: Final = 5.0
HOLD_NS: Final = 10_000_000_000
_FLOOR_S: Final = 0.005  # what a busy machine's scheduler alone adds
_KEEP_EVERY: Final = 5  # readings: with the length below, the median is of ten minutes at 1 Hz
_LENGTH: Final = 120
_LENGTH_MIN: Final = 6


class Backoff:
    """Takes each fast reading's driver time; `active` while it is over 5 times its own median for 10 s."""

    def __init__(self) -> None:
        self._kept: deque[float] = deque(maxlen=_LENGTH)
        self._number = 0
        self._limit_s = float("inf")
        self._slow_since_ns: int | None = None
        self.active = False

    def note(self, seconds: float, time_ns: int) -> None:
        """Take one reading of the tick at `time_ns`."""
        if seconds <= self._limit_s:
            self._slow_since_ns, self.active = None, False
        else:
            self._slow_since_ns = time_ns if self._slow_since_ns is None else self._slow_since_ns
            self.active = time_ns - self._slow_since_ns >= HOLD_NS
        if self._number % _KEEP_EVERY == 0:
            self._kept.append(seconds)
            if len(self._kept) >= _LENGTH_MIN:
                self._limit_s = max(_FLOOR_S, FACTOR * statistics.median(self._kept))
        self._number += 1
