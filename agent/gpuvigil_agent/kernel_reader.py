"""Keeps the kernel log watched: chooses the source, starts it again when it ends, says whether it is up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from gpuvigil_agent import kernel_log, sources
from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.identity import kernel_boot_id
from gpuvigil_agent.kernel_log import KernelRecord
from gpuvigil_agent.kernel_place import PlaceFile
from gpuvigil_protos import log

AGAIN_S: Final = 10.0
AGAIN_MAX_S: Final = 60.0
_SAVE_S: Final = 1.0
_UP: Final = frozenset({"journal", "kmsg", "simulated"})
_log = log.get("kernel_log")


class KernelReader:
    """One task on the loop, that ends only where the config turns it off."""

    def __init__(
        self, config: AgentConfig, node: str, gpu_by_pci: Callable[[str], str | None],
        on_event: Callable[[AgentEvent], None],
    ) -> None:  # fmt: skip
        self.counters: dict[str, int] = {}
        self.state = "starting"
        self._config, self._node = config, node
        self._gpu_by_pci, self._on_event = gpu_by_pci, on_event
        self._file = PlaceFile(Path(config.state_directory) / "kernel_place.json", kernel_boot_id())
        self._tasks: list[asyncio.Future[None]] = []

    @property
    def up(self) -> bool | None:
        """True while lines are read, false while they are not, None where nobody wants them."""
        return None if self.state == "off" else self.state in _UP

    def start(self) -> None:
        """Begin to watch."""
        self._tasks = [asyncio.ensure_future(self._run()), asyncio.ensure_future(self._save_often())]

    def check(self) -> None:
        """Raise what ended the reading, if anything has: nobody must take silence for health."""
        for task in self._tasks:
            if task.done():
                task.result()

    def stop(self) -> None:
        """End the watch."""
        for task in self._tasks:
            task.cancel()
        self._save(now=True)

    async def _run(self) -> None:
        wait_s = AGAIN_S
        while self.state != "off":
            source = self._source()
            if source is not None:
                wait_s = AGAIN_S
                await self._watch(source)
                self.counters["restarts"] = self.counters.get("restarts", 0) + 1
            if self.state != "off":
                await asyncio.sleep(wait_s)
            wait_s = min(AGAIN_MAX_S, wait_s * 2)

    async def _watch(self, source: AsyncIterator[KernelRecord]) -> None:
        try:
            await kernel_log.watch(source, self._gpu_by_pci, self._on_event, self.counters)
        except OSError as error:
            self._on_state(f"failed: {error.strerror or error}")
        else:
            self._on_state("ended")

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_S)
            self._save()

    def _save(self, *, now: bool = False) -> None:
        if self.state in {"journal", "kmsg"}:
            self._file.save(now=now)

    def _source(self) -> AsyncIterator[KernelRecord] | None:
        if sources.is_simulated_host(self._config):
            from gpuvigil_agent.simulate.kernel_log import simulated_source  # noqa: PLC0415 - only simulations

            self._on_state("simulated")
            return simulated_source(self._config.simulate, self._node)
        mode = self._config.host.kernel_log
        return kernel_log.choose(mode, self.counters, self._on_state, self._file.place)

    def _on_state(self, state: str) -> None:
        if state != self.state:
            say = _log.info if state in _UP or state == "off" else _log.warning
            say("kernel_log", state=state)
        self.state = state
