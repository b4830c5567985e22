"""How long messages wait from their arrival until they are durable and may be acknowledged as such.

Counters for the brain, summed over workers there: `ack_latency_total:<upper bound in seconds>` holds the
messages in that bucket alone, `ack_latency_total:sum` the seconds of all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

NAME: Final = "ack_latency_total"
BOUNDS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
_KEYS: Final = (*(f"{NAME}:{bound:g}" for bound in BOUNDS_S), f"{NAME}:+Inf")
_SUM: Final = f"{NAME}:sum"


class AckLatency:
    """A histogram as counters."""

    def __init__(self) -> None:
        self.counters = dict.fromkeys((*_KEYS, _SUM), 0.0)

    def durable(self, arrived: Iterable[float], now: float) -> None:
        """Count the messages that became durable now; times are monotonic seconds."""
        for at in arrived:
            self.counters[_KEYS[bisect_left(BOUNDS_S, now - at)]] += 1
            self.counters[_SUM] += now - at


def buckets(counters: dict[str, float]) -> tuple[list[tuple[str, float]], float]:
    """Return (upper bound, messages up to it) of each bucket, and the sum, of counters added up."""
    total, found = 0.0, []
    for key in _KEYS:
        total += counters.get(key, 0.0)
        found.append((key.partition(":")[2], total))
    return found, counters.get(_SUM, 0.0)
