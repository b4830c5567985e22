"""The beat: 1 Hz ticks on the monotonic clock, in the node's own phase of the second.

A late tick is skipped and counted, never made up in a burst. Tick times are regular: the wall clock sets
the anchor and is looked at again only when it has jumped.
"""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SECOND_NS: Final = 1_000_000_000
_JUMP_NS: Final = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """number counts from 0 and jumps over skipped ticks; time_ns is wall time, monotonic_s the plan."""

    number: int
    time_ns: int
    monotonic_s: float
    lateness_s: float


class Beat:
    """Plan ticks. Pure but for the two clocks, which tests replace."""

    def __init__(
        self,
        phase_s: float,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall_ns, self._monotonic_s = wall_ns, monotonic_s
        self._phase_ns = int(phase_s * SECOND_NS)
        self._number = -1
        self.skipped = 0
        self.clock_jumps = 0
        self._anchor()

    def _anchor(self) -> None:
        """Lay tick 0 (or the next one) on the wall second plus phase."""
        wall, monotonic = self._wall_ns(), self._monotonic_s()
        wait_ns = (self._phase_ns - wall) % SECOND_NS
        self._first_number = self._number + 1
        self._first_wall_ns = wall + wait_ns
        self._first_monotonic_s = monotonic + wait_ns / SECOND_NS

    def wait_s(self) -> float:
        """Return how long to sleep until the next tick; 0 when it is due."""
        return max(0.0, self._planned_s(self._number + 1) - self._monotonic_s())

    def _planned_s(self, number: int) -> float:
        return self._first_monotonic_s + (number - self._first_number)

    def next(self) -> Tick:
        """Return the tick that is due now; whole seconds that were missed are skipped and counted."""
        now_s = self._monotonic_s()
        behind = math.floor(now_s - self._planned_s(self._number + 1))
        if behind > 0:
            self.skipped += behind
            self._number += behind
        self._number += 1
        planned_s = self._planned_s(self._number)
        return Tick(
            number=self._number,
            time_ns=self._time_ns(self._number, now_s - planned_s),
            monotonic_s=planned_s,
            lateness_s=max(0.0, now_s - planned_s),
        )

    def _time_ns(self, number: int, late_s: float) -> int:
        planned = self._first_wall_ns + (number - self._first_number) * SECOND_NS
        actual = self._wall_ns() - int(late_s * SECOND_NS)
        if abs(actual - planned) <= _JUMP_NS:
            return planned
        self.clock_jumps += 1
        self._first_wall_ns += actual - planned
        return actual


def is_due(number: int, first: int, period_s: float, name: str) -> bool:
    """Tell whether a sampler of this period reads at tick `number`.

    It reads at tick `first`, where it was added, so that nothing is blank for a minute; after that slow
    samplers spread over their period by name.
    """
    period = max(1, round(period_s))
    return number == first or number % period == zlib.crc32(name.encode()) % period


async def sleep_until_due(beat: Beat, stop: asyncio.Event) -> bool:
    """Sleep to the next tick. False when `stop` was set meanwhile."""
    try:
        await asyncio.wait_for(stop.wait(), beat.wait_s())
    except TimeoutError:
        return True
    return False
