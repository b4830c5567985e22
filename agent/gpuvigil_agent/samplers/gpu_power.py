"""Power draw and energy of every GPU.

Source: NVML nvmlDeviceGetPowerUsage [mW], nvmlDeviceGetTotalEnergyConsumption [mJ].
Cost: two driver calls per GPU per second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuvigil_agent.samplers.base import Sample
from gpuvigil_agent.samplers.gpu_reading import supported
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import (
    GPU_ENERGY_JOULES_TOTAL,
    GPU_POWER_WATTS,
)

if TYPE_CHECKING:
    from gpuvigil_agent.nvml import Device


class Power:
    """Yield watts now and joules since the driver was loaded."""

    name = "gpu_power"
    period_s = 1.0
    metrics = (
        GPU_ENERGY_JOULES_TOTAL,
        GPU_POWER_WATTS,
    )

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices

    def sample(self) -> Iterator[Sample]:
        """Read all devices once. Raises GpuLost when a board has fallen off the bus."""
        for device in self._devices:
            readings = [
                (GPU_POWER_WATTS, device.power_milliwatts, 1e-3),
                (GPU_ENERGY_JOULES_TOTAL, device.energy_millijoules, 1e-3),
            ]
            yield from supported(entity.gpu(device.uuid), readings)
