"""Host samplers in a worker thread, each timed. A read that hangs costs its own sampler, never a tick.

The thread that hangs keeps its sampler and is left behind; the others go on in a fresh one from the next
tick. So at most one thread a sampler hangs, and the one that does is named.
"""

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
    """One sampler: is it up, does it hang, how long did it take, how often was its source absent."""

    up: bool = False
    stuck: bool = False
    seconds: float = 0.0
    absences: int = 0


@dataclass(slots=True)
class Reading:
    """What one sampler yielded; samples None when its source was absent, with the reason."""

    name: str
    period_s: float
    samples: list[Sample] | None
    seconds: float = 0.0
    reason: str = ""
    at_s: float = field(default_factory=time.monotonic)


class _Round:
    """What one tick asks of the worker; once closed, what still comes is stale and nothing more is asked."""

    def __init__(self, due: list[Sampler]) -> None:
        self.due = due
        self.readings: list[Reading] = []
        self.closed = False

    def run(self) -> None:
        """In the worker."""
        for sampler in self.due:
            if self.closed:
                return
            self.readings.append(_read(sampler))


def _read(sampler: Sampler) -> Reading:
    started, reason = time.monotonic(), ""
    samples: list[Sample] | None
    try:
        samples = list(sampler.sample())
    except SourceAbsentError as error:
        samples, reason = None, str(error)
    return Reading(sampler.name, sampler.period_s, samples, time.monotonic() - started, reason)


class HostRunner:
    """Run what is due at a tick. Results that come after the deadline are thrown away: they are stale."""

    def __init__(self, samplers: list[Sampler]) -> None:
        self.health = {sampler.name: Health() for sampler in samplers}
        self.late = 0
        self.threads_refused = 0
        self.samplers = samplers
        self._pool = ThreadPoolExecutor(1, "host")
        self._stuck: dict[str, Future[None]] = {}
        self._missed: set[str] = set()
        self._first = -1

    async def read(self, number: int) -> list[Reading]:
        """Return the readings due at tick `number` that came in time; a sampler that hangs is left out."""
        self._forgive()
        self._first = number if self._first < 0 else self._first
        due = [s for s in self.samplers if s.name not in self._stuck and self._is_due(s, number)]
        self._missed.clear()
        if not due:
            return []
        asked = _Round(due)
        try:
            running = self._pool.submit(asked.run)
        except RuntimeError:  # the system gives no thread: the next tick may find one
            self._without_thread(due)
            return []
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(running)), DEADLINE_S)
        except TimeoutError:
            self._leave_behind(asked, running)
        readings = list(asked.readings)
        for reading in readings:
            self._note(reading)
        return readings

    def _is_due(self, sampler: Sampler, number: int) -> bool:
        due = is_due(number, self._first, sampler.period_s, sampler.name)
        return due or sampler.name in self._missed

    def _leave_behind(self, asked: _Round, running: Future[None]) -> None:
        """Name the sampler that hangs; those behind it are read at the next tick, in a fresh thread."""
        asked.closed = True
        self.late += 1
        left = asked.due[len(asked.readings) :]
        if not left:
            return
        name = left[0].name
        _log.warning("sampler_stuck", sampler=name, limit_s=DEADLINE_S, note="the others go on")
        self._stuck[name] = running
        self.health[name].up, self.health[name].stuck = False, True
        self._missed = {sampler.name for sampler in left[1:]}
        self._renew_pool()

    def _without_thread(self, due: list[Sampler]) -> None:
        self.threads_refused += 1
        for sampler in due:
            self.health[sampler.name].up = False
        self._missed = {sampler.name for sampler in due}
        self._renew_pool()

    def _renew_pool(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = ThreadPoolExecutor(1, "host")

    def _forgive(self) -> None:
        """Take back samplers whose read has returned."""
        for name in [name for name, running in self._stuck.items() if running.done()]:
            self._stuck.pop(name).result()
            self.health[name].stuck = False
            _log.info("sampler_recovered", sampler=name)

    def _note(self, reading: Reading) -> None:
        health = self.health[reading.name]
        was_up, health.up, health.seconds = health.up, reading.samples is not None, reading.seconds
        if reading.samples is None:
            if was_up or not health.absences:
                _log.warning("sampler_down", sampler=reading.name, reason=reading.reason)
            health.absences += 1

    def replace(self, samplers: list[Sampler]) -> None:
        """Go on with other samplers from the next tick; all of them read at once."""
        self.samplers, self._first = samplers, -1
        self._stuck, self._missed = {}, set()
        self.health = {sampler.name: Health() for sampler in samplers}
        self._renew_pool()

    def stop(self) -> None:
        """Wait for nothing: a hung read is left behind."""
        self._pool.shutdown(wait=False, cancel_futures=True)
