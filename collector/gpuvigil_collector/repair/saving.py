"""Checkpoints for repair: one request a job and incident, through the desk that also serves operators."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Final

from gpuvigil_collector.repair.walk import Word
from gpuvigil_collector.saves.desk import RefusedError, SaveDesk
from gpuvigil_collector.saves.request import SaveRequest

_KEPT_MAX: Final = 2000


class Saving:
    """hands.Saves over the collector's save desk. One thread calls all methods."""

    def __init__(self, desk: SaveDesk) -> None:
        self._desk = desk
        self._asked: dict[tuple[str, str], Future[SaveRequest]] = {}

    def begin(self, job: str, by: str) -> None:
        """Ask a job for a checkpoint in the name of an incident."""
        self._asked[job, by] = self._desk.ask(job, by)
        while len(self._asked) > _KEPT_MAX:
            del self._asked[next(iter(self._asked))]

    def stands(self, job: str, by: str) -> Word:
        """Say how it goes; a request that an earlier run of the collector made is not known any more."""
        future = self._asked.get((job, by))
        if future is None:
            return Word(
                "failed", "the collector was restarted meanwhile: what became of the request is not known"
            )
        if not future.done():
            return Word("waits", f"{job} is asked for a checkpoint")
        error = future.exception()
        if isinstance(error, RefusedError):
            return Word("failed", str(error))
        request = future.result()
        if not request.ended:
            return Word("waits", f"{job}: checkpoint {request.state}")
        if request.state == "saved":
            return Word("done", f"step {request.step} in {request.path}")
        return Word("failed", f"{request.state}: {request.detail}")
