"""What the simulation itself costs, so that a benchmark can take it off and still show it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_seconds: dict[int, float] = {}
"""CPU seconds by thread: each thread writes its own key alone, so no lock is needed."""


@contextmanager
def counted() -> Iterator[None]:
    """Count this thread's CPU time in the block; blocking costs nothing, as in a real driver."""
    began = time.thread_time()
    try:
        yield
    finally:
        spent = time.thread_time() - began
        ident = threading.get_ident()
        _seconds[ident] = _seconds.get(ident, 0.0) + spent


def seconds() -> float:
    """CPU seconds that the simulation has taken in this process."""
    return sum(list(_seconds.values()))
