"""Threads of the driver process that may hang: each runs one job at a time and reports to the outbox.

Only the coordinator decides; a worker's job returns what it found, or the driver error that ended it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from gpuvigil_agent.driver_errors import DriverError
from gpuvigil_agent.nvml import Calls

T = TypeVar("T")


class Outbox:
    """Results on their way to the coordinator; a pipe wakes it. The writer never blocks."""

    def __init__(self) -> None:
        self._results: deque[Callable[[], None]] = deque()
        self.wake_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __len__(self) -> int:
        return len(self._results)

    def put(self, deliver: Callable[[], None]) -> None:
        """Have `deliver` run on the coordinator's thread."""
        self._results.append(deliver)
        try:
            os.write(self._write_fd, b".")
        except BlockingIOError:
            return  # the pipe is full of wake-ups already

    def drain(self) -> None:
        """Run all that waits. Called by the coordinator alone."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 4096)
        while self._results:
            self._results.popleft()()


class Hanging(NamedTuple):
    """A call in flight: the NVML function and for how long."""

    call: str
    seconds: float


class Worker:
    """One thread, one job at a time. It is a daemon: a call that never returns ends with the process."""

    def __init__(self, name: str, calls: Calls, outbox: Outbox) -> None:
        self.calls, self._outbox = calls, outbox
        self.busy = False
        self._jobs: queue.SimpleQueue[Callable[[], Callable[[], None]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def offer(self, job: Callable[[], T], then: Callable[[T | DriverError], None]) -> bool:
        """Run `job` here and `then(result or driver error)` on the coordinator. False while busy."""
        if self.busy:
            return False
        self.busy = True

        def work() -> Callable[[], None]:
            result: T | DriverError
            try:
                result = job()
            except DriverError as error:
                result = error

            def deliver() -> None:
                self.busy = False
                then(result)

            return deliver

        self._jobs.put(work)
        return True

    def hanging(self, longer_than_s: float) -> Hanging | None:
        """Return the call in flight if it is older than this."""
        in_flight = self.calls.in_flight
        if in_flight is None:
            return None
        seconds = time.monotonic() - in_flight[1]
        return Hanging(in_flight[0], seconds) if seconds > longer_than_s else None

    def _run(self) -> None:
        while True:
            self._outbox.put(self._jobs.get()())
