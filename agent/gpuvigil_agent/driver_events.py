"""Xid events as they happen: a thread that waits in the driver and may hang there alone.

A driver that refuses the wait (a GPU has fallen off the bus, for one) gets a fresh event set a second later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from gpuvigil_agent.driver_errors import DriverError
from gpuvigil_agent.driver_worker import Hanging
from gpuvigil_agent.nvml import Calls, Device, EventSet, handle_address

WAIT_MS: Final = 1000
_RETRY_S: Final = 1.0
_IDLE_S: Final = 0.1
XidSink = Callable[[int, str, int], None]


class XidWatch:
    """Call `on_xid(time_ns, uuid, code)`, from its own thread, for every Xid of the watched boards."""

    def __init__(self, calls: Calls, on_xid: XidSink) -> None:
        self._calls, self._on_xid = calls, on_xid
        self._lock = threading.Lock()
        self._devices: dict[str, Device] = {}
        self._fresh: list[Device] = []
        self._uuids: dict[int, str] = {}
        threading.Thread(target=self._run, name="xid-events", daemon=True).start()

    def watch(self, device: Device) -> None:
        """Begin to listen to a board; it takes effect within a second."""
        with self._lock:
            self._devices[device.uuid] = device
            self._fresh.append(device)

    def forget(self, uuid: str) -> None:
        """Do not register a board again that is gone; its name stays known for what it still says."""
        with self._lock:
            self._devices.pop(uuid, None)

    def hanging(self, longer_than_s: float) -> Hanging | None:
        """Return the call in flight if it is older than its timeout plus this."""
        in_flight = self._calls.in_flight
        seconds = time.monotonic() - in_flight[1] - WAIT_MS / 1000 if in_flight else 0.0
        return Hanging(in_flight[0], seconds) if in_flight and seconds > longer_than_s else None

    def _run(self) -> None:
        while True:
            try:
                self._listen()
            except DriverError:
                time.sleep(_RETRY_S)

    def _listen(self) -> None:
        """Make a set, register all boards, wait for ever. Raises DriverError."""
        if not self._devices:
            time.sleep(_IDLE_S)
            return
        events = EventSet(self._calls)
        with self._lock:
            self._fresh = list(self._devices.values())
        try:
            while True:
                self._register_fresh(events)
                if (xid := events.wait(WAIT_MS)) is not None:
                    self._on_xid(time.time_ns(), self._uuids.get(xid.address, ""), xid.code)
        finally:
            events.free()

    def _register_fresh(self, events: EventSet) -> None:
        with self._lock:
            fresh, self._fresh = self._fresh, []
        for device in fresh:
            self._uuids[handle_address(device.handle)] = device.uuid
            try:
                events.register(device)
            except DriverError:
                continue  # it reports no Xids, or is gone: its own thread finds that out
