"""The collector as a service: signals, systemd's notifications, and the order of start and stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import sdnotify

from gpuvigil_collector.brain import Brain
from gpuvigil_collector.web.server import Server
from gpuvigil_protos import log

_STOP_INGEST_S: Final = 8.0
_STOP_WEB_S: Final = 4.0
_STOP_BRAIN_S: Final = 1.5
_STATUS_EVERY_S: Final = 5.0


class IngestService(Protocol):
    """The ingest supervisor (ingest/supervisor.py) as the service sees it; both calls block."""

    address: str

    def start(self) -> None:
        """Start the workers; returns when they listen. Raises IngestError."""
        ...

    def stop(self) -> None:
        """Let the workers make durable what they hold, 8 s at most, and end them."""
        ...


class BrainFailedError(Exception):
    """The brain's thread ended by itself: a bug, so the process ends and systemd starts it again."""


class Service:
    """Starts the parts, waits for the end, stops them in order within 10 s."""

    def __init__(
        self, ingest: IngestService, server: Server, listener: socket.socket, reload: Callable[[], None]
    ) -> None:
        self._ingest, self._server, self._listener, self._reload = ingest, server, listener, reload
        self._notifier = sdnotify.SystemdNotifier()
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._bug: BaseException | None = None
        self._log = log.get("collector")

    def brain_ended(self, bug: BaseException | None) -> None:
        """Called in the brain's thread when its loop ended, asked to or not."""
        self._bug = bug
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    async def run(self, brain: Brain) -> None:
        """Run until SIGTERM or SIGINT. Raises BrainFailedError when the brain failed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        await asyncio.to_thread(self._ingest.start)
        brain.start()
        serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        serving.add_done_callback(lambda _: self._stop.set())
        self._notifier.notify("READY=1")
        address = "{}:{}".format(*self._listener.getsockname()[:2])
        self._log.info("collector_ready", web=address, ingest=self._ingest.address, process=os.getpid())
        await self._watch(brain)
        self._notifier.notify("STOPPING=1")
        await self._end(brain, serving)
        if self._bug is not None:
            raise BrainFailedError(f"the brain ended: {self._bug!r}") from self._bug

    async def _watch(self, brain: Brain) -> None:
        """Tell systemd how things are; the watchdog is fed only while ticks advance."""
        watchdog_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
        every_s = min(_STATUS_EVERY_S, watchdog_s / 3 if watchdog_s else _STATUS_EVERY_S)
        told_ticks, told_status = -1, ""
        while not self._stop.is_set():
            view = brain.view()
            if view.ticks != told_ticks:
                self._notifier.notify("WATCHDOG=1")
                told_ticks = view.ticks
            status = f"STATUS={len(view.nodes)} nodes, {len(view.open)} incidents open"
            if status != told_status:
                self._notifier.notify(status)
                told_status = status
            await _within(self._stop.wait(), every_s)

    async def _end(self, brain: Brain, serving: asyncio.Task[None]) -> None:
        """Stop intake and API, then the brain, so that its last tick sees all that was taken."""
        self._server.should_exit = True
        ingest = asyncio.to_thread(self._ingest.stop)
        parts = (_within(ingest, _STOP_INGEST_S), _within(serving, _STOP_WEB_S))
        ended = [*await asyncio.gather(*parts), await asyncio.to_thread(brain.stop, _STOP_BRAIN_S)]
        for part, in_time in zip(("ingest", "web", "brain"), ended, strict=True):
            if not in_time:
                self._log.warning("stop_timeout", part=part)
        self._log.info("collector_stopped")


async def _within(waiting: Awaitable[object], seconds: float) -> bool:
    """Wait for it; False when the time was up first."""
    try:
        await asyncio.wait_for(waiting, seconds)
    except TimeoutError:
        return False
    return True
