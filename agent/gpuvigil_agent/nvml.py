"""NVML in typed Python: the only product code that imports pynvml.

One method is one NVML call. Blanks (INT32 and INT64 blank values, all ones) are NotSupported, never numbers.
Works on NVIDIA's library and on the simulated one, which sits below pynvml.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, TypeVar

import pynvml

from gpuvigil_agent.driver_budget import Budget
from gpuvigil_agent.driver_errors import (
    BadArgument,
    DriverAbsent,
    DriverError,
    GpuLost,
    NotSupported,
    WaitTimeout,
)
from gpuvigil_agent.driver_values import BLANKS_32, BLANKS_64, field_number, number, pci_address, text

T = TypeVar("T")

XID_EVENT: Final = pynvml.nvmlEventTypeXidCriticalError
_ERRORS: Final[dict[int, type[DriverError]]] = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: NotSupported,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: NotSupported,
    pynvml.NVML_ERROR_NO_PERMISSION: NotSupported,
    pynvml.NVML_ERROR_NO_DATA: NotSupported,
    pynvml.NVML_ERROR_DEPRECATED: NotSupported,
    pynvml.NVML_ERROR_INVALID_ARGUMENT: BadArgument,
    pynvml.NVML_ERROR_NOT_FOUND: BadArgument,
    pynvml.NVML_ERROR_TIMEOUT: WaitTimeout,
    pynvml.NVML_ERROR_GPU_IS_LOST: GpuLost,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: GpuLost,
    pynvml.NVML_ERROR_UNINITIALIZED: DriverAbsent,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: DriverAbsent,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: DriverAbsent,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: DriverAbsent,
}


class Calls:
    """The driver calls of one thread. Another thread may read `in_flight` to see what it hangs in.

    budget None: calls that must never be refused, for what they miss is gone.
    """

    def __init__(self, budget: Budget | None) -> None:
        self._budget = budget
        self._in_flight: tuple[str, float] | None = None
        self.count = 0
        self.seconds = 0.0

    @property
    def in_flight(self) -> tuple[str, float] | None:
        """The NVML function now running and its start on the monotonic clock, or None."""
        return self._in_flight

    def make(self, function: Callable[..., T], *arguments: object) -> T:
        """Call NVML once. Raises DriverError or one of its kinds, never pynvml's errors."""
        name = function.__name__
        if self._budget is not None:
            self._budget.take(name)
        started = time.monotonic()
        self._in_flight = (name, started)
        try:
            return function(*arguments)
        except pynvml.NVMLError as error:
            raise _ERRORS.get(error.value, DriverError)(name, str(error)) from None
        finally:
            self._in_flight = None
            self.count += 1
            self.seconds += time.monotonic() - started


class Driver:
    """The library itself: start it, count its boards, open one by index."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def initialise(self) -> None:
        """Load the library and attach. Raises DriverAbsent where there is none."""
        self._calls.make(pynvml.nvmlInitWithFlags, 0)

    def shutdown(self) -> None:
        """Detach; a driver that is already gone is no error."""
        try:
            self._calls.make(pynvml.nvmlShutdown)
        except DriverAbsent:
            return

    def version(self) -> str:
        """Return the driver's version, "550.54.15"."""
        return text(self._calls.make(pynvml.nvmlSystemGetDriverVersion))

    def count(self) -> int:
        """Return how many boards the driver counts now."""
        return int(self._calls.make(pynvml.nvmlDeviceGetCount))

    def open(self, index: int) -> Device:
        """Open the board that has this index today; its UUID is its identity. Raises GpuLost."""
        handle = self._calls.make(pynvml.nvmlDeviceGetHandleByIndex, index)
        uuid = text(self._calls.make(pynvml.nvmlDeviceGetUUID, handle))
        name = text(self._calls.make(pynvml.nvmlDeviceGetName, handle))
        pci = pci_address(text(self._calls.make(pynvml.nvmlDeviceGetPciInfo_v3, handle).busId))
        return Device(self._calls, handle, uuid=uuid, index=index, name=name, pci_bus_id=pci)


class Remapped(NamedTuple):
    """Counts of rows, and flags 0 or 1."""

    correctable: int
    uncorrectable: int
    pending: int
    failure: int


class Device:
    """One board. Every method raises NotSupported, GpuLost, DriverAbsent or DriverError."""

    def __init__(
        self, calls: Calls, handle: Any, *, uuid: str, index: int, name: str, pci_bus_id: str
    ) -> None:
        self.calls, self.handle = calls, handle
        self.uuid, self.index, self.name, self.pci_bus_id = uuid, index, name, pci_bus_id

    def check_uuid(self) -> bool:
        """Ask the handle who it is: False when it now means another board."""
        return text(self.calls.make(pynvml.nvmlDeviceGetUUID, self.handle)) == self.uuid

    def utilization_percent(self) -> tuple[int, int]:
        """Return busy share of the cores and of the memory controller, 0 to 100."""
        rates = self.calls.make(pynvml.nvmlDeviceGetUtilizationRates, self.handle)
        return number(rates.gpu, BLANKS_32), number(rates.memory, BLANKS_32)

    def memory_bytes(self) -> tuple[int, int]:
        """Return device memory used and total."""
        info = self.calls.make(pynvml.nvmlDeviceGetMemoryInfo, self.handle)
        return number(info.used, BLANKS_64), number(info.total, BLANKS_64)

    def temperature_celsius(self) -> int:
        """Return the core temperature."""
        return self._32(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU)

    def power_milliwatts(self) -> int:
        """Return the board's draw."""
        return self._32(pynvml.nvmlDeviceGetPowerUsage)

    def power_limit_milliwatts(self) -> int:
        """Return the limit in force."""
        return self._32(pynvml.nvmlDeviceGetEnforcedPowerLimit)

    def energy_millijoules(self) -> int:
        """Return energy since the driver was loaded."""
        return self._64(pynvml.nvmlDeviceGetTotalEnergyConsumption)

    def sm_clock_megahertz(self) -> int:
        """Return the multiprocessors' clock."""
        return self._32(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM)

    def memory_clock_megahertz(self) -> int:
        """Return the memory's clock."""
        return self._32(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM)

    def sm_clock_max_megahertz(self) -> int:
        """Return the highest clock that the board allows."""
        return self._32(pynvml.nvmlDeviceGetMaxClockInfo, pynvml.NVML_CLOCK_SM)

    def clocks_event_reasons(self) -> int:
        """Return NVML's bits for why clocks are below their maximum."""
        return self._64(pynvml.nvmlDeviceGetCurrentClocksEventReasons)

    def ecc_errors(self, *, uncorrected: bool, aggregate: bool) -> int:
        """Return a total over all locations: volatile is since driver load, aggregate is for life."""
        error = (
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
            if uncorrected
            else pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED
        )
        span = pynvml.NVML_AGGREGATE_ECC if aggregate else pynvml.NVML_VOLATILE_ECC
        return self._64(pynvml.nvmlDeviceGetTotalEccErrors, error, span)

    def remapped_rows(self) -> Remapped:
        """Return remapped rows and the two flags; boards before Ampere have none."""
        rows = self.calls.make(pynvml.nvmlDeviceGetRemappedRows, self.handle)
        return Remapped(*(number(value, BLANKS_32) for value in rows))

    def pcie_generation(self) -> int:
        """Return the PCIe generation of the link now."""
        return self._32(pynvml.nvmlDeviceGetCurrPcieLinkGeneration)

    def pcie_width(self) -> int:
        """Return the lanes of the link now."""
        return self._32(pynvml.nvmlDeviceGetCurrPcieLinkWidth)

    def pcie_generation_max(self) -> int:
        """Return the highest generation of board and slot together."""
        return self._32(pynvml.nvmlDeviceGetMaxPcieLinkGeneration)

    def pcie_width_max(self) -> int:
        """Return the most lanes of board and slot together."""
        return self._32(pynvml.nvmlDeviceGetMaxPcieLinkWidth)

    def pcie_replays(self) -> int:
        """Return packets sent again."""
        return self._32(pynvml.nvmlDeviceGetPcieReplayCounter)

    def nvlink_active(self, link: int) -> bool:
        """Tell whether a link is up. Raises NotSupported for a link that the board lacks."""
        try:
            return bool(self._32(pynvml.nvmlDeviceGetNvLinkState, link))
        except BadArgument as error:
            raise NotSupported(error.call, f"no link {link}") from None

    def nvlink_errors(self, link: int, counter: int) -> int:
        """Return one of the link's NVML_NVLINK_ERROR_DL_* counters."""
        try:
            return self._64(pynvml.nvmlDeviceGetNvLinkErrorCounter, link, counter)
        except BadArgument as error:
            raise NotSupported(error.call, f"no link {link} or counter {counter}") from None

    def compute_processes(self) -> int:
        """Return how many processes hold a compute context."""
        return len(self.calls.make(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, self.handle))

    def fields(self, wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], float]:
        """Return the field values that are there, by (field id, scope id), in one call; none is no error."""
        asked = list(wanted)
        try:
            found = self.calls.make(pynvml.nvmlDeviceGetFieldValues, self.handle, asked)
        except NotSupported:
            return {}
        values = (
            (key, field_number(value.nvmlReturn, value.valueType, value.value))
            for key, value in zip(asked, found, strict=True)
        )
        return {key: value for key, value in values if value is not None}

    def _32(self, function: Callable[..., int], *arguments: int) -> int:
        return number(self.calls.make(function, self.handle, *arguments), BLANKS_32)

    def _64(self, function: Callable[..., int], *arguments: int) -> int:
        return number(self.calls.make(function, self.handle, *arguments), BLANKS_64)


class Xid(NamedTuple):
    """One critical event. address is the handle's, for a lost board no longer tells its UUID."""

    address: int
    code: int


class EventSet:
    """Xid events of the registered boards."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._set = calls.make(pynvml.nvmlEventSetCreate)

    def register(self, device: Device) -> None:
        """Ask for the board's Xids. Raises NotSupported where it reports none."""
        if not self._calls.make(pynvml.nvmlDeviceGetSupportedEventTypes, device.handle) & XID_EVENT:
            raise NotSupported("nvmlDeviceGetSupportedEventTypes", "no Xid events")
        self._calls.make(pynvml.nvmlDeviceRegisterEvents, device.handle, XID_EVENT, self._set)

    def wait(self, timeout_ms: int) -> Xid | None:
        """Wait for one Xid; None when none came in time."""
        try:
            data = self._calls.make(pynvml.nvmlEventSetWait_v2, self._set, timeout_ms)
        except WaitTimeout:
            return None
        if data.eventType != XID_EVENT:
            return None
        return Xid(handle_address(data.device), int(data.eventData))

    def free(self) -> None:
        """Give the set back."""
        self._calls.make(pynvml.nvmlEventSetFree, self._set)


def handle_address(handle: Any) -> int:
    """Return what tells one handle from another."""
    return int(ctypes.cast(handle, ctypes.c_void_p).value or 0)
