"""The driver's client with a process that the test plays: late answers, processes that hang for ever."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from gpuvigil_agent import driver_client
from gpuvigil_agent import driver_frames as frames
from gpuvigil_agent.config import AgentConfig, Gpu
from gpuvigil_agent.driver_client import DriverClient
from gpuvigil_agent.samplers.base import Sample

UUID = "GPU-11111111-1111-1111-1111-111111111111"


class Played:
    """Stands where the driver process stands; keeps what was sent."""

    pid = 1

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.abandoned = False

    def send(self, frame: Any) -> None:
        self.sent.append(frame)

    def abandon(self) -> None:
        self.abandoned = True


def client_with(tmp_path: Path, child: Played) -> DriverClient:
    """Make a client whose process runs and has told of one GPU."""
    client = DriverClient(AgentConfig(state_directory=str(tmp_path), gpu=Gpu(source="nvml")), lambda _: None)
    client._child = child  # type: ignore[assignment]
    client._heard_at = time.monotonic()
    gpu = frames.GpuInfo(uuid=UUID, index=0, model="H100", pci_bus_id="0000:1b:00.0")
    client._on_frame(child, frames.Inventory("550.1", [gpu], complete=True))  # type: ignore[arg-type]
    return client


def answer(number: int, celsius: float) -> frames.Answer:
    return frames.Answer(number, {f"gpu:{UUID}": {"gpu_temperature_celsius": celsius}}, [], {"calls": 1})


def temperatures(samples: list[Sample]) -> list[float]:
    return [sample.value for sample in samples if sample.metric.name == "gpu_temperature_celsius"]


async def ticked(client: DriverClient, child: Played, reply: frames.Answer | None) -> list[float]:
    """Tick, and have the process answer while the tick waits."""
    tick = asyncio.ensure_future(client.tick(time.time_ns()))
    await asyncio.sleep(0)
    if reply is not None:
        client._on_frame(child, reply)  # type: ignore[arg-type]
    return temperatures(await tick)


async def test_an_answer_that_comes_a_tick_late_is_no_reading_of_that_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_client, "TICK_S", 0.05)
    child = Played()
    client = client_with(tmp_path, child)
    assert await ticked(client, child, answer(1, 40.0)) == [40.0]
    assert await ticked(client, child, None) == []
    assert await ticked(client, child, answer(2, 41.0)) == [], (
        "the old tick's values under the new tick's time"
    )
    assert client.counters["late"] == 1
    assert await ticked(client, child, answer(3, 42.0)) == [42.0]


@pytest.mark.parametrize(("hanging", "starts"), [(2, 1), (3, 0)])
async def test_three_processes_that_hang_are_enough_and_status_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: int, starts: int
) -> None:
    started: list[float] = []

    async def start(_client: DriverClient) -> None:
        started.append(time.monotonic())

    monkeypatch.setattr(DriverClient, "_start_child", start)
    client = client_with(tmp_path, Played())
    client._forget_child()
    processes = [Played() for _ in range(hanging)]
    client._abandoned = {process: [] for process in processes}  # type: ignore[misc]
    for _ in range(3):
        await client.tick(time.time_ns())
        client._start_at = 0.0
        if started:
            break
    assert len(started) == starts
    assert (client.state, "one of them ends" in client.note) == (
        ("restarting", False) if starts else ("stuck", True)
    )
    assert ("within a minute" in client.note) == bool(starts)
    client._on_end(processes[0], -9)  # type: ignore[arg-type]
    await client.tick(time.time_ns())
    assert started, "the kernel let one go"


async def test_the_successor_of_a_process_that_hung_is_told_which_gpus_to_leave_alone(tmp_path: Path) -> None:
    child, successor = Played(), Played()
    client = client_with(tmp_path, child)
    client._report.hanging = [frames.Stuck(f"gpu:{UUID}", 5, "nvmlDeviceGetTemperature", 9.0)]
    client._replace(9.0)
    assert child.abandoned
    client._child = successor  # type: ignore[assignment]
    await ticked(client, successor, None)
    [tick] = successor.sent
    assert tick.skip == [5]
    client._on_end(child, -9)  # type: ignore[arg-type]
    client._answered = None
    await ticked(client, successor, None)
    assert successor.sent[-1].skip == [], "the hang has ended with its process"
