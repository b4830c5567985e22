"""The host's worker: a read that hangs costs its own sampler alone, in time, by name, and for one thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from gpuvigil_agent import host_runner
from gpuvigil_agent.host_files import RealHostFiles
from gpuvigil_agent.host_runner import HostRunner
from gpuvigil_agent.samplers.base import Sample, SourceAbsentError
from gpuvigil_agent.samplers.filesystem import Filesystems
from gpuvigil_protos import catalog, entity

TICK_LIMIT_S = 0.8 * 3  # the design's bound on a tick, with slack for a loaded machine


class Reads:
    """A sampler that can be told to hang."""

    def __init__(self, name: str, period_s: float = 1.0) -> None:
        self.name, self.period_s = name, period_s
        self.go, self.reads = threading.Event(), 0
        self.go.set()

    def sample(self) -> Iterator[Sample]:
        self.go.wait(30)
        self.reads += 1
        yield Sample(catalog.NODE_LOAD1, entity.NODE, float(self.reads))


@pytest.fixture
def three() -> Iterator[tuple[Reads, Reads, Reads]]:
    samplers = (Reads("first"), Reads("hangs"), Reads("last"))
    yield samplers
    for sampler in samplers:
        sampler.go.set()


async def names(runner: HostRunner, number: int) -> set[str]:
    return {reading.name for reading in await runner.read(number)}


async def test_a_read_that_hangs_costs_one_tick_of_those_behind_it_and_is_named(three) -> None:
    runner, hangs = HostRunner(list(three)), three[1]
    assert await names(runner, 0) == {"first", "hangs", "last"}
    hangs.go.clear()
    threads = threading.active_count()
    began = time.monotonic()
    assert await names(runner, 1) == {"first"}
    assert time.monotonic() - began < TICK_LIMIT_S
    for number in range(2, 6):
        began = time.monotonic()
        assert await names(runner, number) == {"first", "last"}
        assert time.monotonic() - began < 0.8, "the others wait for nobody"
    assert threading.active_count() == threads + 1, "one thread hangs, whatever the number of ticks"
    stuck = {name for name, health in runner.health.items() if health.stuck}
    assert (stuck, runner.health["hangs"].up, runner.health["last"].up) == ({"hangs"}, False, True)
    assert runner.late == 1
    runner.stop()


async def test_a_read_that_comes_back_is_taken_again_and_its_stale_result_is_not(three) -> None:
    runner, hangs = HostRunner(list(three)), three[1]
    hangs.go.clear()
    await runner.read(0)
    hangs.go.set()
    deadline = time.monotonic() + 10
    number, values = 1, []
    while not values:
        assert time.monotonic() < deadline
        found = await runner.read(number)
        values = [r.samples[0].value for r in found if r.name == "hangs" and r.samples]
        number += 1
    assert values == [2.0], "the first read's value came too late and is gone"
    assert not runner.health["hangs"].stuck
    assert runner.health["hangs"].up
    runner.stop()


async def test_a_slow_sampler_behind_one_that_hangs_is_read_at_the_next_tick() -> None:
    hangs, slow = Reads("hangs"), Reads("slow", period_s=60.0)
    hangs.go.clear()
    runner = HostRunner([hangs, slow])
    assert await names(runner, 0) == set()
    assert await names(runner, 1) == {"slow"}, "not a minute later"
    hangs.go.set()
    runner.stop()


async def test_want_of_threads_is_counted_and_the_next_tick_tries_again(three, monkeypatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    runner = HostRunner(list(three))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert await runner.read(0) == []
        with pytest.raises(SourceAbsentError, match="no thread"):
            list(Filesystems(RealHostFiles()).sample())
    assert (runner.threads_refused, runner.health["first"].up) == (1, False)
    assert await names(runner, 1) == {"first", "hangs", "last"}
    runner.stop()


def test_the_deadline_is_the_designs() -> None:
    assert host_runner.DEADLINE_S == 0.8
