"""How many processes compute on every GPU.

Source: NVML nvmlDeviceGetComputeRunningProcesses_v3 (names and pids are not read).
Cost: one driver call per GPU every 10 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuvigil_agent.samplers.base import Sample
from gpuvigil_agent.samplers.gpu_reading import supported
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import (
    GPU_COMPUTE_PROCESSES,
)

if TYPE_CHECKING:
    from gpuvigil_agent.nvml import Device


class Processes:
    """Yield a count; 0 is a reading: no process has a context."""

    name = "gpu_processes"
    period_s = 10.0
    metrics = (GPU_COMPUTE_PROCESSES,)

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices

    def sample(self) -> Iterator[Sample]:
        """Read all devices once. Raises GpuLost when a board has fallen off the bus."""
        for device in self._devices:
            yield from supported(
                entity.gpu(device.uuid), [(GPU_COMPUTE_PROCESSES, device.compute_processes, 1.0)]
            )
