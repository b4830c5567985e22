"""SIGHUP: the config file is read again, and applied whole or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from gpuvigil_agent import config_file
from gpuvigil_agent.identity import node_name
from gpuvigil_protos import log
from gpuvigil_protos.settings import ConfigError

if TYPE_CHECKING:
    from gpuvigil_agent.agent import Agent

_log = log.get("agent")


class Reloads:
    """One reload at a time; what is asked for meanwhile is one more, with the file as it is then."""

    def __init__(self, agent: Agent, path: Path | None, overrides: list[str]) -> None:
        self._agent, self._path, self._overrides = agent, path, overrides
        self._again = False
        self._task: asyncio.Future[None] | None = None

    def ask(self) -> None:
        """Begin, or remember to begin once more."""
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while self._again:
            self._again = False
            await self._once()

    async def _once(self) -> None:
        """Apply the file; a wrong one changes nothing, and log and metric say so."""
        agent = self._agent
        try:
            fresh = config_file.load(self._path, self._overrides)
            merged, applied, waiting = config_file.merge_live(agent.config, fresh)
            node_name(merged.node or agent.node, merged.tls)
            await agent.apply(merged)
        except ConfigError as error:
            agent.reload_ok = False
            _log.error("reload_refused", reason=str(error), note="the old config stays")
            return
        agent.reload_ok = True
        log.configure(merged.log_level)
        _log.info("reloaded", applied=applied, needs_restart=waiting)
