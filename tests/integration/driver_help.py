"""A driver client on a real driver process over the simulated library, ticked by the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from gpuvigil_agent.config import AgentConfig, Gpu, Simulate
from gpuvigil_agent.driver_client import DriverClient
from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos.settings import Seconds

NODE = "sim-03"
TICK_S = 0.25


class Driven:
    """The client, what it told, and its last tick."""

    def __init__(self, config: AgentConfig) -> None:
        self.events: list[AgentEvent] = []
        self.client = DriverClient(config, self.events.append)
        self._gpus = config.simulate.gpus
        self.samples: list[Sample] = []
        self.tick_seconds: list[float] = []

    async def tick(self) -> list[Sample]:
        """Tick once and keep the pace."""
        began = time.monotonic()
        self.samples = await self.client.tick(time.time_ns())
        self.tick_seconds.append(time.monotonic() - began)
        await asyncio.sleep(max(0.0, TICK_S - self.tick_seconds[-1]))
        return self.samples

    async def until(self, holds: Callable[[], object], within_s: float, what: str) -> float:
        """Tick until it holds; return the seconds it took. Fails with what was seen."""
        began = time.monotonic()
        while not holds():
            if time.monotonic() - began > within_s:
                kinds = [(event.kind, event.entity) for event in self.events]
                raise AssertionError(f"{what} did not come in {within_s} s: {self.client.state}, {kinds}")
            await self.tick()
        return time.monotonic() - began

    async def settled(self) -> None:
        """Tick until every GPU yields its temperature; a machine so slow that the fault comes first fails."""
        await self.until(lambda: len(self.reading_gpus()) == self._gpus, 30, "all GPUs")

    def reading_gpus(self) -> set[str]:
        """Return the GPUs that the last tick had a temperature of."""
        return {s.entity for s in self.samples if s.metric.name == "gpu_temperature_celsius"}

    def entity(self, index: int) -> str:
        """Return the name of the GPU in a slot."""
        return f"gpu:{self.client.gpus[index].uuid}"

    def told(self, kind: str) -> list[AgentEvent]:
        """Return the events of one kind."""
        return [event for event in self.events if event.kind == kind]

    def value(self, name: str, entity: str) -> float | None:
        """Return one value of the last tick."""
        found = [s.value for s in self.samples if s.metric.name == name and s.entity == entity]
        return found[0] if found else None


@asynccontextmanager
async def driven(
    tmp_path: Path,
    faults: str = "",
    *,
    gpus: int = 3,
    deadline_s: float = 1.0,
    source: str = "simulated",
    calls_per_second: int = 2000,
) -> AsyncIterator[Driven]:
    """Run a client; `faults` are [[fault]] tables without node, counted from now."""
    scenario = tmp_path / "scenario.toml"
    scenario.write_text("version = 1\n" + faults.replace("[[fault]]", f'[[fault]]\nnode = "{NODE}"'))
    config = AgentConfig(
        node=NODE,
        state_directory=str(tmp_path),
        gpu=Gpu(source=source, call_deadline=Seconds(deadline_s), calls_per_second_max=calls_per_second),  # type: ignore[arg-type]
        simulate=Simulate(gpus=gpus, scenario=str(scenario), start_ns=time.time_ns()),
    )
    found = Driven(config)
    await found.client.start()
    try:
        yield found
    finally:
        await found.client.stop()


def child_pid(driven: Driven) -> int:
    """Return the driver process's id."""
    child = driven.client._child
    assert child is not None
    return child.pid
