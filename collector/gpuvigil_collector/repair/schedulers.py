"""The site's scheduler as repair sees it: one reading for the kernel, and the actuators that go with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from gpuvigil_collector.repair.fleet import SchedulerView
from gpuvigil_collector.slurm.client import SlurmClient
from gpuvigil_collector.slurm.settings import SlurmSettings
from gpuvigil_collector.slurm.view import SlurmView
from gpuvigil_collector.slurm.watch import SlurmWatch


class Scheduler(Protocol):
    """Read in threads of its own; `view` answers at once. trouble: why it cannot be read, "" while it can."""

    def view(self) -> SchedulerView | None:
        """Return the newest reading; None while there is none that is fresh."""
        ...

    def trouble(self) -> str:
        """Say what is wrong with the reading."""
        ...

    def stop(self) -> None:
        """End the threads."""
        ...


class SlurmScheduler:
    """Slurm, by its own programs. partitions: those with a mode of their own, the strictest first."""

    def __init__(
        self,
        settings: SlurmSettings,
        clock: Callable[[], int] = time.time_ns,
        partitions: Sequence[str] = (),
    ) -> None:
        self._settings, self._clock, self._partitions = settings, clock, partitions
        self._watch = SlurmWatch(
            SlurmClient(folder=settings.folder),
            settings.interval,
            settings.deadline,
            settings.opt_in == "all",
        )
        self._made: tuple[SlurmView, SchedulerView] | None = None
        self._watch.start()

    def view(self) -> SchedulerView | None:
        """Return the newest reading; None while there is none that is fresh."""
        found = self._watch.state.fresh(self._clock(), self._settings.stale)
        if found is None:
            return None
        if self._made is None or self._made[0] is not found:
            jobs = {name: state for name in found.jobs if (state := found.job_state(name)) is not None}
            adds = partial(found.node_state, configured=self._partitions)
            self._made = found, SchedulerView(at_ns=found.at_ns, adds=adds, jobs=jobs)
        return self._made[1]

    def trouble(self) -> str:
        """Say what is wrong with the reading, or what Slurm's own configuration contradicts."""
        state = self._watch.state
        return state.trouble or "; ".join(state.view.troubles if state.view is not None else ())

    def stop(self) -> None:
        """End the thread."""
        self._watch.stop()
