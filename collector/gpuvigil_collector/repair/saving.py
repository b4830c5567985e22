"""Checkpoints for repair: one request a job and incident, through the desk that also serves operators."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from gpuvigil_collector.repair.walk import Word
from gpuvigil_collector.saves.desk import RefusedError, SaveDesk, StrangerError
from gpuvigil_collector.saves.request import SaveRequest

_KEPT_MAX: Final = 2000
_RETURN_S: Final = 60.0
"""So long after its start the collector may not have heard yet of every job that can save."""


class Saving:
    """hands.Saves over the collector's save desk. One thread calls all methods. steady_s: never jumps."""

    def __init__(self, desk: SaveDesk, steady_s: Callable[[], float] = time.monotonic) -> None:
        self._desk, self._steady_s, self._began_s = desk, steady_s, steady_s()
        self._asked: dict[tuple[str, str], Future[SaveRequest]] = {}

    def begin(self, job: str, by: str) -> None:
        """Ask a job for a checkpoint in the name of an incident."""
        self._asked[job, by] = self._desk.ask(job, by)
        while len(self._asked) > _KEPT_MAX:
            del self._asked[next(iter(self._asked))]

    def stands(self, job: str, by: str) -> Word:
        """Say how it goes. What an earlier run of the collector asked for is asked for anew: it harms nobody.

        A job of which nothing is known yet right after the start is no job that cannot save.
        """
        future = self._asked.get((job, by))
        if future is None:
            self.begin(job, by)
            return Word("waits", f"{job} is asked anew: the collector was restarted meanwhile")
        if not future.done():
            return Word("waits", f"{job} is asked for a checkpoint")
        return self._answered(job, by, future)

    def _answered(self, job: str, by: str, future: Future[SaveRequest]) -> Word:
        error = future.exception()
        if isinstance(error, StrangerError) and self._steady_s() - self._began_s < _RETURN_S:
            del self._asked[job, by]
            return Word("waits", f"{job} is not known yet: the collector has just started")
        return Word("failed", str(error)) if isinstance(error, RefusedError) else _word(future.result())


def _word(request: SaveRequest) -> Word:
    if not request.ended:
        return Word("waits", f"{request.job}: checkpoint {request.state}")
    if request.state == "saved":
        return Word("done", f"step {request.step} in {request.path}")
    return Word("failed", f"{request.state}: {request.detail}")
