"""What every GPU could do at most: facts that change only by configuration.

Source: NVML nvmlDeviceGetEnforcedPowerLimit [mW], nvmlDeviceGetMaxClockInfo [MHz],
nvmlDeviceGetMaxPcieLinkGeneration, nvmlDeviceGetMaxPcieLinkWidth [lanes].
Cost: four driver calls per GPU per minute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuvigil_agent.samplers.base import Sample
from gpuvigil_agent.samplers.gpu_reading import supported
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import (
    GPU_PCIE_LINK_GENERATION_MAX,
    GPU_PCIE_LINK_WIDTH_MAX,
    GPU_POWER_LIMIT_WATTS,
    GPU_SM_CLOCK_MAX_HERTZ,
)

if TYPE_CHECKING:
    from gpuvigil_agent.nvml import Device


class Limits:
    """Yield power limit, highest clock, and the PCIe link that board and slot could run."""

    name = "gpu_limits"
    period_s = 60.0
    metrics = (
        GPU_PCIE_LINK_GENERATION_MAX,
        GPU_PCIE_LINK_WIDTH_MAX,
        GPU_POWER_LIMIT_WATTS,
        GPU_SM_CLOCK_MAX_HERTZ,
    )

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices

    def sample(self) -> Iterator[Sample]:
        """Read all devices once. Raises GpuLost when a board has fallen off the bus."""
        for device in self._devices:
            readings = [
                (GPU_POWER_LIMIT_WATTS, device.power_limit_milliwatts, 1e-3),
                (GPU_SM_CLOCK_MAX_HERTZ, device.sm_clock_max_megahertz, 1e6),
                (GPU_PCIE_LINK_GENERATION_MAX, device.pcie_generation_max, 1.0),
                (GPU_PCIE_LINK_WIDTH_MAX, device.pcie_width_max, 1.0),
            ]
            yield from supported(entity.gpu(device.uuid), readings)
