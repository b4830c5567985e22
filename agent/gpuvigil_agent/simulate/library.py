"""The NVML library object below pynvml: exported names as callables that fill ctypes out-parameters.

pynvml sets `.restype` on what it looks up, so each name is an object; a missing name is an AttributeError,
which pynvml turns into FUNCTION_NOT_FOUND. Calls may block (a hung driver) with the interpreter lock free.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pynvml

from gpuvigil_agent.simulate import cost
from gpuvigil_agent.simulate.board import Board
from gpuvigil_agent.simulate.events import EventSets
from gpuvigil_agent.simulate.faults import DriverCrash, DriverHang, DriverUnload
from gpuvigil_agent.simulate.outputs import HANDLE_BASE, address_of, device_calls, number
from gpuvigil_agent.simulate.readings import NvmlError
from gpuvigil_agent.simulate.world import World

_HANG_LOOK_SECONDS = 1.0


class Call:
    """One exported function. pynvml may set restype."""

    __slots__ = ("_function", "restype")

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Run it; an NvmlError becomes the code that NVML would return."""
        with cost.counted():
            try:
                found = self._function(*arguments)
            except NvmlError as error:
                return error.code
            return pynvml.NVML_SUCCESS if found is None else found


class SimulatedLibrary:
    """libnvidia-ml.so.1 of one simulated node, as `pynvml.nvmlLib`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.boards = [Board(world, index) for index in range(world.config.gpus)]
        self._loaded_ns = world.clock()
        self._initialised = False
        self._events = EventSets(world, self)
        self._calls: dict[str, Call] = {}
        for name, function in self._functions().items():
            self._calls[name] = Call(function)

    def __getattr__(self, name: str) -> Call:
        """Return an exported function. Raises AttributeError for one this driver does not have."""
        calls: dict[str, Call] = self.__dict__.get("_calls", {})
        if name not in calls:
            raise AttributeError(name)
        return calls[name]

    def _functions(self) -> dict[str, Callable[..., Any]]:
        functions: dict[str, Callable[..., Any]] = {
            "nvmlInitWithFlags": self._init,
            "nvmlShutdown": self._shutdown,
            "nvmlErrorString": _error_string,
            "nvmlSystemGetDriverVersion": self._driver_version,
            "nvmlDeviceGetCount_v2": self._count,
            "nvmlDeviceGetHandleByIndex_v2": self._handle,
            "nvmlDeviceGetIndex": self._index,
            "nvmlEventSetCreate": self._events.create,
            "nvmlEventSetFree": self._events.free,
            "nvmlDeviceRegisterEvents": self._events.register,
            "nvmlEventSetWait_v2": self._events.wait,
        }
        return functions | device_calls(self)

    def enter(self, *, call: str = "readings", gpu: int | None = None) -> int:
        """Begin any call: crash or hang if the scenario says so, then return the instant of the call.

        Raises NvmlError: DRIVER_NOT_LOADED while the module is out, UNINITIALIZED before init.
        """
        self._crash(self.world.clock())
        while self._hung(self.world.clock(), call, gpu):
            time.sleep(_HANG_LOOK_SECONDS)
        if any(self.world.active(DriverUnload, self.world.clock())):
            raise NvmlError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        if not self._initialised and call != "init":
            raise NvmlError(pynvml.NVML_ERROR_UNINITIALIZED)
        return self.world.clock()

    def _crash(self, now_ns: int) -> None:
        for placed, crash in self.world.active(DriverCrash, now_ns):
            if crash.duration is not None or placed.start_ns > self._loaded_ns:
                os.kill(os.getpid(), getattr(signal, crash.signal))

    def _hung(self, now_ns: int, call: str, gpu: int | None) -> bool:
        for _, hang in self.world.active(DriverHang, now_ns):
            if hang.gpu is None and hang.call in {call, "readings"}:
                return True
            if hang.gpu is not None and hang.gpu == gpu and call == "readings":
                return True
        return False

    def board(self, handle: Any, *, answers: bool = True) -> tuple[Board, int]:
        """Return the board behind a handle and the instant. Raises NvmlError: no such handle, GPU lost."""
        ordinal = address_of(handle) - HANDLE_BASE
        if not 0 <= ordinal < len(self.boards):
            self.enter()
            raise NvmlError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        now_ns = self.enter(gpu=ordinal)
        board = self.boards[ordinal]
        if answers and board.lost(now_ns):
            raise NvmlError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return board, now_ns

    def _visible(self, now_ns: int) -> list[Board]:
        return [board for board in self.boards if not board.vanished(now_ns)]

    def _init(self, _flags: Any) -> None:
        self.enter(call="init")
        self._initialised = True

    def _shutdown(self) -> None:
        if not self._initialised:
            raise NvmlError(pynvml.NVML_ERROR_UNINITIALIZED)
        self._initialised = False

    def _driver_version(self, buffer: Any, _size: Any) -> None:
        self.enter()
        buffer.value = self.world.profile.driver_version.encode()

    def _count(self, out: Any) -> None:
        now_ns = self.enter()
        out._obj.value = len(self._visible(now_ns))

    def _handle(self, index: Any, out: Any) -> None:
        visible = self._visible(self.enter())
        wanted = number(index)
        if wanted >= len(visible):
            raise NvmlError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        if visible[wanted].lost(self.world.clock()):
            raise NvmlError(pynvml.NVML_ERROR_GPU_IS_LOST)
        ctypes.c_void_p.from_buffer(out._obj).value = HANDLE_BASE + visible[wanted].slot

    def _index(self, handle: Any, out: Any) -> None:
        board, now_ns = self.board(handle)
        out._obj.value = self._visible(now_ns).index(board)


def _error_string(code: Any) -> bytes:
    """Give pynvml's own words, which it uses when the library has none."""
    known: dict[int, str] = pynvml.NVMLError._errcode_to_string
    return known.get(number(code), f"NVML Error with code {number(code)}").encode()
