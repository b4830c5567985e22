"""Host samplers in one worker thread, each timed. A file system that hangs costs readings, never a tick."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from gpuvigil_agent.samplers.base import Sample, Sampler, SourceAbsentError
from gpuvigil_agent.schedule import is_due
from gpuvigil_protos import log

DEADLINE_S: Final = 0.8
_log = log.get("host")


@dataclass(slots=True)
class Health:
    """One sampler: is it up, how long did it take, how often was its source absent."""

    up: bool = False
    seconds: float = 0.0
    absences: int = 0


@dataclass(slots=True)
class Reading:
    """What one sampler yielded; samples None when its source was absent."""

    name: str
    period_s: float
    samples: list[Sample] | None
    at_s: float = field(default_factory=time.monotonic)


class HostRunner:
    """Run what is due at a tick. Results that come after the deadline are thrown away: they are stale."""

    def __init__(self, samplers: list[Sampler]) -> None:
        self.health = {sampler.name: Health() for sampler in samplers}
        self.late = 0
        self._samplers = samplers
        self._pool = ThreadPoolExecutor(1, "host")
        self._running: Future[list[Reading]] | None = None
        self._first = -1

    async def read(self, number: int) -> list[Reading]:
        """Return the readings due at tick `number`; nothing while an earlier round still hangs."""
        if self._running is not None and not self._running.done():
            self.late += 1
            for health in self.health.values():
                health.up = False
            return []
        self._first = number if self._first < 0 else self._first
        due = [s for s in self._samplers if is_due(number, self._first, s.period_s, s.name)]
        if not due:
            return []
        self._running = self._pool.submit(self._round, due)
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._running)), DEADLINE_S)
        except TimeoutError:
            self.late += 1
            return []

    def _round(self, due: list[Sampler]) -> list[Reading]:
        return [self._one(sampler) for sampler in due]

    def _one(self, sampler: Sampler) -> Reading:
        health = self.health.setdefault(sampler.name, Health())
        started = time.monotonic()
        samples: list[Sample] | None
        try:
            samples = list(sampler.sample())
        except SourceAbsentError as error:
            if health.up or not health.absences:
                _log.warning("sampler_down", sampler=sampler.name, reason=str(error))
            samples = None
            health.absences += 1
        health.up = samples is not None
        health.seconds = time.monotonic() - started
        return Reading(sampler.name, sampler.period_s, samples)

    def replace(self, samplers: list[Sampler]) -> None:
        """Go on with other samplers from the next tick; all of them read at once."""
        self._samplers, self._first = samplers, -1
        self.health = {sampler.name: Health() for sampler in samplers}

    def stop(self) -> None:
        """Wait for nothing: a hung read is left behind."""
        self._pool.shutdown(wait=False, cancel_futures=True)
