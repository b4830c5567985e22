"""Every kind of fault that a scenario may set: its parameters, the class it means and where it shows.

Sizes come from physics and field reports (a fan tray lost doubles the thermal resistance, a bad lane makes
thousands of errors a minute), never from what a detector looks for. `docs/scenarios.md` describes each.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from gpuvigil_agent.simulate.fault import Fault, GpuFault
from gpuvigil_agent.simulate.loop_faults import LOOP_KINDS
from gpuvigil_protos.settings import Seconds


class GpuLostXid79(GpuFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The GPU falls off the bus: Xid 79, every call answers GPU_IS_LOST, the count stays."""

    fault_class, limit_s = "gpu_lost", 15


class GpuLostSilent(GpuFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The GPU leaves the inventory without a word: the count shrinks and indices move up."""

    fault_class, limit_s = "gpu_lost", 15


class EccUncorrectable(GpuFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Uncorrectable ECC: the counter rises by `errors` and the Xid comes."""

    fault_class, limit_s = "ecc_uncorrectable", 30
    xid: Literal[48, 94, 95] = 48
    errors: int = 1


class EccCorrectedGrowth(GpuFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A weak row: corrected errors come at a growing rate."""

    fault_class, limit_s = "ecc_corrected_growth", 150
    errors_per_second: float = 40.0


class RowRemapFailure(GpuFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A row could not be remapped: Xid 64 and the failure flag."""

    fault_class, limit_s = "row_remap_failure", 75


class ThermalThrottle(GpuFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Cooling is lost in part: thermal resistance grows by `resistance_factor`."""

    fault_class, limit_s = "thermal", 60
    resistance_factor: float = 2.0


class PowerBrake(GpuFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The power supply asserts the external brake: clocks fall to `clock_share` of their maximum."""

    fault_class, limit_s = "power_brake", 30
    clock_share: float = 0.5


class NvlinkErrors(GpuFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One NVLink makes CRC errors and replays; now and then it recovers."""

    fault_class, limit_s = "nvlink_errors", 75
    link: int = 0
    errors_per_second: float = 60.0


class NvlinkDown(GpuFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One NVLink goes inactive; `xid` adds the driver's Xid 74."""

    fault_class, limit_s = "nvlink_down", 75
    link: int = 0
    xid: bool = True


class PcieDowngrade(GpuFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The PCIe link trains to a lower generation or width."""

    fault_class, limit_s = "pcie_downgrade", 75
    generation: int = 1
    width: int | None = None


class DriverHang(Fault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Driver calls never return: those of one GPU, or all (no gpu), init, or the wait for events."""

    fault_class, limit_s, where = "driver_hang", 60, "driver"
    gpu: int | None = None
    call: Literal["readings", "init", "events"] = "readings"


class DriverCrash(Fault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The driver library kills its process, once; with a duration, each time it is used."""

    fault_class, limit_s, where = "monitor_fault", 30, "driver"
    signal: Literal["SIGSEGV", "SIGABRT"] = "SIGSEGV"


class DriverUnload(Fault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The kernel module goes, as in a driver update, and comes back at the end: every call is refused."""

    fault_class, limit_s, where = "gpu_lost", 15, "driver"


class DriverBlanks(GpuFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Readings turn into NVML's blanks and NotSupported: nobody's fault, and no value may come of it."""

    fault_class, limit_s, silent = "monitor_fault", 60, True


class XidApplicationStorm(Fault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A job's own errors on many GPUs at once: bursts of application Xids. Nobody's machine is at fault."""

    fault_class, limit_s, where, silent = "xid_application", 60, "driver", True
    xids: list[Literal[13, 31, 43, 45]] = msgspec.field(default_factory=lambda: [13, 31, 43, 45])
    gpus: list[int] = msgspec.field(default_factory=list)
    bursts: int = 3


class InterfaceFault(Fault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A fault of one network interface."""

    where = "host"
    interface: str = "ib0"


class NicDown(InterfaceFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The link loses its carrier and stays down."""

    fault_class, limit_s = "nic_down", 60


class NicFlap(InterfaceFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The link goes down for `down` in every `period`."""

    fault_class, limit_s = "nic_flap", 75
    period: Seconds = Seconds(8)
    down: Seconds = Seconds(3)


class DiskSlow(Fault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Every request of one disk takes `latency_factor` times as long."""

    fault_class, limit_s, where = "disk_slow", 75, "host"
    disk: str = "nvme0n1"
    latency_factor: float = 20.0


class DiskFilling(Fault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Something fills a file system; it is full after `full_in`."""

    fault_class, limit_s, where = "disk_full", 90, "host"
    filesystem: str = "/scratch"
    full_in: Seconds = Seconds(50)


class MemoryLeak(Fault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A process leaks host memory; all of it is gone after `gone_in`."""

    fault_class, limit_s, where = "memory_leak_host", 150, "host"
    gone_in: Seconds = Seconds(240)


KINDS: Final[dict[str, type[Fault]]] = {
    "gpu_lost_xid79": GpuLostXid79,
    "gpu_lost_silent": GpuLostSilent,
    "ecc_uncorrectable": EccUncorrectable,
    "ecc_corrected_growth": EccCorrectedGrowth,
    "row_remap_failure": RowRemapFailure,
    "thermal_throttle": ThermalThrottle,
    "power_brake": PowerBrake,
    "nvlink_errors": NvlinkErrors,
    "nvlink_down": NvlinkDown,
    "pcie_downgrade": PcieDowngrade,
    "driver_hang": DriverHang,
    "driver_crash": DriverCrash,
    "driver_unload": DriverUnload,
    "driver_blanks": DriverBlanks,
    "xid_application_storm": XidApplicationStorm,
    "nic_down": NicDown,
    "nic_flap": NicFlap,
    "disk_slow": DiskSlow,
    "disk_filling": DiskFilling,
    "memory_leak": MemoryLeak,
    **LOOP_KINDS,
}
