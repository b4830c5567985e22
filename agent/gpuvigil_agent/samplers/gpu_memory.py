"""Device memory in use on every GPU.

Source: NVML nvmlDeviceGetMemoryInfo [bytes].
Cost: one driver call per GPU per second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuvigil_agent.driver_errors import NotSupported
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import (
    GPU_FRAMEBUFFER_TOTAL_BYTES,
    GPU_FRAMEBUFFER_USED_BYTES,
)

if TYPE_CHECKING:
    from gpuvigil_agent.nvml import Device


class Memory:
    """Yield used and total framebuffer."""

    name = "gpu_memory"
    period_s = 1.0
    metrics = (
        GPU_FRAMEBUFFER_TOTAL_BYTES,
        GPU_FRAMEBUFFER_USED_BYTES,
    )

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices

    def sample(self) -> Iterator[Sample]:
        """Read all devices once. Raises GpuLost when a board has fallen off the bus."""
        for device in self._devices:
            try:
                used, total = device.memory_bytes()
            except NotSupported:
                continue
            name = entity.gpu(device.uuid)
            yield Sample(GPU_FRAMEBUFFER_USED_BYTES, name, used)
            yield Sample(GPU_FRAMEBUFFER_TOTAL_BYTES, name, total)
