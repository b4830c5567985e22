"""Tasks beside a process's main work that it must not outlive.

A task that dies unseen leaves a process that looks well and does half its work: so its end ends the process,
in order, and the supervisor starts a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from gpuvigil_protos import log

_log = log.get("ingest")


class Vital:
    """Background tasks; `stop` is set when one of them fails."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Run `work` beside the caller."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("task_died", task=task.get_name(), error=ascii(error)[:300], then="the process ends")
            self._stop.set()

    async def join(self) -> None:
        """Wait for the end of all, and raise what the first failed one raised."""
        await asyncio.gather(*self._tasks)
