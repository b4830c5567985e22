"""H2 to H4: GPUs that vanish and return, blanks, a driver process that dies, a node without a driver."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from integration.driver_help import NODE, child_pid, driven

from gpuvigil_agent import driver_client, driver_probe


@pytest.mark.parametrize("kind", ["gpu_lost_silent", "gpu_lost_xid79"])
async def test_a_lost_gpu_ceases_at_once_and_returns_by_its_uuid(tmp_path: Path, kind: str) -> None:
    fault = f'[[fault]]\nkind = "{kind}"\ngpu = 0\nat = "4s"\nduration = "5s"\n'
    async with driven(tmp_path, fault) as found:
        await found.settled()
        lost, others = found.entity(0), {found.entity(1), found.entity(2)}
        await found.until(lambda: found.told("gpu_lost"), 15, "gpu_lost")
        [told] = found.told("gpu_lost")
        assert (told.entity, told.origin) == (lost, "driver")
        assert told.fields["pci"].startswith("0000:")
        assert found.reading_gpus() == others, "indices moved, and UUIDs with them"
        assert (found.value("node_gpus_seen", "node"), found.value("node_gpus_expected", "node")) == (2, 3)
        assert [gpu.seen for gpu in found.client.gpus].count(False) == 1
        seen_by_xid = [event.code for event in found.told("xid")]
        assert (79 in seen_by_xid) == (kind == "gpu_lost_xid79")
        await found.until(lambda: found.told("gpu_returned"), 20, "gpu_returned")
        await found.settled()
        assert found.told("gpu_returned")[0].entity == lost
        assert len(found.told("gpu_lost")) == 1
        assert found.value("node_gpus_seen", "node") == 3


async def test_a_probe_finds_a_returned_gpu_and_costs_the_others_no_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_probe, "FIRST_S", 0.2)
    monkeypatch.setattr(driver_probe, "LATER_S", 0.2)
    fault = '[[fault]]\nkind = "gpu_lost_xid79"\ngpu = 0\nat = "6s"\nduration = "6s"\n'
    async with driven(tmp_path, fault) as found:
        await found.settled()
        pid, others = child_pid(found), {found.entity(1), found.entity(2)}
        await found.until(lambda: found.told("gpu_lost"), 15, "gpu_lost")
        while not found.told("gpu_returned"):
            await found.tick()
            assert others <= found.reading_gpus()
            assert len(found.tick_seconds) < 200
        assert child_pid(found) != pid, "the process in use looks only every 5 s: the probe was faster"
        await found.settled()
        await found.until(lambda: not Path(f"/proc/{pid}").exists(), 10, "the end of the old process")
        assert found.told("driver_crashed") == []


async def test_the_bound_on_calls_holds_and_loses_no_gpu(tmp_path: Path) -> None:
    async with driven(tmp_path, calls_per_second=20) as found:
        await found.until(lambda: len(found.client.gpus) == 3, 30, "three GPUs")
        calls, began = found.client.counters["calls"], time.monotonic()
        await found.until(lambda: found.client.counters["over_budget"] > 3, 20, "refused calls")
        made = found.client.counters["calls"] - calls
        assert made <= 20 * (time.monotonic() - began) + 20 + 20  # a full bucket, and one tick's delay
        assert found.events == []


async def test_a_low_bound_on_calls_loses_no_xid(tmp_path: Path) -> None:
    seconds = range(6, 14)
    faults = "".join(
        f'[[fault]]\nkind = "ecc_uncorrectable"\ngpu = {at % 3}\nat = "{at}s"\nduration = "1s"\n'
        for at in seconds
    )
    async with driven(tmp_path, faults, calls_per_second=20) as found:
        told = lambda: [e for e in found.told("xid") if e.code == 48]  # noqa: E731
        await found.until(lambda: len(told()) >= len(seconds), 30, "every Xid")
        assert found.client.counters["over_budget"] > 0, "the bound was never reached"
        assert len(told()) == len(seconds)


async def test_signals_to_the_whole_group_end_no_driver_process(tmp_path: Path) -> None:
    async with driven(tmp_path) as found:
        await found.settled()
        os.kill(child_pid(found), signal.SIGTERM)
        os.kill(child_pid(found), signal.SIGINT)
        for _ in range(4):
            await found.tick()
            assert len(found.reading_gpus()) == 3
        assert found.events == []


async def test_nothing_of_a_lost_gpu_comes_after_its_loss(tmp_path: Path) -> None:
    async with driven(tmp_path, '[[fault]]\nkind = "gpu_lost_xid79"\ngpu = 2\nat = "6s"\n') as found:
        await found.settled()
        lost = found.client.gpus[2].uuid
        await found.until(lambda: found.told("gpu_lost"), 15, "gpu_lost")
        for _ in range(6):
            await found.tick()
            assert not [sample for sample in found.samples if lost in sample.entity]


async def test_xids_come_between_ticks(tmp_path: Path) -> None:
    fault = '[[fault]]\nkind = "ecc_uncorrectable"\ngpu = 1\nat = "5s"\n'
    async with driven(tmp_path, fault) as found:
        await found.settled()
        began_ns = found.client._begin.simulate.start_ns + 5_000_000_000
        await found.until(lambda: found.told("xid"), 15, "xid")
        [first, *_] = found.told("xid")
        assert (first.code, first.entity) == (48, found.entity(1))
        assert 0 <= first.time_ns - began_ns < 1_500_000_000


async def test_blanks_yield_no_value_and_no_event(tmp_path: Path) -> None:
    fault = '[[fault]]\nkind = "driver_blanks"\ngpu = 1\nat = "6s"\n'
    async with driven(tmp_path, fault) as found:
        await found.settled()
        await found.until(lambda: found.entity(1) not in found.reading_gpus(), 15, "blanks")
        for _ in range(4):
            await found.tick()
            for sample in found.samples:
                assert sample.metric.low <= sample.value <= min(sample.metric.high, 1e15), sample
        assert len(found.reading_gpus()) == 2
        assert not found.told("gpu_lost")


async def test_a_crash_is_told_restarted_at_once_and_then_once_a_minute(tmp_path: Path) -> None:
    async with driven(tmp_path) as found:
        await found.settled()
        uuids = [gpu.uuid for gpu in found.client.gpus]
        os.kill(child_pid(found), signal.SIGSEGV)
        await found.until(lambda: found.told("driver_crashed"), 10, "driver_crashed")
        assert found.told("driver_crashed")[0].fields["reason"] == "SIGSEGV"
        await found.settled()
        assert [gpu.uuid for gpu in found.client.gpus] == uuids
        assert not found.told("gpu_lost"), "a dead monitor is no lost GPU"
        os.kill(child_pid(found), signal.SIGKILL)
        await found.until(lambda: len(found.told("driver_crashed")) == 2, 10, "second crash")
        for _ in range(8):
            assert await found.tick() == [], "stale values of a dead process"
        assert found.client.state == "restarting"
        assert found.client.counters["crashes"] == 2


async def test_a_board_missing_at_start_is_known_from_before(tmp_path: Path) -> None:
    async with driven(tmp_path) as found:
        await found.settled()
        lost = found.client.gpus[1].uuid
    fault = '[[fault]]\nkind = "gpu_lost_silent"\ngpu = 1\nat = "0s"\n'
    async with driven(tmp_path, fault) as found:
        await found.until(lambda: found.told("gpu_lost"), 15, "gpu_lost")
        assert found.told("gpu_lost")[0].entity == f"gpu:{lost}"
        await found.tick()
        assert (found.value("node_gpus_seen", "node"), found.value("node_gpus_expected", "node")) == (2, 3)


async def test_without_a_driver_it_is_host_only_and_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_client, "RESTART_S", 0.5)
    async with driven(tmp_path, source="auto") as found:
        await found.until(lambda: found.client.state == "absent", 15, "absent")
        assert found.client.note == "host-only: no NVIDIA driver on this node"
        assert found.client.source == "none"
        assert found.samples == []
        first = found.client._start_at
        await found.until(lambda: found.client._start_at > first, 15, "a second look")
        assert found.events == []


async def test_a_driver_that_is_unloaded_loses_every_gpu_and_gives_it_back_by_uuid(tmp_path: Path) -> None:
    fault = '[[fault]]\nkind = "driver_unload"\nat = "5s"\nduration = "6s"\n'
    async with driven(tmp_path, fault) as found:
        await found.settled()
        before = [(gpu.uuid, gpu.seen) for gpu in found.client.gpus]
        await found.until(lambda: found.client.state == "absent", 15, "absent")
        await found.tick()
        assert [(uuid, False) for uuid, _ in before] == [(gpu.uuid, gpu.seen) for gpu in found.client.gpus]
        assert "Driver Not Loaded" in found.client.note
        assert (found.value("node_gpus_seen", "node"), found.value("node_gpus_expected", "node")) == (0, 3)
        assert not found.reading_gpus(), "nothing old is passed off as new"
        await found.until(lambda: len(found.reading_gpus()) == 3, 30, "all GPUs again")
        assert [(gpu.uuid, gpu.seen) for gpu in found.client.gpus] == before
        assert found.client.counters["crashes"] == 0


async def test_the_off_switch_starts_nothing(tmp_path: Path) -> None:
    async with driven(tmp_path, source="none") as found:
        assert await found.tick() == []
        assert (found.client.state, found.client.source, found.client.gpus) == ("off", "none", ())
        assert found.client._child is None


async def test_a_scenario_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    async with driven(tmp_path, '[[fault]]\nkind = "driver_hang"\ngpu = 77\nat = "1s"\n') as found:
        await found.until(lambda: found.client.state == "absent", 15, "absent")
        assert "expected below 3" in found.client.note
        assert not found.told("driver_crashed")


async def test_the_process_ends_with_its_agent(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys\n"
        "from gpuvigil_agent.config import AgentConfig, Gpu\n"
        "from gpuvigil_agent.driver_client import DriverClient\n"
        "async def main():\n"
        f"    client = DriverClient(AgentConfig(node='{NODE}', state_directory='{tmp_path}',"
        " gpu=Gpu(source='simulated')), print)\n"
        "    await client.start()\n"
        "    print(client._child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    import asyncio

    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, env=env
    )
    assert agent.stdout is not None
    child = int(await asyncio.wait_for(agent.stdout.readline(), 30))
    agent.kill()
    await agent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/status").read_text().find("Z (") < 0:
        assert time.monotonic() < deadline, "the driver process outlives its agent"
        await asyncio.sleep(0.05)
