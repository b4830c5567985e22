"""The agent's own bound on driver calls: a good neighbour asks at most so many a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from gpuvigil_agent.driver_errors import OverBudget


class Budget:
    """A token bucket over all threads: at most `per_second` driver calls a second, refilled evenly."""

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._clock, self._lock = per_second, clock, threading.Lock()
        self._tokens, self._at = float(per_second), clock()

    def take(self, call: str) -> None:
        """Spend one call. Raises OverBudget when none is left."""
        with self._lock:
            now = self._clock()
            refill = (now - self._at) * self._per_second
            self._tokens, self._at = min(float(self._per_second), self._tokens + refill), now
            if self._tokens < 1:
                raise OverBudget(call, f"{self._per_second} driver calls per second reached")
            self._tokens -= 1
