"""Steps of training loops on their way to the brain: bounded, oldest dropped first and counted."""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from gpuvigil_collector.ingest import frames
from gpuvigil_detectors.base import StepRows

ROWS_MAX: Final = 400_000  # 80,000 ranks that send five rows between two ticks


class StepQueue:
    """Not thread-safe: the store holds its lock."""

    def __init__(self) -> None:
        self._waiting: deque[StepRows] = deque()
        self._rows = 0
        self.dropped = 0

    def add(self, message: frames.Steps) -> None:
        """Queue one rank's steps."""
        end_ns = np.frombuffer(message.time_ns, np.int64)
        values = np.frombuffer(message.values, np.float32).reshape(len(end_ns), len(message.metrics))
        self._waiting.append(
            StepRows(
                node=message.node, entity=message.entity, metrics=tuple(message.metrics),
                end_ns=end_ns, values=values,
            )
        )  # fmt: skip
        self._rows += len(end_ns)
        while self._rows > ROWS_MAX:
            gone = len(self._waiting.popleft().end_ns)
            self._rows -= gone
            self.dropped += gone

    def take(self) -> tuple[StepRows, ...]:
        """Hand out what waits, in the order in which it came."""
        taken = tuple(self._waiting)
        self._waiting.clear()
        self._rows = 0
        return taken
