"""Keeps the kernel log watched: chooses the source, starts it again when it ends, counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from gpuvigil_agent import kernel_log, sources
from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.kernel_log import KernelRecord
from gpuvigil_protos import log

_AGAIN_S: Final = 10.0
_log = log.get("kernel_log")


class KernelReader:
    """One task on the loop."""

    def __init__(
        self, config: AgentConfig, node: str, gpu_by_pci: Callable[[str], str | None],
        on_event: Callable[[AgentEvent], None],
    ) -> None:  # fmt: skip
        self.counters: dict[str, int] = {}
        self.state = "off"
        self._config, self._node = config, node
        self._gpu_by_pci, self._on_event = gpu_by_pci, on_event
        self._task: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.ensure_future(self._run())

    def stop(self) -> None:
        """End the watch."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while (source := self._source()) is not None:
            try:
                await kernel_log.watch(source, self._gpu_by_pci, self._on_event, self.counters)
            except OSError as error:
                self._on_state(f"failed: {error}")
            self.counters["restarts"] = self.counters.get("restarts", 0) + 1
            await asyncio.sleep(_AGAIN_S)

    def _source(self) -> AsyncIterator[KernelRecord] | None:
        if sources.is_simulated_host(self._config):
            from gpuvigil_agent.simulate.kernel_log import simulated_source  # noqa: PLC0415 - only simulations

            return simulated_source(self._config.simulate, self._node)
        return kernel_log.choose(self._config.host.kernel_log, self.counters, self._on_state)

    def _on_state(self, state: str) -> None:
        if state != self.state:
            _log.info("kernel_log", state=state)
        self.state = state
