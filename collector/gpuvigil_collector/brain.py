"""The brain's loop: a tick each interval, and one at once when an event came, in a thread of its own.

So the API stays responsive whatever a tick costs, and a tick never waits for a reader.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from gpuvigil_collector.config import Tick
from gpuvigil_collector.export.view import View
from gpuvigil_collector.pipeline import Pipeline

_WAIT_MAX_S = 1.0  # how long a stop may go unnoticed


class Brain:
    """Runs the pipeline until `stop`. `on_end` gets the bug that ended it, or None, in its thread."""

    def __init__(
        self, pipeline: Pipeline, pace: Tick, on_end: Callable[[BaseException | None], None]
    ) -> None:
        self._pipeline, self._pace, self._on_end = pipeline, pace, on_end
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="brain", daemon=True)
        self._ended_tick = time.monotonic()

    def start(self) -> None:
        """Begin ticking."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ask for the end and wait; False when the tick in progress did not end in time."""
        self._stopping.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def view(self) -> View:
        """Return what the last tick left; any thread may ask."""
        return self._pipeline.view

    def stalled_s(self) -> float:
        """Seconds since the last tick ended."""
        return time.monotonic() - self._ended_tick

    def _main(self) -> None:
        try:
            self._run()
        finally:
            self._on_end(sys.exc_info()[1])

    def _run(self) -> None:
        """Tick until stopped, and once more then: what ingest took before it stopped is judged, not lost."""
        due = time.monotonic()
        while not self._stopping.is_set():
            urgent = self._wait(due)
            if self._stopping.is_set():
                break
            self._pipeline.run(time.time_ns(), urgent=urgent)
            self._ended_tick = time.monotonic()
            if not urgent:  # a tick that took too long is not made up for: the next one looks at now
                due = max(due + self._pace.interval, self._ended_tick)
        self._pipeline.run(time.time_ns(), urgent=False)

    def _wait(self, due: float) -> bool:
        """Wait until `due` (False) or until an event came before it (True)."""
        while not self._stopping.is_set():
            left = due - time.monotonic()
            if left <= 0:
                return False
            if self._pipeline.store.wait_events(min(left, _WAIT_MAX_S)):
                spacing = self._ended_tick + self._pace.event_spacing - time.monotonic()
                self._stopping.wait(max(0.0, spacing))
                return time.monotonic() < due
        return False
