"""One use of the driver, from init to the end of the process: its GPUs, who answers, who hangs.

All methods run on the coordinator's thread; workers deliver there. Lost boards are looked for every 5 s by
index and known again by UUID.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from gpuvigil_agent import driver_frames as frames
from gpuvigil_agent.driver_budget import Budget
from gpuvigil_agent.driver_errors import BadArgument, DriverAbsent, DriverError, GpuLost, OverBudget
from gpuvigil_agent.driver_events import XidWatch
from gpuvigil_agent.driver_slot import Slot
from gpuvigil_agent.driver_worker import Outbox, Worker
from gpuvigil_agent.nvml import Calls, Device, Driver
from gpuvigil_protos import entity

RESCAN_S: Final = 5.0
_SLOW_CALL_S: Final = 1.0
_GPUS_MAX: Final = 64
_OUTBOX_MAX: Final = 4096


class Session:
    """The driver, its GPUs by slot, and frames on their way up."""

    def __init__(self, budget: Budget, outbox: Outbox) -> None:
        self._budget, self._outbox = budget, outbox
        self._frames: list[frames.Up] = []
        self._slots: dict[int, Slot] = {}
        self._opening: set[int] = set()
        self._refused: set[int] = set()  # indices whose board did not open for a reason of its own
        self._skip: set[int] = set()
        self._count = 0
        self._rescan_at = 0.0
        self._version = ""
        self._inventory_sent: frames.Inventory | None = None
        self._event_calls = Calls(None)  # they wait in the driver, and an Xid that nobody awaits is lost
        self._xids: XidWatch | None = None
        self._xids_dropped = 0
        self._driver = Worker("driver", Calls(budget), outbox)
        self._driver.offer(self._start_library, self._started)

    def _start_library(self) -> tuple[str, int]:
        driver = Driver(self._driver.calls)
        driver.initialise()
        return driver.version(), driver.count()

    def _started(self, result: tuple[str, int] | DriverError) -> None:
        if isinstance(result, DriverError):
            self.end(str(result))
            return
        self._version, self._count = result
        self._xids = XidWatch(self._event_calls, self._on_xid)
        self._rescan()

    def end(self, reason: str) -> None:
        """Say that there is no driver to speak to; the process ends with it."""
        self._frames.append(frames.Ended(reason))

    def take_frames(self) -> list[frames.Up]:
        """Return what must go up now: events, and the inventory when it is known afresh."""
        outgoing, self._frames = self._frames, []
        if self._version and not self._opening:
            outgoing += self.inventory_frame()
        return outgoing

    def inventory_frame(self) -> list[frames.Up]:
        """Return the inventory if it has changed since it was sent last."""
        gpus = [_info(slot.device) for slot in self._slots.values() if slot.device is not None]
        inventory = frames.Inventory(self._version, gpus, complete=not self._opening and not self._refused)
        if not self._version or inventory == self._inventory_sent:
            return []
        self._inventory_sent = inventory
        return [inventory]

    # --- ticks
    def start_tick(self, tick: frames.Tick) -> None:
        """Give every free worker its job; a GPU whose worker hangs is left out."""
        self._skip = set(tick.skip)
        if not self._version:
            return
        for slot in self._slots.values():
            if slot.device is not None and not slot.worker.busy:
                job = partial(slot.read, slot.begin(tick.number), tick.time_ns)
                slot.worker.offer(job, partial(self._read, slot))
        self._driver.offer(Driver(self._driver.calls).count, self._counted)
        if time.monotonic() >= self._rescan_at:
            self._rescan()

    def all_read(self, number: int) -> bool:
        """Tell whether every GPU that was asked at this tick has answered."""
        return bool(self._version) and not any(slot.reads(number) for slot in self._slots.values())

    def answer(self, number: int) -> frames.Answer:
        """Take what was found in time, and say what hangs."""
        readings: dict[str, dict[str, float]] = {}
        for slot in self._slots.values():
            readings |= slot.take(number)
        return frames.Answer(number, readings, self._stuck(), self._counters())

    def _read(self, slot: Slot, result: DriverError | None) -> None:
        if isinstance(result, DriverAbsent):
            self.end(str(result))
        elif isinstance(result, GpuLost):
            self._lose(slot, result.call)

    def _lose(self, slot: Slot, call: str) -> None:
        if slot.device is None:
            return
        uuid = slot.device.uuid
        slot.drop()
        if self._xids is not None:
            self._xids.forget(uuid)
        self._frames.append(frames.Happened(time.time_ns(), "gpu_lost", uuid, call=call))
        self._rescan_at = time.monotonic() + RESCAN_S

    def _on_xid(self, time_ns: int, uuid: str, code: int) -> None:
        """From the event thread: hand over at once; a flood beyond the bound is dropped and counted."""
        if len(self._outbox) >= _OUTBOX_MAX:
            self._xids_dropped += 1
            return
        happened = frames.Happened(time_ns, "xid", uuid, code=code)
        self._outbox.put(lambda: self._frames.append(happened))

    # --- inventory
    def _counted(self, result: int | DriverError) -> None:
        if isinstance(result, DriverAbsent):
            self.end(str(result))
        elif isinstance(result, int) and result != self._count:
            self._count = result
            for slot in self._slots.values():
                slot.verify = True
            self._rescan()

    def _rescan(self) -> None:
        """Open every index that has no board; those whose thread hangs are left alone."""
        self._rescan_at = time.monotonic() + RESCAN_S
        for index in range(min(self._count, _GPUS_MAX)):
            slot = self._slots.get(index)
            if index in self._skip or (slot is not None and slot.device is not None):
                continue
            if slot is None:
                slot = self._slots[index] = Slot(index, self._budget, self._outbox)
            if slot.worker.offer(slot.open, partial(self._opened, slot)):
                self._opening.add(index)

    def _opened(self, slot: Slot, result: Device | DriverError) -> None:
        if isinstance(result, OverBudget):  # nothing is known of it yet: soon once more
            self._rescan_at = min(self._rescan_at, time.monotonic() + 1)
            return
        self._opening.discard(slot.index)
        self._refused.discard(slot.index)
        if isinstance(result, DriverAbsent):
            self.end(str(result))
        if isinstance(result, DriverError):
            # a passing error is no proof that the board is gone: the list stays open until it is known
            if not isinstance(result, GpuLost | BadArgument):
                self._refused.add(slot.index)
            return
        if any(
            other.device is not None and other.device.uuid == result.uuid for other in self._slots.values()
        ):
            return  # indices have moved up: another slot holds this board
        slot.adopt(result)
        if self._xids is not None:
            self._xids.watch(result)

    # --- who hangs
    def _stuck(self) -> list[frames.Stuck]:
        stuck = []
        for hanging in (self._driver.hanging(_SLOW_CALL_S), self._xids and self._xids.hanging(_SLOW_CALL_S)):
            if hanging:
                stuck.append(frames.Stuck(entity.NODE, -1, hanging.call, hanging.seconds))
        for slot in self._slots.values():
            if slot_hangs := slot.worker.hanging(_SLOW_CALL_S):
                name = entity.gpu(slot.device.uuid) if slot.device is not None else ""
                stuck.append(frames.Stuck(name, slot.index, slot_hangs.call, slot_hangs.seconds))
        return stuck

    def _counters(self) -> dict[str, int]:
        totals = {
            "calls": self._driver.calls.count + self._event_calls.count,
            "xids_dropped": self._xids_dropped,
        }
        for slot in self._slots.values():
            totals["calls"] += slot.worker.calls.count
            for name, value in slot.counters.items():
                totals[name] = totals.get(name, 0) + value
        return totals


def _info(device: Device) -> frames.GpuInfo:
    return frames.GpuInfo(
        uuid=device.uuid, index=device.index, model=device.name, pci_bus_id=device.pci_bus_id
    )
