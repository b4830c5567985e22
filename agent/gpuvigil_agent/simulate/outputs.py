"""How each device call fills its out-parameters: byref objects through `_obj`, buffers through `.value`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pynvml

from gpuvigil_agent.simulate.board import Board
from gpuvigil_agent.simulate.readings import (
    BLANK_INT64,
    CHOSEN,
    FIELDS,
    ONE,
    NvmlError,
    ecc,
    nvlink_errors,
)
from gpuvigil_agent.simulate.xids import FIRST_PID

if TYPE_CHECKING:
    from gpuvigil_agent.simulate.library import SimulatedLibrary

HANDLE_BASE: Final = 0x5100
"""A handle's address is this plus the slot; nobody looks behind it."""
_WIDE: Final = frozenset({"nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetTotalEccErrors"})
"""Calls with a 64-bit out-parameter: a driver without a value fills in the blank and reports success."""


def number(argument: Any) -> int:
    """Read an integer argument, plain or ctypes."""
    return int(getattr(argument, "value", argument))


def address_of(handle: Any) -> int:
    """The address in an opaque pointer; 0 for NULL."""
    return ctypes.c_void_p.from_buffer(handle).value or 0


def device_calls(library: SimulatedLibrary) -> dict[str, Callable[..., Any]]:
    """Return every call about one device, by exported name."""
    calls: dict[str, Callable[..., Any]] = {}
    for name, reading in ONE.items():
        calls[name] = _one(library, name, lambda board, now, *_, read=reading: read(board, now))
    for name, chosen in CHOSEN.items():
        calls[name] = _one(library, name, lambda board, now, key, read=chosen: read(board, key, now))
    calls["nvmlDeviceGetTotalEccErrors"] = _one(
        library,
        "nvmlDeviceGetTotalEccErrors",
        lambda board, now, kind, counter: ecc(board, kind, counter, now),
    )
    calls["nvmlDeviceGetNvLinkErrorCounter"] = _one(
        library,
        "nvmlDeviceGetNvLinkErrorCounter",
        lambda board, now, link, counter: nvlink_errors(board, link, counter, now),
    )
    for name, fill in _FILLS.items():
        calls[name] = _filled(library, fill)
    return calls


def _one(library: SimulatedLibrary, name: str, read: Callable[..., int]) -> Callable[..., None]:
    """A call of the form (handle, choices..., byref(number))."""

    def call(handle: Any, *arguments: Any) -> None:
        board, now_ns = library.board(handle)
        out = arguments[-1]._obj
        if board.blank(now_ns):
            if name not in _WIDE:
                raise NvmlError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            out.value = BLANK_INT64
            return
        out.value = read(board, now_ns, *[number(argument) for argument in arguments[:-1]])

    return call


def _filled(library: SimulatedLibrary, fill: Callable[..., int | None]) -> Callable[..., int | None]:
    """A call of the form (handle, anything else), filled by its own function."""

    def call(handle: Any, *arguments: Any) -> int | None:
        board, now_ns = library.board(handle)
        return fill(board, now_ns, *arguments)

    return call


def _refuse_when_blank(board: Board, now_ns: int) -> None:
    if board.blank(now_ns):
        raise NvmlError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def _uuid(board: Board, _now_ns: int, buffer: Any, _size: Any) -> None:
    buffer.value = board.uuid.encode()


def _name(board: Board, _now_ns: int, buffer: Any, _size: Any) -> None:
    buffer.value = board.world.profile.model.encode()


def _pci(board: Board, _now_ns: int, out: Any) -> None:
    info, profile = out._obj, board.world.profile
    info.domain, info.bus, info.device = board.domain, board.bus, 0
    info.pciDeviceId, info.pciSubSystemId = profile.pci_device_id, profile.pci_subsystem_id
    info.busId = f"{board.domain:08X}:{board.bus:02X}:00.0".encode()
    info.busIdLegacy = f"{board.domain:04X}:{board.bus:02X}:00.0".encode()


def _utilization(board: Board, now_ns: int, out: Any) -> None:
    _refuse_when_blank(board, now_ns)
    state = board.state(now_ns)
    out._obj.gpu, out._obj.memory = int(state.utilization * 100), int(state.memory_utilization * 100)


def _memory(board: Board, now_ns: int, out: Any) -> None:
    memory, total = out._obj, board.world.profile.memory_bytes
    if board.blank(now_ns):
        memory.total = memory.used = memory.free = BLANK_INT64
        return
    used = board.state(now_ns).framebuffer_bytes
    memory.total, memory.used, memory.free = total, used, total - used


def _remapped_rows(board: Board, now_ns: int, *outs: Any) -> None:
    _refuse_when_blank(board, now_ns)
    for out, value in zip(outs, board.remapped_rows(now_ns), strict=True):
        out._obj.value = value


def _fields(board: Board, now_ns: int, count: Any, out: Any) -> None:
    for place in range(number(count)):
        field = out._obj[place]
        field.timestamp, field.latencyUsec = now_ns // 1000, 40
        field.valueType, field.nvmlReturn = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, pynvml.NVML_SUCCESS
        try:
            field.value.ullVal = _field(board, field.fieldId, field.scopeId, now_ns)
        except NvmlError as error:
            field.nvmlReturn = error.code


def _field(board: Board, field_id: int, scope: int, now_ns: int) -> int:
    if board.blank(now_ns):
        return BLANK_INT64
    if (
        field_id == pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
        and board.world.profile.supports_recovery_action
    ):
        return board.recovery_action(now_ns)
    if field_id not in FIELDS:
        raise NvmlError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return FIELDS[field_id](board, scope, now_ns)


def _processes(board: Board, now_ns: int, count: Any, array: Any) -> int | None:
    state = board.state(now_ns)
    if not state.context:
        count._obj.value = 0
        return None
    if array is None or count._obj.value < 1:
        count._obj.value = 1
        return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    count._obj.value = 1
    array[0].pid = FIRST_PID + board.slot
    array[0].usedGpuMemory = state.framebuffer_bytes - board.world.profile.memory_reserved_bytes
    return None


_FILLS: Final[dict[str, Callable[..., int | None]]] = {
    "nvmlDeviceGetUUID": _uuid,
    "nvmlDeviceGetName": _name,
    "nvmlDeviceGetPciInfo_v3": _pci,
    "nvmlDeviceGetUtilizationRates": _utilization,
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetRemappedRows": _remapped_rows,
    "nvmlDeviceGetFieldValues": _fields,
    "nvmlDeviceGetComputeRunningProcesses_v3": _processes,
}
