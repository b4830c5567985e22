"""A second driver process, for seconds, that looks whether a lost GPU is back.

NVIDIA's library enumerates boards only when it is initialised, so the process in use may never see a board
that was reset. The probe is adopted if it sees one, else ended; the process in use goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final

from gpuvigil_agent import driver_frames as frames
from gpuvigil_agent.driver_child import DriverChild

FIRST_S: Final = 60.0
LATER_S: Final = 600.0
_PATIENCE_S: Final = 30.0


class Probe:
    """Called once a tick; starts a process a minute after a loss, then every ten minutes."""

    def __init__(self, begin: frames.Begin) -> None:
        self._begin = begin
        self._child: DriverChild | None = None
        self._found: frames.Inventory | None = None
        self._next_at: float | None = None
        self._until = 0.0

    async def step(self, lost: AbstractSet[str], now_s: float) -> tuple[DriverChild, frames.Inventory] | None:
        """Return the process that sees one of the lost boards, with what it sees, else None."""
        if not lost:
            self.stop()
            self._next_at = None
        elif self._next_at is None:
            self._next_at = now_s + FIRST_S
        elif self._child is not None:
            return self._judge(lost, now_s)
        elif now_s >= self._next_at:
            self._next_at = now_s + LATER_S
            await self._start(now_s)
        return None

    def stop(self) -> None:
        """End the probe, if one runs; never wait."""
        child, self._child, self._found = self._child, None, None
        if child is not None:
            child.abandon()

    async def _start(self, now_s: float) -> None:
        self._child, self._until = DriverChild(self._take, lambda _child, _status: None), now_s + _PATIENCE_S
        try:
            await self._child.start(self._begin)
        except OSError:
            self._child = None  # tried again in ten minutes

    def _take(self, _child: DriverChild, frame: frames.Up) -> None:
        if isinstance(frame, frames.Inventory) and frame.complete:
            self._found = frame

    def _judge(self, lost: AbstractSet[str], now_s: float) -> tuple[DriverChild, frames.Inventory] | None:
        child, found = self._child, self._found
        if child is not None and found is not None and any(gpu.uuid in lost for gpu in found.gpus):
            self._child, self._found, self._next_at = None, None, None
            return child, found
        if found is not None or now_s >= self._until:
            self.stop()
        return None
