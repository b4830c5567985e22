"""One simulated rank: the real hook around a loop that only waits, in a process of its own.

The hook's own clock reads the schedule, so that a step's numbers are those of the simulation on a busy
machine too; everything else of it is real: ring, thread, heartbeat, registration, stack, end.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Iterator
from types import ModuleType

from gpuvigil import handles, loop, monitor
from gpuvigil_agent.simulate import noise
from gpuvigil_agent.simulate.job import Job
from gpuvigil_agent.simulate.job_collectives import Recorder
from gpuvigil_agent.simulate.job_effects import NEVER, SECOND_NS, Death
from gpuvigil_agent.simulate.job_steps import Step, Steps

_LONGEST_SLEEP_S = 3600.0
_FIRST_LOSS, _LAST_LOSS, _LOSS_STEPS = 9.0, 2.0, 700.0


class DeviceError(RuntimeError):
    """What CUDA or the network raises in a rank."""


class _Clock:
    """The instant of the schedule at which the loop is, as the hook's monotonic time."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._now_ns = time.monotonic_ns()

    def at(self, time_ns: int) -> None:
        """Be at an instant: never before the last one, never ahead of the real clock."""
        self._now_ns = max(self._now_ns, min(time.monotonic_ns(), time_ns - self._offset_ns))

    def now(self) -> int:
        return self._now_ns

    def install(self) -> None:
        modules: tuple[ModuleType, ...] = (handles, loop)
        for module in modules:
            module.__dict__["monotonic_ns"] = self.now


class SimulatedRank:
    """One rank of a job; `train` returns at the job's end, or does not."""

    def __init__(self, job: Job, rank: int, steps: Steps, seed: int) -> None:
        self._job, self._rank, self._steps = job, rank, steps
        self._key = noise.mix(seed, noise.key_of(job.name), 31)
        self._clock, self._recorder = _Clock(), Recorder(rank)
        self._death = Death(NEVER, "")

    def train(self, deaths: dict[int, Death]) -> None:
        """Train until the job is over. deaths: of ranks that end by a fault of their own."""
        self._death = deaths.get(self._rank, self._death)
        coming = self._coming()
        first = next(coming, None)
        if first is None or self._ending(first).time_ns <= time.time_ns():
            return
        for seconds in _pauses(self._steps.begin_ns):
            time.sleep(seconds)
        self._clock.install()
        self._recorder.install(self._job.world_size)
        self._clock.at(time.time_ns())
        with monitor.phase("init"):
            for seconds in self._until(first.begin[self._rank]):
                time.sleep(seconds)
        for step in itertools.chain((first,), coming):
            self.step(step)

    def _coming(self) -> Iterator[Step]:
        """Yield the steps that this rank can still do: who comes late joins the next one, or the last."""
        now_ns = time.time_ns()
        return (step for step in self._steps if step.halted or step.begin[self._rank] >= now_ns)

    def _ending(self, step: Step) -> Death:
        return step.deaths.get(self._rank, self._death)

    def step(self, step: Step) -> None:
        """Do one step as a loop does that has the hook in it."""
        self._death = self._ending(step)
        self._recorder.step, self._recorder.arrived = step, False
        with monitor.phase("data"):
            self.read_batch(step)
        with monitor.step(step.number) as told:
            with monitor.phase("forward"):
                self.forward(step)
            with monitor.phase("backward"):
                self.backward(step)
            with monitor.phase("optimizer"):
                self.optimize(step)
            told.log(**self._numbers(step))
            if step.saved:
                with monitor.phase("checkpoint"):
                    self.save(step)

    # names below are what a stack shows

    def read_batch(self, step: Step) -> None:
        """Wait for the input."""
        for seconds in self._until(step.data[self._rank]):
            time.sleep(seconds)

    def forward(self, step: Step) -> None:
        """Compute; a rank that hangs on the host does it here."""
        for seconds in self._until(step.forward[self._rank]):
            time.sleep(seconds)

    def backward(self, step: Step) -> None:
        """Compute, then give the gradients to all."""
        for seconds in self._until(step.arrive[self._rank]):
            time.sleep(seconds)
        self._recorder.arrived = True
        self.all_reduce(step)

    def all_reduce(self, step: Step) -> None:
        """Wait for everybody's gradients."""
        for seconds in self._until(step.done):
            time.sleep(seconds)

    def save(self, step: Step) -> None:
        """Write, and wait until all have written."""
        for seconds in self._until(step.saved):
            time.sleep(seconds)

    def optimize(self, step: Step) -> None:
        """Compute."""
        for seconds in self._until(step.end[self._rank]):
            time.sleep(seconds)

    def _until(self, time_ns: int) -> Iterator[float]:
        """Yield seconds to sleep until an instant of the schedule; end where this process does before.

        The sleep itself is the caller's, so that its name is the innermost of the stack.
        """
        death = self._death
        yield from _pauses(min(time_ns, death.time_ns))
        if death.time_ns <= time_ns:
            self._die(death.how)
        self._clock.at(time_ns)

    @staticmethod
    def _die(how: str) -> None:
        if how == "error":
            raise DeviceError("a device or its network failed (simulated)")
        os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGABRT)

    def _numbers(self, step: Step) -> dict[str, float]:
        """Loss, which all ranks share, gradient norm, tokens."""
        word = noise.mix(self._key, step.number)
        fallen = math.exp(-step.number / _LOSS_STEPS)
        loss = _LAST_LOSS + (_FIRST_LOSS - _LAST_LOSS) * fallen
        return {
            "loss": loss * (1 + 0.01 * noise.normal(word)) * step.loss,
            "grad_norm": (1 + 0.08 * noise.normal(word, 1)) * step.loss,
            "tokens": int(self._job.tokens * step.work[self._rank]),
        }


def _pauses(time_ns: int) -> Iterator[float]:
    while (left_ns := time_ns - time.time_ns()) > 0:
        yield min(left_ns / SECOND_NS, _LONGEST_SLEEP_S)
