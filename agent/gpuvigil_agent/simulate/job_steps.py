"""A synchronous job's steps on the clock, one after the other: when each rank reads, computes and waits.

A step lasts as long as its slowest rank and the exchange between all of them. All of it follows from the
scenario, the seed and the start, so that ranks on different nodes agree without a word. A fault that slows or
holds a loop takes effect with the step that begins next, one that kills at its instant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from gpuvigil_agent.simulate import noise
from gpuvigil_agent.simulate.job import Job
from gpuvigil_agent.simulate.job_effects import NEVER, SECOND_NS, Death, Effects, Stuck

START_S = 3  # process groups and the first batch
DATA, FORWARD, BACKWARD, EXCHANGE, OPTIMIZER = 0.06, 0.28, 0.4, 0.16, 0.1  # shares of a usual step
_RETRY_NS: Final = 30 * SECOND_NS  # a port's transport retries run out: 7 of 4.3 s
_RESUME_NS: Final = 4 * SECOND_NS  # a transfer goes on with the next retry
_NOTICE_NS: Final = (
    3 * SECOND_NS,
    5 * SECOND_NS,
)  # until ranks abort after a peer's death: at least, and more
_GRACE_NS: Final = 5 * SECOND_NS  # a launcher's, before it kills the ranks that do not end
_PAUSE_CHANCE, _PAUSE = 0.01, 0.2  # now and then one rank's input pauses: a share of a step
_SPREAD = math.sqrt(6)  # of the mean of two uniforms, to a standard deviation of 1


@dataclass(slots=True, kw_only=True)
class Step:
    """One step of all ranks, ns by rank; NEVER is never. done: the exchange's end; saved: 0 without a save.

    deaths: how ranks end that a step without an end leaves behind. stuck: the device that held it.
    """

    number: int
    begin: list[int]
    data: list[int] = field(default_factory=list)
    forward: list[int] = field(default_factory=list)
    arrive: list[int] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    done: int = NEVER
    saved: int = 0
    stuck: Stuck | None = None
    loss: float = 1.0
    deaths: dict[int, Death] = field(default_factory=dict)

    @property
    def halted(self) -> bool:
        """Whether the job never gets past this step."""
        return bool(self.deaths) or NEVER in (self.done, self.saved)

    def left(self, rank: int) -> int:
        """When a rank is through with the step."""
        return self.saved or self.end[rank]


class Steps:
    """Iterate once. The last step is the halted one, or that in which the job's time is over."""

    def __init__(self, job: Job, effects: Effects, seed: int, start_ns: int) -> None:
        self.job, self._effects = job, effects
        self._key = noise.mix(seed, noise.key_of(job.name))
        self.begin_ns = start_ns + int(job.begin * SECOND_NS)
        self._over_ns = NEVER if job.duration is None else self.begin_ns + int(job.duration * SECOND_NS)
        self._step_ns = job.step * SECOND_NS

    def __iter__(self) -> Iterator[Step]:
        ready = [self.begin_ns + START_S * SECOND_NS] * self.job.world_size
        since, number = ready[0], 0
        while since < self._over_ns:
            step = self._step(number, ready, since)
            yield step
            if step.halted:
                return
            ready = [step.left(rank) for rank in range(self.job.world_size)]
            since, number = max(step.done, step.saved), number + 1

    def _step(self, number: int, ready: list[int], since: int) -> Step:
        """since: the common instant that decides which faults hold."""
        step = Step(number=number, begin=ready, loss=self._effects.loss(since))
        pausing = self._pausing(number)
        slower = [self._rank(step, rank, since, rank == pausing) for rank in range(self.job.world_size)]
        step.stuck = self._effects.stuck(since)
        self._exchange(step, since)
        if step.done < NEVER:
            optimizer = OPTIMIZER * self._step_ns
            step.end = [step.done + int(optimizer * factor) for factor in slower]
            self._save(step)
        if step.halted:
            self._end(step)
        return step

    def _pausing(self, number: int) -> int:
        word = noise.mix(self._key, number, 22)
        return word % self.job.world_size if noise.uniform(word) < _PAUSE_CHANCE else -1

    def _rank(self, step: Step, rank: int, since: int, pauses: bool) -> float:
        """Add one rank's own part of the step; return how much longer it computes."""
        effects, job = self._effects, self.job
        word = noise.mix(self._key + step.number, rank)
        of_input, of_compute = _bell(word), _bell(word >> 32)
        late_s, slower, work, stands = 0.0, 1.0, 1.0, 0
        if not effects.none_ever(rank):
            late_s, stands = effects.input_s(rank, since), effects.stands(rank, since)
            slower, work = effects.compute(rank, since), effects.work(rank, step.number, since)
        if pauses:
            late_s += _PAUSE * job.step
        read = int(DATA * self._step_ns * (1 + 2 * job.jitter * of_input))
        data = NEVER if math.isinf(late_s) else step.begin[rank] + read + int(late_s * SECOND_NS)
        share = slower * work * (1 + job.jitter * of_compute)
        forward = min(NEVER, max(data, stands) + int(FORWARD * self._step_ns * share))
        step.data.append(data)
        step.forward.append(forward)
        step.arrive.append(min(NEVER, forward + int(BACKWARD * self._step_ns * share)))
        step.work.append(work)
        return slower

    def _exchange(self, step: Step, since: int) -> None:
        last = max(step.arrive)
        if last >= NEVER:
            return
        wobble = 1 + 2 * self.job.jitter * _bell(noise.mix(self._key, step.number, 24))
        usual = EXCHANGE * self._step_ns * wobble
        done = self._transfer(step, last, int(usual * self._effects.exchange(since)))
        if step.stuck is not None and done < NEVER:
            done = max(done, step.stuck.end_ns)
        patience = min(step.arrive) + int(self.job.timeout * SECOND_NS)
        dead = any(death.time_ns <= done for death in self._effects.deaths.values())
        step.done = NEVER if dead or done > patience else done

    def _transfer(self, step: Step, begin: int, needs: int) -> int:
        """End of a transfer that goes on only while every port has its carrier."""
        now = begin
        for down in self._effects.downs:
            if down.end_ns <= now:
                continue
            if down.start_ns >= now + needs:
                break
            held_from = max(now, down.start_ns)
            needs -= held_from - now
            if down.end_ns - held_from > _RETRY_NS:
                step.deaths[down.rank] = Death(held_from + _RETRY_NS, "error")
                return NEVER
            now = down.end_ns + int(_RESUME_NS * noise.uniform(self._key, step.number, 25))
        return now + needs

    def _save(self, step: Step) -> None:
        every = self.job.checkpoint_every
        if every and (step.number + 1) % every == 0:
            times = [self._effects.save_ns(rank, step.done) for rank in range(self.job.world_size)]
            step.saved = min(NEVER, max(end + time for end, time in zip(step.end, times, strict=True)))

    def _end(self, step: Step) -> None:
        """Say how every rank ends: by its own fault, or because another never came."""
        dying = self._effects.deaths | step.deaths
        waits = step.end or step.arrive  # in a save's barrier, or in the collective
        patience = min(NEVER, min(waits) + int(self.job.timeout * SECOND_NS))
        first = min((death.time_ns for death in dying.values()), default=NEVER)
        for rank in range(self.job.world_size):
            if first < patience:
                least, more = _NOTICE_NS
                others = first + least + int(more * noise.uniform(self._key, rank, 26))
            elif waits[rank] < NEVER:
                others = waits[rank] + int(self.job.timeout * SECOND_NS)
            else:
                others = min(NEVER, patience + _GRACE_NS)
            by_others = Death(others, "aborted" if waits[rank] < NEVER else "killed")
            step.deaths[rank] = min(dying.get(rank, by_others), by_others)


def _bell(word: int) -> float:
    """Draw from about N(0, 1) with the low 32 bits: two uniforms, never beyond 2.5."""
    return ((word & 0xFFFF) + (word >> 16 & 0xFFFF) - 0x10000) / 0x10000 * _SPREAD
