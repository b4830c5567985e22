"""NVML event sets: Xids of registered GPUs, delivered in order by a wait that blocks up to its timeout.

Events from before the registration are not delivered, and those of a time without a listener are gone:
that is how the real driver behaves.
"""

from __future__ import annotations

import bisect
import ctypes
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pynvml

from gpuvigil_agent.simulate.outputs import HANDLE_BASE, address_of, number
from gpuvigil_agent.simulate.readings import NvmlError
from gpuvigil_agent.simulate.world import World
from gpuvigil_agent.simulate.xids import Xid, xids

if TYPE_CHECKING:
    from gpuvigil_agent.simulate.library import SimulatedLibrary

_SET_BASE: Final = 0xE100
_LONGEST_SLEEP_SECONDS = 0.25  # so that a hang that begins during a wait is felt


@dataclass(slots=True)
class _EventSet:
    """Where one listener stands in the node's list of Xids."""

    next_xid: int
    gpus: set[int] = field(default_factory=set)


class EventSets:
    """All event sets of one library. A set is waited on by one thread, as NVML asks."""

    def __init__(self, world: World, library: SimulatedLibrary) -> None:
        self._world, self._library = world, library
        self._xids: tuple[Xid, ...] = xids(world)
        self._sets: dict[int, _EventSet] = {}
        self._made = 0

    def create(self, out: Any) -> None:
        """Answer nvmlEventSetCreate."""
        now_ns = self._library.enter()
        first = bisect.bisect_left(self._xids, now_ns, key=lambda xid: xid.time_ns)
        self._made += 1
        self._sets[_SET_BASE + self._made] = _EventSet(first)
        ctypes.c_void_p.from_buffer(out._obj).value = _SET_BASE + self._made

    def free(self, handle: Any) -> None:
        """Answer nvmlEventSetFree."""
        self._library.enter()
        if self._sets.pop(address_of(handle), None) is None:
            raise NvmlError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    def register(self, device: Any, types: Any, handle: Any) -> None:
        """Answer nvmlDeviceRegisterEvents; other types than Xid are taken and never come."""
        board, _ = self._library.board(device)
        if number(types) & pynvml.nvmlEventTypeXidCriticalError:
            self._set(handle).gpus.add(board.slot)

    def wait(self, handle: Any, out: Any, timeout_ms: Any) -> int | None:
        """Answer nvmlEventSetWait_v2: the next Xid, or TIMEOUT."""
        deadline_ns = self._library.enter(call="events") + number(timeout_ms) * 1_000_000
        listener = self._set(handle)
        while True:
            now_ns = self._library.enter(call="events")
            xid = self._due(listener, now_ns)
            if xid is not None:
                _fill(out._obj, xid)
                return None
            if now_ns >= deadline_ns:
                return int(pynvml.NVML_ERROR_TIMEOUT)
            time.sleep(self._sleep_seconds(listener, now_ns, deadline_ns))

    def _set(self, handle: Any) -> _EventSet:
        if address_of(handle) not in self._sets:
            raise NvmlError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self._sets[address_of(handle)]

    def _due(self, listener: _EventSet, now_ns: int) -> Xid | None:
        while listener.next_xid < len(self._xids) and self._xids[listener.next_xid].time_ns <= now_ns:
            xid = self._xids[listener.next_xid]
            listener.next_xid += 1
            if xid.gpu in listener.gpus:
                return xid
        return None

    def _sleep_seconds(self, listener: _EventSet, now_ns: int, deadline_ns: int) -> float:
        until_ns = deadline_ns
        if listener.next_xid < len(self._xids):
            until_ns = min(until_ns, self._xids[listener.next_xid].time_ns)
        return min(_LONGEST_SLEEP_SECONDS, (until_ns - now_ns) / 1e9 + 1e-4)


def _fill(data: Any, xid: Xid) -> None:
    ctypes.c_void_p.from_buffer(data, type(data).device.offset).value = HANDLE_BASE + xid.gpu
    data.eventType, data.eventData = pynvml.nvmlEventTypeXidCriticalError, xid.code
    data.gpuInstanceId = data.computeInstanceId = 0xFFFFFFFF  # no MIG instance
