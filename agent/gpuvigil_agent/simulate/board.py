"""One GPU as the driver shows it: the physics of its second, and the faults of this very instant on top."""

from __future__ import annotations

from gpuvigil_agent.simulate import noise
from gpuvigil_agent.simulate.fault import GpuFault
from gpuvigil_agent.simulate.faults import (
    DriverBlanks,
    EccCorrectedGrowth,
    EccUncorrectable,
    GpuLostSilent,
    GpuLostXid79,
    NvlinkDown,
    NvlinkErrors,
    PcieDowngrade,
    RowRemapFailure,
)
from gpuvigil_agent.simulate.gpu import GpuPhysics, State
from gpuvigil_agent.simulate.world import F, World

RECOVERY_NONE, RECOVERY_GPU_RESET, RECOVERY_DRAIN_AND_RESET = 0, 1, 4


class Board:
    """A GPU in a slot. Every method takes the instant, so one call sees one world."""

    def __init__(self, world: World, index: int) -> None:
        self.world, self.slot = world, index
        self.uuid = world.uuid(index)
        self.domain, self.bus = world.pci_address(index)
        self._physics = GpuPhysics(world, index)
        self._key = noise.mix(world.key, index, 9)
        self._faults = [p for p in world.faults if isinstance(p.fault, GpuFault) and p.fault.gpu == index]

    def state(self, now_ns: int) -> State:
        """The physics of the current second."""
        return self._physics.at(now_ns)

    def _active(self, kind: type[F], now_ns: int) -> F | None:
        for placed in self._faults:
            if isinstance(placed.fault, kind) and placed.active(now_ns):
                return placed.fault
        return None

    def lost(self, now_ns: int) -> bool:
        """True while calls about this GPU answer GPU_IS_LOST."""
        return bool(self._active(GpuLostXid79, now_ns)) or self.vanished(now_ns)

    def vanished(self, now_ns: int) -> bool:
        """True while the GPU is not in the inventory at all."""
        return self._active(GpuLostSilent, now_ns) is not None

    def blank(self, now_ns: int) -> bool:
        """True while readings are blanks or NotSupported."""
        return self._active(DriverBlanks, now_ns) is not None

    def energy_joules(self, now_ns: int) -> float:
        """Energy so far; grows within the second, so that a rate is right at any pace of reading."""
        state = self.state(now_ns)
        return state.energy_joules + state.power_watts * self.world.fraction(now_ns)

    def ecc_corrected(self, now_ns: int) -> int:
        """Corrected errors since the driver was loaded."""
        total = self.state(now_ns).ecc_corrected
        for placed in self._faults:
            if isinstance(placed.fault, EccCorrectedGrowth):
                seconds = placed.elapsed_s(now_ns)
                total += int(placed.fault.errors_per_second * seconds * (1 + seconds / 60))
        return total

    def ecc_uncorrected(self, now_ns: int) -> int:
        """Uncorrectable errors since the driver was loaded; they stay until a reset."""
        return sum(
            placed.fault.errors
            for placed in self._faults
            if isinstance(placed.fault, EccUncorrectable) and placed.start_ns <= now_ns
        )

    def ecc_life(self) -> int:
        """Corrected errors of the board's life before the driver was loaded."""
        return noise.mix(self._key, 1) % 40

    def remapped_rows(self, now_ns: int) -> tuple[int, int, int, int]:
        """Rows remapped (correctable, uncorrectable), pending flag, failure flag."""
        failed = self._active(RowRemapFailure, now_ns) is not None
        pending = self._active(EccUncorrectable, now_ns) is not None
        return 0, int(failed), int(pending), int(failed)

    def recovery_action(self, now_ns: int) -> int:
        """NVML's recovery action: what the driver wants done."""
        ecc = self._active(EccUncorrectable, now_ns)
        if ecc is not None:
            return RECOVERY_DRAIN_AND_RESET if ecc.xid == 94 else RECOVERY_GPU_RESET
        return RECOVERY_GPU_RESET if self._active(RowRemapFailure, now_ns) else RECOVERY_NONE

    def pcie(self, now_ns: int) -> tuple[int, int]:
        """Generation and width of the link now."""
        profile = self.world.profile
        fault = self._active(PcieDowngrade, now_ns)
        if fault is None:
            return profile.pcie_generation, profile.pcie_width
        return fault.generation, fault.width or profile.pcie_width

    def nvlink_active(self, link: int, now_ns: int) -> bool:
        """Whether a link is up."""
        return not any(
            isinstance(placed.fault, NvlinkDown) and placed.fault.link == link and placed.active(now_ns)
            for placed in self._faults
        )

    def nvlink_errors(self, link: int, now_ns: int) -> dict[str, int]:
        """Running totals of a link: crc_flit, crc_data, replay, recovery, ecc."""
        background = self.state(now_ns).nvlink_crc if link == self._key % self.world.profile.nvlinks else 0
        bad = 0.0
        for placed in self._faults:
            if isinstance(placed.fault, NvlinkErrors) and placed.fault.link == link:
                bad += placed.fault.errors_per_second * placed.elapsed_s(now_ns)
        return {
            "crc_flit": background + int(bad),
            "crc_data": int(bad / 8),
            "replay": int(bad / 2),
            "recovery": int(bad / 500),
            "ecc": 0,
        }
