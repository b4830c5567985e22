"""What each NVML reading answers, as tables: exported name -> value of one board at one instant.

Names are those that pynvml looks up (nvidia-ml-py 13). `ONE` fills one number; `CHOSEN` fills one number that
an enumeration selects; a wrong choice is INVALID_ARGUMENT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pynvml

from gpuvigil_agent.simulate.board import Board

BLANK_INT64: Final = 9223372036854775794
"""NVML's and DCGM's "no value" in a 64-bit integer."""


class NvmlError(Exception):
    """A call that answers with an NVML error code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _choice(table: dict[int, int], key: int) -> int:
    if key not in table:
        raise NvmlError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    return table[key]


def _clock(board: Board, kind: int, now_ns: int) -> int:
    sm = board.state(now_ns).sm_clock_mhz
    clocks = {pynvml.NVML_CLOCK_GRAPHICS: sm, pynvml.NVML_CLOCK_SM: sm}
    return _choice(clocks | {pynvml.NVML_CLOCK_MEM: board.world.profile.memory_clock_mhz}, kind)


def _clock_max(board: Board, kind: int, _now_ns: int) -> int:
    profile = board.world.profile
    clocks = {
        pynvml.NVML_CLOCK_GRAPHICS: profile.sm_clock_max_mhz,
        pynvml.NVML_CLOCK_SM: profile.sm_clock_max_mhz,
    }
    return _choice(clocks | {pynvml.NVML_CLOCK_MEM: profile.memory_clock_mhz}, kind)


def _temperature(board: Board, sensor: int, now_ns: int) -> int:
    return _choice({pynvml.NVML_TEMPERATURE_GPU: int(board.state(now_ns).temperature_celsius)}, sensor)


def ecc(board: Board, error: int, counter: int, now_ns: int) -> int:
    """Total ECC errors of one kind (corrected, uncorrected) and counter (volatile, aggregate)."""
    corrected = _choice(
        {pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED: 1, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED: 0}, error
    )
    life = _choice({pynvml.NVML_VOLATILE_ECC: 0, pynvml.NVML_AGGREGATE_ECC: 1}, counter)
    if not corrected:
        return board.ecc_uncorrected(now_ns)
    return board.ecc_corrected(now_ns) + (board.ecc_life() if life else 0)


def nvlink_state(board: Board, link: int, now_ns: int) -> int:
    """1 while a link is up; the architecture's missing links are INVALID_ARGUMENT, as on the real driver."""
    if link >= board.world.profile.nvlinks:
        raise NvmlError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    return int(board.nvlink_active(link, now_ns))


_LINK_COUNTERS = {
    pynvml.NVML_NVLINK_ERROR_DL_REPLAY: "replay",
    pynvml.NVML_NVLINK_ERROR_DL_RECOVERY: "recovery",
    pynvml.NVML_NVLINK_ERROR_DL_CRC_FLIT: "crc_flit",
    pynvml.NVML_NVLINK_ERROR_DL_CRC_DATA: "crc_data",
    pynvml.NVML_NVLINK_ERROR_DL_ECC_DATA: "ecc",
}


def nvlink_errors(board: Board, link: int, counter: int, now_ns: int) -> int:
    """One error counter of one link."""
    if link >= board.world.profile.nvlinks or counter not in _LINK_COUNTERS:
        raise NvmlError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    return board.nvlink_errors(link, now_ns)[_LINK_COUNTERS[counter]]


ONE: Final[dict[str, Callable[[Board, int], int]]] = {
    "nvmlDeviceGetPowerUsage": lambda board, now: int(board.state(now).power_watts * 1000),
    "nvmlDeviceGetEnforcedPowerLimit": lambda board, _now: int(board.world.profile.power_limit_watts * 1000),
    "nvmlDeviceGetTotalEnergyConsumption": lambda board, now: int(board.energy_joules(now) * 1000),
    "nvmlDeviceGetCurrentClocksEventReasons": lambda board, now: board.state(now).reasons,
    "nvmlDeviceGetCurrPcieLinkGeneration": lambda board, now: board.pcie(now)[0],
    "nvmlDeviceGetCurrPcieLinkWidth": lambda board, now: board.pcie(now)[1],
    "nvmlDeviceGetMaxPcieLinkGeneration": lambda board, _now: board.world.profile.pcie_generation,
    "nvmlDeviceGetMaxPcieLinkWidth": lambda board, _now: board.world.profile.pcie_width,
    "nvmlDeviceGetPcieReplayCounter": lambda board, now: board.state(now).pcie_replays,
    "nvmlDeviceGetSupportedEventTypes": lambda _board, _now: (
        pynvml.nvmlEventTypeXidCriticalError
        | pynvml.nvmlEventTypeSingleBitEccError
        | pynvml.nvmlEventTypeDoubleBitEccError
    ),
}

CHOSEN: Final[dict[str, Callable[[Board, int, int], int]]] = {
    "nvmlDeviceGetTemperature": _temperature,
    "nvmlDeviceGetClockInfo": _clock,
    "nvmlDeviceGetMaxClockInfo": _clock_max,
    "nvmlDeviceGetNvLinkState": nvlink_state,
}

FIELDS: Final[dict[int, Callable[[Board, int, int], int]]] = {
    pynvml.NVML_FI_DEV_MEMORY_TEMP: lambda board, _scope, now: int(
        board.state(now).memory_temperature_celsius
    ),
    pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY: lambda board, scope, now: nvlink_errors(
        board, scope, pynvml.NVML_NVLINK_ERROR_DL_REPLAY, now
    ),
    pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY: lambda board, scope, now: nvlink_errors(
        board, scope, pynvml.NVML_NVLINK_ERROR_DL_RECOVERY, now
    ),
    pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_CRC: lambda board, scope, now: nvlink_errors(
        board, scope, pynvml.NVML_NVLINK_ERROR_DL_CRC_FLIT, now
    ),
}
"""Field id -> value of one board and scope (the link, for NVLink fields)."""
