"""What systemd hears from the collector: ready, status, a watchdog fed only while ticks advance, an end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time

import pytest
from unit.brain_help import Rig

from gpuvigil_collector.brain import Brain
from gpuvigil_collector.config import Tick, Web
from gpuvigil_collector.service import BrainFailedError, Service
from gpuvigil_collector.web.app import Sources, make_app
from gpuvigil_collector.web.server import bind, make_server
from gpuvigil_protos.settings import Seconds

FAST = Tick(interval=Seconds(0.1), event_spacing=Seconds(0.05))


class Ingest:
    """An ingest that starts and stops, and notes in which order."""

    address = "127.0.0.1:0"

    def __init__(self):
        self.calls = []

    def start(self):
        self.calls.append("start")

    def stop(self):
        self.calls.append("stop")


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._heard = []

    async def hear(self, word, within_s=10.0):
        """Wait for a datagram that begins with `word`."""
        async with asyncio.timeout(within_s):
            while not (self._heard and self._heard.pop(0).startswith(word)):
                self._heard = self._heard or self.drain()
                await asyncio.sleep(0.01)

    def drain(self):
        """Take all that has come and was not heard yet."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._heard.append(self._socket.recv(4096).decode())
        fresh, self._heard = self._heard, []
        return fresh


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    return Systemd(tmp_path / "notify")


def make(rig):
    """A service over the rig; returns it with its brain and ingest."""
    ingest, web = Ingest(), Web(address="127.0.0.1:0")
    sources = Sources(
        view=lambda: rig.pipeline.view, ledger=list, journal=lambda _: [], registry=None, alive=lambda: True,
        faults=list, ask=rig.pipeline.desk.ask, say=rig.repair.desk.ask, roles=rig.roles,
    )  # fmt: skip
    service = Service(ingest, make_server(make_app(sources), web), bind(web), lambda: None)
    return service, Brain(rig.pipeline, FAST, service.brain_ended), ingest


async def test_ready_status_watchdog_and_a_clean_stop(systemd, tmp_path):
    service, brain, ingest = make(Rig(tmp_path))
    running = asyncio.create_task(service.run(brain))
    for word in ("READY=1", "STATUS=3 nodes, 0 incidents open", "WATCHDOG=1", "WATCHDOG=1"):
        await systemd.hear(word)
    started = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 30)
    assert time.monotonic() - started < 10 and ingest.calls == ["start", "stop"]
    await systemd.hear("STOPPING=1")


async def test_a_brain_that_hangs_starves_the_watchdog_while_the_process_lives(systemd, tmp_path):
    rig, gate = Rig(tmp_path), threading.Event()
    service, brain, _ = make(rig)
    running = asyncio.create_task(service.run(brain))
    await systemd.hear("WATCHDOG=1")
    rig.rules.tick = lambda _snapshot: gate.wait(60) and []
    await asyncio.sleep(0.5)  # the tick under way ends, and its last word is sent
    systemd.drain()
    await asyncio.sleep(1.5)  # five watchdog periods
    assert not [text for text in systemd.drain() if "WATCHDOG" in text]
    gate.set()
    await systemd.hear("WATCHDOG=1")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_bug_in_a_tick_ends_the_process(systemd, tmp_path):
    rig = Rig(tmp_path)
    service, brain, ingest = make(rig)
    rig.rules.tick = lambda _snapshot: 1 / 0
    with pytest.raises(BrainFailedError, match="ZeroDivisionError"):
        await asyncio.wait_for(service.run(brain), 30)
    assert ingest.calls == ["start", "stop"], "ingest still makes durable what it has"
