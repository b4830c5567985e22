"""H1: a driver that hangs costs its own GPU's series and nothing else: no tick, no other GPU, no restart."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from integration.driver_help import Driven, child_pid, driven

TICK_LIMIT_S = 0.8 * 3  # slack for a loaded machine


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def assert_ticks_kept(found: Driven) -> None:
    assert max(found.tick_seconds) < TICK_LIMIT_S


async def test_one_gpu_that_hangs_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    fault = '[[fault]]\nkind = "driver_hang"\ngpu = 1\nat = "4s"\nduration = "6s"\n'
    async with driven(tmp_path, fault) as found:
        await found.settled()
        hung = found.entity(1)
        threads = threads_of(child_pid(found))
        await found.until(lambda: found.told("driver_stuck"), 15, "driver_stuck")
        [told] = found.told("driver_stuck")
        assert (told.entity, told.origin) == (hung, "agent")
        assert told.fields["call"].startswith("nvmlDevice")
        assert 1.0 <= float(told.fields["seconds"]) < 15
        assert found.client.state == "stuck"
        assert hung in found.client.note
        assert {s.entity for s in found.samples if s.entity.startswith("gpu:")} == {
            found.entity(0),
            found.entity(2),
        }
        assert threads_of(child_pid(found)) == threads, "more than one stuck worker for the GPU"
        await found.until(lambda: found.told("driver_recovered"), 20, "driver_recovered")
        assert len(found.told("driver_stuck")) == 1
        assert hung in found.reading_gpus()
        assert found.client.counters["restarts"] == 0
        assert_ticks_kept(found)


async def test_a_whole_driver_that_hangs_is_one_event_of_the_node(tmp_path: Path) -> None:
    fault = '[[fault]]\nkind = "driver_hang"\nat = "4s"\nduration = "6s"\n'
    async with driven(tmp_path, fault) as found:
        await found.settled()
        await found.until(lambda: found.told("driver_stuck"), 15, "driver_stuck")
        assert [event.entity for event in found.told("driver_stuck")] == ["node"]
        assert not [s for s in found.samples if s.entity.startswith("gpu:")]
        await found.until(lambda: found.told("driver_recovered"), 20, "driver_recovered")
        assert len(found.told("driver_stuck")) == 1
        assert_ticks_kept(found)


async def test_an_init_that_hangs_is_told_and_waited_for(tmp_path: Path) -> None:
    fault = '[[fault]]\nkind = "driver_hang"\ncall = "init"\nat = "0s"\nduration = "6s"\n'
    async with driven(tmp_path, fault) as found:
        await found.until(lambda: found.told("driver_stuck"), 15, "driver_stuck")
        [told] = found.told("driver_stuck")
        assert (told.entity, told.fields["call"]) == ("node", "nvmlInitWithFlags")
        assert found.samples == []
        await found.until(lambda: len(found.reading_gpus()) == 3, 20, "GPUs after the hang")
        assert found.told("driver_recovered")
        assert found.client.counters["restarts"] == 0
        assert_ticks_kept(found)


async def test_an_event_wait_that_hangs_costs_no_reading(tmp_path: Path) -> None:
    fault = '[[fault]]\nkind = "driver_hang"\ncall = "events"\nat = "6s"\nduration = "6s"\n'
    async with driven(tmp_path, fault) as found:
        await found.settled()
        await found.until(lambda: found.told("driver_stuck"), 15, "driver_stuck")
        assert found.told("driver_stuck")[0].fields["call"] == "nvmlEventSetWait_v2"
        assert len(found.reading_gpus()) == 3
        await found.until(lambda: found.told("driver_recovered"), 20, "driver_recovered")
        assert_ticks_kept(found)


async def test_a_stopped_process_is_abandoned_and_replaced_once(tmp_path: Path) -> None:
    async with driven(tmp_path) as found:
        await found.settled()
        fds, threads = open_files(), threading.active_count()
        pid = child_pid(found)
        os.kill(pid, signal.SIGSTOP)
        took = await found.until(lambda: found.told("driver_stuck"), 15, "driver_stuck")
        assert took < 15
        assert found.told("driver_stuck")[0].fields["call"] == "driver process"
        await found.until(lambda: found.told("driver_recovered"), 30, "driver_recovered")
        await found.settled()
        assert child_pid(found) != pid
        assert not Path(f"/proc/{pid}").exists(), "a zombie stays"
        assert found.client.counters["abandoned"] == 1
        assert open_files() == fds
        assert threading.active_count() == threads
        second = child_pid(found)
        os.kill(second, signal.SIGSTOP)
        await found.until(lambda: found.client.counters["abandoned"] == 2, 15, "second abandonment")
        for _ in range(8):
            await found.tick()
        assert found.client.state == "restarting", "replaced twice within a minute"
        assert_ticks_kept(found)


async def test_stop_is_quick_whatever_hangs(tmp_path: Path) -> None:
    async with driven(tmp_path, '[[fault]]\nkind = "driver_hang"\nat = "5s"\n') as found:
        await found.settled()
        await found.until(
            lambda: found.client.counters["timeouts"] or found.tick_seconds[-1] > 0.5, 15, "hang"
        )
        pid = child_pid(found)
        began = time.monotonic()
        await found.client.stop()
        assert time.monotonic() - began < 2
        assert not Path(f"/proc/{pid}").exists()


async def test_stop_is_quick_when_the_process_is_stopped(tmp_path: Path) -> None:
    async with driven(tmp_path) as found:
        await found.settled()
        pid = child_pid(found)
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        await found.client.stop()
        assert time.monotonic() - began < 2
        assert not Path(f"/proc/{pid}").exists()
