"""How busy every GPU is.

Source: NVML nvmlDeviceGetUtilizationRates [percent]. Absent in MIG mode.
Cost: one driver call per GPU per second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuvigil_agent.driver_errors import NotSupported
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import (
    GPU_MEMORY_UTILIZATION_RATIO,
    GPU_UTILIZATION_RATIO,
)

if TYPE_CHECKING:
    from gpuvigil_agent.nvml import Device


class Activity:
    """Yield busy share of cores and memory."""

    name = "gpu_activity"
    period_s = 1.0
    metrics = (
        GPU_MEMORY_UTILIZATION_RATIO,
        GPU_UTILIZATION_RATIO,
    )

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices

    def sample(self) -> Iterator[Sample]:
        """Read all devices once. Raises GpuLost when a board has fallen off the bus."""
        for device in self._devices:
            try:
                cores, memory = device.utilization_percent()
            except NotSupported:
                continue
            name = entity.gpu(device.uuid)
            yield Sample(GPU_UTILIZATION_RATIO, name, cores / 100)
            yield Sample(GPU_MEMORY_UTILIZATION_RATIO, name, memory / 100)
