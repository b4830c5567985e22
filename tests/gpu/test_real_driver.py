"""The samplers' contract on a real NVIDIA driver: `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from gpuvigil_agent.config import AgentConfig, Gpu
from gpuvigil_agent.driver_client import DriverClient
from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_agent.samplers.gpu_table import GPU_SAMPLERS, PERIOD_S
from gpuvigil_protos import entity

pytestmark = pytest.mark.gpu
TICKS = 12
ALWAYS = {  # every data-centre GPU of the last ten years has these
    "gpu_utilization_ratio",
    "gpu_framebuffer_used_bytes",
    "gpu_framebuffer_total_bytes",
    "gpu_temperature_celsius",
    "gpu_power_watts",
    "gpu_sm_clock_hertz",
    "gpu_clocks_event_reasons",
    "gpu_driver_call_seconds",
}


async def _run(tmp_path: Path) -> tuple[DriverClient, list[list[Sample]], list[AgentEvent]]:
    """Tick a client on the real driver for a while."""
    events: list[AgentEvent] = []
    config = AgentConfig(node="real", state_directory=str(tmp_path), gpu=Gpu(source="nvml"))
    client = DriverClient(config, events.append)
    await client.start()
    deadline, ticks = time.monotonic() + 60, []
    while len(ticks) < TICKS:
        samples = await client.tick(time.time_ns())
        if client.state == "running" and any(s.metric.name == "gpu_temperature_celsius" for s in samples):
            ticks.append(samples)
        assert time.monotonic() < deadline, f"{client.state}: {client.note}"
        await asyncio.sleep(1)
    await client.stop()
    return client, ticks, events


async def test_the_contract_holds_on_the_real_driver(tmp_path: Path) -> None:
    client, ticks, events = await _run(tmp_path)
    assert client.source == "nvml"
    assert client.driver_version.partition(".")[0].isdigit()
    assert client.gpus
    assert all(gpu.seen and gpu.uuid.startswith("GPU-") for gpu in client.gpus)
    assert not [event for event in events if event.kind != "xid"], events
    names = {entity.gpu(gpu.uuid) for gpu in client.gpus}
    for samples in ticks:
        for sample in samples:
            assert sample.metric.low <= sample.value <= sample.metric.high, sample
            assert sample.metric.name in PERIOD_S
            assert entity.is_valid_entity(sample.entity)
    for name in names:
        found = {s.metric.name for s in ticks[-1] if s.entity == name}
        assert found >= ALWAYS, ALWAYS - found
    for counter in ("errors", "implausible", "over_budget", "timeouts", "crashes"):
        assert client.counters[counter] == 0, client.counters


async def test_what_this_board_gives_is_shown(tmp_path: Path) -> None:
    client, ticks, _ = await _run(tmp_path)
    given = {s.metric.name for samples in ticks for s in samples}
    missing = {metric.name for kind in GPU_SAMPLERS for metric in kind.metrics} - given
    print(f"\n{client.gpus[0].model}, driver {client.driver_version}: not given: {sorted(missing)}")
    seconds = [s.value for samples in ticks for s in samples if s.metric.name == "gpu_driver_call_seconds"]
    print(f"fast reading: {max(seconds) * 1000:.2f} ms at most of {len(seconds)}")
    assert max(seconds) < 0.8
