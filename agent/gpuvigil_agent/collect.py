"""One tick: GPU readings from the driver process and host readings from the worker, into batch and latest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from gpuvigil_agent.batch import BatchBuilder
from gpuvigil_agent.host_runner import HostRunner
from gpuvigil_agent.latest import Latest
from gpuvigil_agent.rates import Rates
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_agent.samplers.gpu_table import PERIOD_S
from gpuvigil_agent.schedule import Tick

if TYPE_CHECKING:
    from gpuvigil_agent.driver_client import DriverClient
    from gpuvigil_agent.hook_intake import HookIntake

_HOUSEKEEPING_TICKS: Final = 60
_FORGET_RATES_S: Final = 300.0


class Collect:
    """Owns what a tick touches."""

    def __init__(self, driver: DriverClient, host: HostRunner, hook: HookIntake) -> None:
        self.driver, self.host, self.hook = driver, host, hook
        self.batch, self.latest, self.rates = BatchBuilder(), Latest(), Rates()
        self.implausible = 0
        self._newest: dict[str, list[Sample]] = {}

    async def tick(self, tick: Tick) -> None:
        """Read everything due and add it to the batch under the tick's time."""
        host, gpu = await asyncio.gather(self.host.read(tick.number), self.driver.tick(tick.time_ns))
        now_s = time.monotonic()
        by_period: dict[float, list[Sample]] = {}
        for reading in host:
            samples = None if reading.samples is None else self._plausible(reading.samples)
            self.latest.put(reading.name, reading.period_s, reading.at_s, samples)
            by_period.setdefault(reading.period_s, []).extend(
                self.rates.for_wire(samples or (), reading.at_s)
            )
        for period_s, samples in self._gpu_by_period(gpu).items():
            self.latest.put(f"gpu {period_s:g}", period_s, now_s, samples)
            by_period.setdefault(period_s, []).extend(self.rates.for_wire(samples, now_s))
        by_period.setdefault(1.0, []).extend(self._ranks(now_s))
        for period_s, samples in by_period.items():
            self.batch.add(tick.time_ns, now_s, period_s, samples)
        if tick.number % _HOUSEKEEPING_TICKS == 0:
            self.batch.forget(now_s)
            self.rates.forget_before(now_s - _FORGET_RATES_S)

    def _ranks(self, now_s: float) -> list[Sample]:
        """Take in the training loops: each ended step as a row of its own, and how every rank is now."""
        if not self.hook.ranks and not self._newest:
            return []
        samples, steps = self.hook.read()
        for name, step in steps:
            self.batch.add_step(name, step.end_ns, now_s, step.samples)
            self._newest[name] = step.samples
        self.batch.keep_ranks(self.hook.ranks)
        self._newest = {name: self._newest[name] for name in self.hook.ranks if name in self._newest}
        newest = [s for kept in self._newest.values() for s in kept if s.value == s.value]
        self.latest.put("hook", 1.0, now_s, [*samples, *newest])
        return samples

    def _gpu_by_period(self, samples: list[Sample]) -> dict[float, list[Sample]]:
        found: dict[float, list[Sample]] = {}
        for sample in self._plausible(samples):
            found.setdefault(PERIOD_S.get(sample.metric.name, 1.0), []).append(sample)
        return found

    def _plausible(self, samples: Iterable[Sample]) -> list[Sample]:
        """Leave out what no hardware says (blanks, negative counters, NaN) and count it."""
        kept = []
        for sample in samples:
            if sample.metric.low <= sample.value <= sample.metric.high:
                kept.append(sample)
            else:
                self.implausible += 1
        return kept
